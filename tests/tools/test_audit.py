"""tools/audit.py, with pip-audit and a local service of known vulnerabilities."""

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


class Service(Server):
    """holes: package -> the releases that close its hole. late: seconds until a reply."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.holes: dict[str, list[str]] = {}
        self.late = 0.0

    @property
    def words(self) -> list[str]:
        return [
            "--vulnerability-service",
            "osv",
            "--osv-url",
            f"http://127.0.0.1:{self.server_port}/",
        ]

    def answer(self, name: str) -> dict[str, Any]:
        if name not in self.holes:
            return {}
        events = [{"introduced": "0"}, *({"fixed": release} for release in self.holes[name])]
        package = {"name": name, "ecosystem": "PyPI"}
        affected = [{"package": package, "ranges": [{"type": "ECOSYSTEM", "events": events}]}]
        hole = {"id": "HOLE-1", "aliases": ["CVE-1"], "summary": "a hole", "affected": affected}
        return {"vulns": [hole]}


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        time.sleep(self.server.late)
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(self.server.answer(query["package"]["name"])).encode())

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


def test_dependencies_are_followed_and_the_package_itself_is_left_out() -> None:
    found = audit.installed("rmadapter[demo]")
    assert {"torch", "pillow", "fonttools", "markupsafe"} <= found.keys()  # jinja2 needs the last
    assert not {"rmadapter", "pytest", "tabulate"} & found.keys()
    assert found["torch"] == metadata.version("torch").partition("+")[0]
    assert "tabulate" in audit.installed("rmadapter[report]")


@pytest.mark.ci
def test_only_a_hole_that_a_release_closes_fails(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    service.holes = {"django": ["3.0.1"], "pillow": ["99.0"], "scipy": []}
    assert audit.main(service.words) == 1
    out = capsys.readouterr().out
    for name, hint in (("pillow", "99.0"), ("scipy", "no fix")):
        [line] = [line for line in out.splitlines() if name in line]
        assert all(word in line for word in (metadata.version(name), "CVE-1", "HOLE-1", hint))
    assert "django" not in out
    service.holes = {"django": ["3.0.1"], "scipy": []}
    assert audit.main(service.words) == 0


@pytest.mark.ci
@pytest.mark.parametrize(
    ("late", "words", "reason"),
    [
        (0, [], "django"),  # a service that does not know the canary knows nothing
        (5, [], "2 seconds"),
        (0, ["--osv-url", "http://127.0.0.1:1/"], "refused"),
    ],
)
def test_without_a_reply_the_audit_is_skipped(
    service: Service, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    late: float, words: list[str], reason: str,
) -> None:  # fmt: skip
    service.holes, service.late = {"pillow": ["99.0"]}, late
    if late:
        monkeypatch.setattr(audit, "SECONDS", 2)
    assert audit.main([*service.words, *words]) == 0
    out = capsys.readouterr().out
    assert "skipped" in out
    assert reason in out
