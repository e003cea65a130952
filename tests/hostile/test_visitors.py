"""tests/hostile/visitors.py: no faults of `app` with visitors and a restart; faults are noticed."""

from __future__ import annotations

import argparse
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("starlette", reason="pip install 'rmadapter[app]'")
pytest.importorskip("uvicorn", reason="pip install 'rmadapter[app]'")

from tests.helpers.benchmarks import tiny_model
from tests.hostile import visitors
from tests.hostile.visitors import SKIPPED, DownError, Load, Outcome, Visitor


def options(**more: object) -> argparse.Namespace:
    """Return the options of a short load."""
    given = {"minutes": 0.1, "visitors": 4, "images": 32, "restarts": 1, "pause": 0.1, "train": 0}
    return argparse.Namespace(**{**given, "seed": 1, **more})


@pytest.mark.ci
def test_a_short_load_has_no_faults(tmp_path: Path) -> None:
    row = visitors.measure(options(backbone=tiny_model(tmp_path)))
    assert int(str(row["visits"])) > 4
    assert row["marks compared with files"] == 32 * 2
    assert "label" in str(row["turns"])
    assert {fault: row[fault] for fault in visitors.FAULTS if row[fault]} == {}


class Answers(http.server.BaseHTTPRequestHandler):
    """Gives the answer that the test wants, or none."""

    status, body = 200, b"null"

    def do_POST(self) -> None:
        if not self.status:
            return  # the connection ends
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def visitor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Visitor]:
    """A visitor of a server that gives wrong answers."""
    monkeypatch.setattr(visitors.time, "sleep", lambda _: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        load = object.__new__(Load)
        load.options, load.outcome, load.lock = options(), Outcome(), threading.Lock()
        load.host, load.down = f"127.0.0.1:{server.server_port}", threading.Event()
        said: Any = SimpleNamespace(said=[f"http://{load.host}/label?key=k (Ctrl-C ends it)"])
        load.server = said
        made = Visitor(0, ["a.png", "b.png"], load)
        yield made
        made.close()
        server.shutdown()


def test_faults_are_noticed(visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = visitor.load.outcome.faults
    visitor.step({"a.png": "red"}, "set")
    visitor.step({"b.png": SKIPPED}, "skip")
    visitor.compare({"a.png": "red", "b.png": SKIPPED}, "lost labels")
    assert not faults
    for found in ({"b.png": SKIPPED}, {"a.png": "blue", "b.png": SKIPPED}, {"a.png": "red"}):
        visitor.compare(found, "lost labels")
    assert faults == {"lost labels": 3}
    [number] = [key for key, name in visitor.names.items() if name == "a.png"]
    card = {"id": number, "label": "blue", "skipped": False}
    monkeypatch.setattr(Answers, "body", json.dumps([card]).encode())
    visitor._cards("open")
    assert faults.pop("wrong labels") == 1
    monkeypatch.setattr(Answers, "body", b'{"trouble": "no memory"}')
    visitor._state()
    assert faults.pop("trouble") == 1
    for status in (400, 410, 500):
        monkeypatch.setattr(Answers, "status", status)
        visitor.ask("label/state")
        assert faults.pop("statuses")


def test_an_unanswered_step_may_have_been_kept(
    visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then either mark is right; a connection that ends while the server runs is a fault."""
    visitor.step({"a.png": "red"}, "set")
    monkeypatch.setattr(Answers, "status", 0)
    with pytest.raises(DownError):
        visitor.step({"a.png": "blue"}, "set")
    assert visitor.load.outcome.faults == {"statuses": 1}
    visitor.load.down.set()
    with pytest.raises(DownError):
        visitor.step({"b.png": "blue"}, "set")
    assert visitor.load.outcome.faults == {"statuses": 1}
    assert visitor.marks == {"a.png": {"red", "blue"}, "b.png": {"", "blue"}}


def test_growing_memory_is_noticed() -> None:
    assert not visitors.grown([100.0, 200.0, 300.0])  # too few seconds to say
    assert not visitors.grown([300.0, *[320.0] * 98, 400.0])
    assert visitors.grown([300.0 + 3 * second for second in range(100)])
