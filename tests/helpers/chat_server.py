"""A server that answers as a language model does at an OpenAI-compatible address."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from threading import Thread
from typing import NamedTuple

import pytest

from rmadapter_research.chat import KEY
from tests.helpers.http_server import Server


class Received(NamedTuple):
    path: str
    key: str | None
    body: dict[str, object]


class Model(Server):
    """Answers with what `answers` holds in turn: a text, a status, or bytes; the last one again."""

    def __init__(self) -> None:
        self.answers: list[str | int | bytes] = ["fur"]
        self.headers: dict[str, str] = {}
        self.requests: list[Received] = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Model

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(Received(self.path, self.headers["Authorization"], body))
        answers = self.server.answers
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, str):
            answer = json.dumps({"choices": [{"message": {"content": answer}}]}).encode()
        content = answer if isinstance(answer, bytes) else b"no"
        self.send_response(answer if isinstance(answer, int) else 200)
        for name, value in {**self.server.headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        self.server.requests.append(Received(self.path, self.headers["Authorization"], {}))
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    monkeypatch.delenv(KEY, raising=False)
    with Model() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
