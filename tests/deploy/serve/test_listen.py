"""A real server: it ends without losing an answer, and takes a changed run while it is asked."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from rmadapter.artifacts.checkpoint import load, save
from tests.helpers.answering import Process, coloured, post, read, wait_for
from tests.helpers.shell import its_backbone


@pytest.mark.slow
def test_what_was_taken_is_answered_before_it_ends(finished: Path) -> None:
    """A request whose body is still coming when SIGTERM arrives; a new one is refused."""
    body = json.dumps({"images": []}).encode()
    with Process(finished, *its_backbone(finished)) as server:
        host, port = server.address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as client:
            head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
            client.sendall(f"{head}\r\n\r\n".encode() + body[:5])
            wait_for(
                lambda: post(server.address, "/predict", [("a.png", coloured(1, 2, 3))])[0] == 200,
                "no answer",
            )
            server.process.send_signal(signal.SIGTERM)
            wait_for(lambda: not takes(host, int(port)), "it takes new ones")
            client.sendall(body[5:])
            answer = rest_of(client)
        assert answer.startswith("HTTP/1.1 400")
        assert "no images received" in answer
        assert "server:" not in answer.lower()
        assert server.ended() == 0
        assert [line for line in server.said if not line.startswith("rmadapter: ")] == []


def rest_of(client: socket.socket) -> str:
    """All until the other side closes."""
    return b"".join(iter(lambda: client.recv(10_000), b"")).decode()


def takes(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        return False
    return True


def test_ctrl_c_ends_it_with_0(finished: Path) -> None:
    with Process(finished, *its_backbone(finished), "--json") as server:
        assert server.process.stdout is not None
        told = json.loads(server.process.stdout.readline())
        assert told["models"] == {finished.name: str(finished)}
        assert post(told["address"], "/predict", [("a.png", coloured(1, 2, 3))])[0] == 200
        assert server.end(signal.SIGINT) == 0
        assert server.said == []


def test_a_changed_run_is_taken_and_no_request_is_lost(
    finished: Path, colors: Path, tmp_path: Path
) -> None:
    run, saved = (
        Path(shutil.copytree(finished, tmp_path / "run")),
        load(finished, its_backbone(finished)[1]),
    )
    (run / "run.json").unlink()  # a model alone, which may be saved again
    image, found = read([colors / "test/red/0.png"]), list[tuple[int, str]]()
    ends = threading.Event()

    def asks() -> None:
        while not ends.is_set():
            status, answer = post(server.address, "/predict", image)
            found.append(
                (
                    status,
                    answer["answers"][0]["classes"][0]["class"] if status == 200 else str(answer),
                )
            )

    with Process(run, *its_backbone(finished)) as server:
        clients = [threading.Thread(target=asks) for _ in range(3)]
        assert server.address
        for client in clients:
            client.start()
        try:
            wait_for(lambda: found, "no answer")
            save(run, saved.fitted, saved.name, labels=("blau", "grün", "nacht", "rot"))
            wait_for(lambda: (200, "rot") in found, "the new one was not taken")
            (run / "model.safetensors").write_bytes(b"x")
            server.process.send_signal(signal.SIGHUP)
            wait_for(
                lambda: any("not reloaded" in line for line in server.said), "nothing was said"
            )
            before = len(found)
            wait_for(lambda: len(found) > before + 3, "the old one does not answer")
        finally:
            ends.set()
            for client in clients:
                client.join()
        assert {status for status, _ in found} == {200}
        names = [name for _, name in found]
        assert {*names} == {"red", "rot"}  # no other answer
        assert names[-1] == "rot"
        assert server.end() == 0
        assert server.said[1] == "rmadapter: run: reloaded"
        assert "the old one keeps answering: " in server.said[2]


@pytest.mark.slow
def test_a_body_that_does_not_come(finished: Path) -> None:
    with Process(finished, *its_backbone(finished), "--seconds", "0.5", "--log") as server:
        host, port = server.address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as client:
            client.sendall(
                b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
            )
            started = time.monotonic()
            assert rest_of(client).startswith("HTTP/1.1 408")
            assert time.monotonic() - started < 20
        wait_for(
            lambda: any('"POST /predict HTTP/1.1" 408' in line for line in server.said),
            "it is not in the log",
        )
        assert server.end() == 0
