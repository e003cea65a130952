"""A server ends without losing an answer, and reloads runs that change while it answers."""

from __future__ import annotations

import asyncio
import http.client
import json
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rmadapter.artifacts.checkpoint import load, save
from rmadapter.errors import UserError
from rmadapter.support.files import write_sums
from rmadapter_serve import server
from rmadapter_serve.model import ServedModel, ServeOptions, sign
from rmadapter_serve.server import Reloader
from rmadapter_serve.service import Service
from tests.helpers.serving import (
    Process,
    Toy,
    colour_image,
    post,
    read,
    running_app,
    running_server,
    running_service,
    wait_for,
)  # isort: skip
from tests.helpers.shell import backbone_option

HEAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
IMAGE = [("a.png", colour_image(1, 2, 3))]


@contextmanager
def connected(process: Process) -> Iterator[socket.socket]:
    host, port = process.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as client:
        yield client


def accepts(process: Process) -> bool:
    try:
        with connected(process):
            return True
    except OSError:
        return False


def read_to_end(client: socket.socket) -> str:
    """Read until the server closes the connection."""
    return b"".join(iter(lambda: client.recv(10_000), b"")).decode()


@pytest.mark.slow
def test_accepted_requests_are_answered_before_the_end(finished: Path) -> None:
    """A request whose body is still coming when SIGTERM arrives; a new one is refused."""
    body = json.dumps({"images": []}).encode()
    with Process(finished, *backbone_option(finished)) as process, connected(process) as client:
        client.sendall(HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body[:5])
        wait_for(lambda: post(process.address, "/predict", IMAGE)[0] == 200, "no answer")
        process.process.send_signal(signal.SIGTERM)
        wait_for(lambda: not accepts(process), "it still accepts requests")
        client.sendall(body[5:])
        answer = read_to_end(client)
        assert answer.startswith("HTTP/1.1 400")
        assert "no images received" in answer
        assert "server:" not in answer.lower()
        assert process.ended() == 0
        assert [line for line in process.said if not line.startswith("rmadapter: ")] == []


@pytest.mark.ci
def test_ctrl_c_ends_with_0(finished: Path) -> None:
    with Process(finished, *backbone_option(finished), "--json") as process:
        assert process.process.stdout is not None
        announced = json.loads(process.process.stdout.readline())
        assert announced["models"] == {finished.name: str(finished)}
        assert post(announced["address"], "/predict", IMAGE)[0] == 200
        assert process.end(signal.SIGINT) == 0
        assert process.said == []


