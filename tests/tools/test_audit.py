"""tools/audit.py, asked with pip-audit about a service of this machine that knows what the test
says."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from importlib import metadata
from typing import Any

import audit
import pytest

from tests.helpers.http_server import Server

DJANGO = {"django": ["3.0.1"]}


class Service(Server):
    """holes: package -> the releases that close its hole. late: seconds until an answer."""

    late = 0.0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.holes: dict[str, list[str]] = {}

    @property
    def words(self) -> list[str]:
        return [
            "--vulnerability-service",
            "osv",
            "--osv-url",
            f"http://127.0.0.1:{self.server_port}/",
        ]


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        time.sleep(self.server.late)
        name = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["package"]["name"]
        answer: dict[str, Any] = {}
        if name in self.server.holes:
            events = [
                {"introduced": "0"},
                *({"fixed": release} for release in self.server.holes[name]),
            ]
            package = {"name": name, "ecosystem": "PyPI"}
            affected = [{"package": package, "ranges": [{"type": "ECOSYSTEM", "events": events}]}]
            answer = {
                "vulns": [
                    {
                        "id": "HOLE-1",
                        "aliases": ["CVE-1"],
                        "summary": "a hole",
                        "affected": affected,
                    }
                ]
            }
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[Service]:
    with Service() as service:
        thread = threading.Thread(target=service.serve_forever, args=(0.01,))
        thread.start()
        yield service
        service.shutdown()
        thread.join()


def test_what_is_installed_is_what_is_declared_and_what_that_needs() -> None:
    found = audit.installed("rmadapter[demo]")
    assert {"torch", "pillow", "fonttools", "markupsafe"} <= found.keys()  # jinja2 needs the last
    assert not {"rmadapter", "pytest", "tabulate"} & found.keys()
    assert found["torch"] == metadata.version("torch").partition("+")[0]
    assert "tabulate" in audit.installed("rmadapter[report]")


def test_a_hole_that_a_release_closes_fails(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    service.holes = DJANGO | {"pillow": ["99.0"], "scipy": []}
    assert audit.main(service.words) == 1
    told = capsys.readouterr().out
    assert f"pillow {metadata.version('pillow')} has CVE-1, HOLE-1; take 99.0" in told
    assert f"scipy {metadata.version('scipy')} has CVE-1, HOLE-1; no fix yet" in told
    assert "holes that another release closes: 1\n" in told
    assert "django" not in told


def test_without_an_answer_it_is_skipped(
    service: Service, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    service.holes = {"pillow": ["99.0"]}  # whoever does not know the canary knows nothing
    assert audit.main(service.words) == 0
    assert (
        "skipped, for the vulnerability service does not answer: nobody knows a hole in"
        in capsys.readouterr().out
    )
    with monkeypatch.context() as patched:
        patched.setattr(audit, "SECONDS", 2)
        service.late = 5
        assert audit.main(service.words) == 0
    assert "no answer within 2 seconds" in capsys.readouterr().out
    assert audit.main(["--vulnerability-service", "osv", "--osv-url", "http://127.0.0.1:1/"]) == 0
    assert "Connection refused" in capsys.readouterr().out
