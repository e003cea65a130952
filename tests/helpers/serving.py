"""A model whose answers are known, a server of it, and images to send.

Tests of `serve` import its libraries from here, so that they are skipped where these are missing.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

for needed in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
    pytest.importorskip(needed, reason="pip install 'rmadapter[serve]'")

from fastapi.testclient import TestClient  # noqa: E402
from starlette.applications import Starlette  # noqa: E402
from starlette.datastructures import Headers  # noqa: E402
from starlette.exceptions import HTTPException  # noqa: E402
from starlette.requests import Request  # noqa: E402
from starlette.responses import Response  # noqa: E402

from rmadapter.answers.decider import Decider  # noqa: E402
from rmadapter.answers.rejection import RejectionScore  # noqa: E402
from rmadapter.answers.sets import Calibration  # noqa: E402
from rmadapter.export.engines import Outputs  # noqa: E402
from rmadapter_serve import sockets  # noqa: E402
from rmadapter_serve.limits import Limits  # noqa: E402
from rmadapter_serve.model import ServedModel  # noqa: E402
from rmadapter_serve.service import Service  # noqa: E402

__all__ = ["HTTPException", "Headers", "Request", "Response", "Starlette", "TestClient"]

LABELS = ("red", "green", "blue")
FACTS = {
    "method": {"name": "toy", "title": "Toy", "source": "a test"},
    "backbone": {"name": "none", "digest": "0"},
    "accuracy": {"accuracy": 90.0, "low": 80.0, "high": 95.0, "images": 40, "of": "test images"},
    "engine": "toy",
    "classes": list(LABELS),
    "features": True,
    "calibration": None,
    "familiarity": None,
}


class Toy:
    """A model whose probabilities are the mean shares of the three colours; the bluer an image, the
    farther it is from the classes. sizes: of its batches. gate: an event that it waits for before
    each answer. poison: a mean share of red that makes its batch fail. decoded, large: how many
    images were decoded, and how many of these were large. slow: an event that large ones wait
    for."""

    def __init__(
        self,
        features: bool = True,
        labels: Sequence[str] = LABELS,
        calibration: Calibration | None = None,
        rejection: RejectionScore | None = None,
        known: int = len(LABELS),
    ) -> None:
        self.sizes: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.poison: float | None = None
        self.decoded = self.large = 0
        self.slow = threading.Event()
        self.slow.set()
        self.features = features
        facts = {**FACTS, "features": features}
        facts |= {"calibration": calibration and calibration.facts}
        facts |= {"familiarity": rejection and rejection.facts}
        self.decider = Decider(labels, known, calibration, rejection)
        self.served = ServedModel(self, facts)  # type: ignore[arg-type]

    def transform(self, image: Image.Image) -> np.ndarray:
        self.decoded += 1
        if image.width > 1000:
            self.large += 1
            assert self.slow.wait(30)
        return np.asarray(image.resize((4, 4)), np.float32).transpose(2, 0, 1) / 255

    def ask(self, pixels: np.ndarray) -> Outputs:
        self.sizes.append(len(pixels))
        assert self.gate.wait(30)
        means = pixels.mean((2, 3)) + 1e-9
        if self.poison is not None and (np.abs(means[:, 0] - self.poison) < 1e-4).any():
            raise RuntimeError("poisoned")
        lengths = np.linalg.norm(means, axis=-1, keepdims=True)
        return Outputs(means / means.sum(-1, keepdims=True), means / lengths, means[:, 2])

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        return self.ask(pixels).probabilities


@contextmanager
def running_service(toy: Toy, **limits: Any) -> Iterator[Service]:
    service = Service({"toy": toy.served}, Limits(**limits))
    try:
        yield service
    finally:
        toy.gate.set()
        service.close()


def colour_image(
    red: int, green: int, blue: int, size: tuple[int, int] = (9, 7), kind: str = "PNG"
) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (red, green, blue)).save(file, kind)
    return file.getvalue()


def wait_for(ready: Any, what: str, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < until, what
        time.sleep(0.02)


class Process:
    """A process of `rmadapter serve`. said: its lines on stderr so far."""

    def __init__(self, *words: object, key: str = "") -> None:
        code = "from rmadapter.cli.main import main; main()"
        command = [sys.executable, "-c", code, "serve", "--port", "0", *map(str, words)]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if key:
            environment["RMADAPTER_API_KEY"] = key
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        self.said: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line.rstrip("\n"))

    @property
    def address(self) -> str:
        def addresses() -> list[str]:
            return re.findall(r"http://\S+", "\n".join(self.said))

        wait_for(lambda: addresses() or self.process.poll() is not None, "no address came")
        assert addresses(), self.said
        return addresses()[0]

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> int:
        code = self.process.wait(60)
        self._reader.join(10)
        return code

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


def post(
    address: str, path: str, files: Sequence[tuple[str, bytes]], **headers: str
) -> tuple[int, Any]:
    """Post files by Python's own client; return the status and JSON."""
    content, kind = multipart(files)
    request = urllib.request.Request(f"{address}{path}", content, {"Content-Type": kind, **headers})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def multipart(files: Sequence[tuple[str, bytes]], field: str = "files") -> tuple[bytes, str]:
    """Return a body and its content type."""
    body = b""
    for name, data in files:
        head = f'--edge\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n'
        head += "Content-Type: application/octet-stream\r\n\r\n"
        body += head.encode() + data + b"\r\n"
    return body + b"--edge--\r\n", "multipart/form-data; boundary=edge"


def read(paths: Sequence[Path]) -> list[tuple[str, bytes]]:
    return [(path.name, path.read_bytes()) for path in paths]


@contextmanager
def running_server(toy: Toy, **options: Any) -> Iterator[str]:
    """Serve a toy in a thread of this process; yield the address. options: as for `running_app`."""
    from rmadapter_serve.routes import create_app

    with (
        running_service(toy, body=0.2, seconds=5) as service,
        running_app(create_app(service), **options) as address,
    ):
        yield address


@contextmanager
def running_app(app: Any, patience: float = 20, **options: Any) -> Iterator[str]:
    """Serve in a thread of this process; yield the address. patience: with stalled connections.
    options: of uvicorn."""
    import uvicorn

    from rmadapter_serve.stalled import serve

    quiet: dict[str, Any] = {"log_config": None, "log_level": "error", "lifespan": "off"}
    server = uvicorn.Server(uvicorn.Config(app, http="h11", **quiet, **options))

    def run() -> None:
        asyncio.run(serve(server, listening, patience))

    with sockets.bind("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield sockets.address(listening)
        finally:
            server.should_exit = True
            thread.join(20)