@pytest.mark.ci
def test_reload_loses_no_request(finished: Path, colors: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    saved = load(finished, backbone_option(finished)[1])
    (run / "run.json").unlink()  # a model alone may be saved again
    image = read([colors / "test/red/0.png"])
    answers: list[tuple[int, str]] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            status, answer = post(process.address, "/predict", image)
            best = answer["answers"][0]["classes"][0]["class"] if status == 200 else str(answer)
            answers.append((status, best))

    with Process(run, *backbone_option(finished)) as process:
        clients = [threading.Thread(target=ask) for _ in range(3)]
        assert process.address
        for client in clients:
            client.start()
        try:
            wait_for(lambda: answers, "no answer")
            save(run, saved.fitted, saved.name, labels=("blau", "grün", "nacht", "rot"))
            wait_for(lambda: (200, "rot") in answers, "the new model does not answer")
            (run / "model.safetensors").write_bytes(b"x")
            process.process.send_signal(signal.SIGHUP)
            wait_for(lambda: any("not reloaded" in line for line in process.said), "no report")
            before = len(answers)
            wait_for(lambda: len(answers) > before + 3, "the old model does not answer")
        finally:
            stop.set()
            for client in clients:
                client.join()
        assert {*answers} == {(200, "red"), (200, "rot")}
        assert answers[-1] == (200, "rot")
        assert process.end() == 0
        assert process.said[1] == "rmadapter: run: reloaded"
        assert "the old one keeps answering: " in process.said[2]


@pytest.mark.slow
def test_missing_body_times_out(finished: Path) -> None:
    with Process(finished, *backbone_option(finished), "--seconds", "0.5", "--log") as process:
        with connected(process) as client:
            client.sendall(HEAD + b"Content-Length: 9\r\n\r\n{")
            started = time.monotonic()
            assert read_to_end(client).startswith("HTTP/1.1 408")
            assert time.monotonic() - started < 20
        logged = '"POST /predict HTTP/1.1" 408'
        wait_for(lambda: any(logged in line for line in process.said), "it is not in the log")
        assert process.end() == 0


@pytest.mark.ci
@pytest.mark.parametrize(
    "start", [b"", b"GET /health HT", HEAD, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\nGET /"]
)
def test_connections_with_slow_headers_are_closed(start: bytes) -> None:
    with running_server(Toy(), patience=0.5) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as client:
            client.sendall(start)
            begun = time.monotonic()
            for _ in range(8):  # each byte on its own does not help
                with suppress(OSError):
                    client.sendall(b"x" if start else b"")
                time.sleep(0.1)
            with suppress(ConnectionError):
                read_to_end(client)
            assert time.monotonic() - begun < 4
        time.sleep(0.6)
        assert post(address, "/predict", IMAGE)[0] == 200


@pytest.mark.parametrize(
    ("start", "status"),
    [
        (b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\n", "404"),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\n", "200"),
        (HEAD + b"Content-Length: 999999999\r\n\r\n", "413"),
    ],
)
def test_connections_with_a_slow_body_after_its_answer_are_closed(
    start: bytes, status: str
) -> None:
    with running_server(Toy(), patience=0.5) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=4) as client:
            client.sendall(start)
            assert client.recv(10_000).startswith(f"HTTP/1.1 {status}".encode())
            for _ in range(3):  # each byte ends uvicorn's own waiting
                client.sendall(b"x")
                time.sleep(0.1)
            with suppress(ConnectionError):
                read_to_end(client)  # no TimeoutError


def test_a_body_that_comes_after_its_answer_leaves_the_connection_usable() -> None:
    with running_server(Toy()) as address:
        client = http.client.HTTPConnection(address.removeprefix("http://"), timeout=4)
        for _ in range(2):
            client.putrequest("POST", "/nothing")
            client.putheader("Content-Length", "2")
            client.endheaders()
            answer = client.getresponse()
            assert answer.read()
            assert answer.status == 404
            client.sock.sendall(b"xx")
        client.close()


def test_connections_that_read_no_answers_are_closed() -> None:
    requests = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100
    with running_server(Toy(), patience=0.5) as address, socket.socket() as client:
        host, port = address.removeprefix("http://").split(":")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((host, int(port)))
        client.settimeout(0.1)
        until, rest, ended = time.monotonic() + 20, requests, False
        while not ended and time.monotonic() < until:
            try:
                rest = rest[client.send(rest) :] or requests
            except TimeoutError:
                continue
            except ConnectionError:
                ended = True
        assert ended


@pytest.mark.ci
def test_an_answer_may_be_read_slowly() -> None:
    size = 8_000_000

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * size})

    with running_app(answer, patience=0.5) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            read = 0
            while part := client.recv(size // 20):
                read += len(part)
                time.sleep(0.1)
    assert read > size


def test_a_slow_answer_is_no_slow_header() -> None:
    toy = Toy()
    toy.gate.clear()
    with running_server(toy, patience=0.2) as address:
        threading.Timer(1, toy.gate.set).start()
        assert post(address, "/predict", IMAGE)[0] == 200


# Reloading


def write(folder: Path, text: str) -> None:
    (folder / "labels").write_text(text)
    write_sums(folder, ["labels"])


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Contents of the folders that were opened as models."""
    texts: list[str] = []

    def open_served(options: ServeOptions) -> ServedModel:
        texts.append((options.folder / "labels").read_text())
        if texts[-1] == "bad":
            raise UserError("labels: damaged")
        if texts[-1] == "bug":
            raise ZeroDivisionError("oh")
        return Toy(labels=texts[-1].split()).served

    monkeypatch.setattr(server, "open_served", open_served)
    return texts


@contextmanager
def watched(folder: Path, **how: float) -> Iterator[tuple[Service, Reloader]]:
    with running_service(Toy()) as service:
        service.put("toy", replace(Toy().served, sign=sign(folder)))
        yield service, Reloader(service, {"toy": ServeOptions(folder)}, **how)


def check(reloader: Reloader, times: int = 2) -> None:
    for _ in range(times):
        asyncio.run(reloader.check())


def test_changed_run_is_loaded_once_complete(
    tmp_path: Path, opened: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "a b c")
    with watched(tmp_path) as (service, reloader):
        check(reloader)
        assert opened == []
        write(tmp_path, "d e f")
        check(reloader, 1)
        assert opened == []  # writing may not be over
        check(reloader, 3)
        assert opened == ["d e f"]
        assert service.models["toy"].model.decider.labels == ("d", "e", "f")
        assert capsys.readouterr().err == "rmadapter: toy: reloaded\n"
        (tmp_path / "SHA256SUMS").unlink()  # the first step of saving a run
        check(reloader, 3)
        assert opened == ["d e f"]
        write(tmp_path, "g h i")
        check(reloader)
        assert service.models["toy"].model.decider.labels == ("g", "h", "i")


def test_damaged_run_is_refused_once(
    tmp_path: Path, opened: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "a b c")
    with watched(tmp_path) as (service, reloader):
        for text, reason in (("bad", "labels: damaged"), ("bug", "ZeroDivisionError: oh")):
            write(tmp_path, text)
            check(reloader, 4)
            assert opened.pop() == text
            assert opened == []
            line = f"rmadapter: toy: not reloaded, the old one keeps answering: {reason}\n"
            assert capsys.readouterr().err == line
            assert service.models["toy"].model.decider.labels == ("red", "green", "blue")
        assert service.counters.total("rmadapter_reloads", outcome="refused") == 2
        write(tmp_path, "d e f")
        check(reloader)
        assert service.models["toy"].model.decider.labels == ("d", "e", "f")
        assert service.counters.total("rmadapter_reloads", outcome="loaded") == 1


def wait_until_opened(reloader: Reloader, opened: list[str], start: Callable[[], None]) -> None:
    """Run the reloader until it opens a folder. start: called once it runs."""

    async def run() -> None:
        running = asyncio.create_task(reloader.run())
        await asyncio.sleep(0)
        start()
        await asyncio.to_thread(wait_for, lambda: opened, "no folder was opened")
        running.cancel()

    asyncio.run(run())


def test_unchanged_run_is_loaded_on_request(tmp_path: Path, opened: list[str]) -> None:
    write(tmp_path, "d e f")
    with watched(tmp_path, every=60) as (_, reloader):
        wait_until_opened(reloader, opened, reloader.reload_all)
    assert opened == ["d e f"]


def test_changes_are_checked_regularly(tmp_path: Path, opened: list[str]) -> None:
    write(tmp_path, "a b c")
    with watched(tmp_path, every=0.01) as (_, reloader):
        wait_until_opened(reloader, opened, lambda: write(tmp_path, "d e f"))
    assert opened == ["d e f"]
