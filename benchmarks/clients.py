"""Clients of a server on this machine, polite and hostile; each thread has a connection of its
own."""

from __future__ import annotations

import http.client
import io
import itertools
import json
import random
import re
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from functools import cache
from typing import Any

from PIL import Image

HOSTILE = 4  # threads
PAUSE = 0.05  # seconds between two requests of a hostile one
GONE = 0  # in place of a status: the connection ended without one


class Client:
    """A connection, which is reopened after it has ended."""

    def __init__(self, address: str) -> None:
        self.connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=120)

    def post(
        self, body: Any, kind: str, path: str = "/predict?top=1", **more: Any
    ) -> tuple[int, Any]:
        """Return the status, and JSON or None. Raises OSError and HTTPException of http.client."""
        try:
            self.connection.request("POST", path, body, {"Content-Type": kind}, **more)
            answer = self.connection.getresponse()
            return answer.status, _json(answer.read())
        except (OSError, http.client.HTTPException):
            self.connection.close()
            raise


def _json(text: bytes) -> Any:
    with suppress(ValueError):
        return json.loads(text)
    return None


def form(*files: bytes) -> tuple[bytes, str]:
    """Make a multipart body of these files, and its content type."""
    edge = "3d6b6a416f9b"
    name = 'Content-Disposition: form-data; name="files"; filename="a.jpg"'
    head = f"--{edge}\r\n{name}\r\n\r\n".encode()
    body = b"".join(head + data + b"\r\n" for data in files) + f"--{edge}--\r\n".encode()
    return body, f"multipart/form-data; boundary={edge}"


def metrics(address: str) -> dict[str, float]:
    """Read the server's metrics without labels, such as `process_cpu_seconds_total`."""
    with closing(
        http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
    ) as connection:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    return {name: float(value) for name, value in re.findall(r"^(\w+) (\S+)$", text, re.M)}


def threads(count: int, work: Callable[[int], None]) -> None:
    """Run `work` in threads and wait for all. Raises what one of them raised."""
    faults: list[BaseException] = []

    def safe(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            faults.append(error)

    running = [threading.Thread(target=safe, args=(number,)) for number in range(count)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if faults:
        raise faults[0]


def closed_loop(
    address: str, bodies: Sequence[tuple[bytes, str]], concurrency: int
) -> list[tuple[int, Any]]:
    """Send each body once; every client sends the next one as soon as it has its answer."""
    turns = itertools.count()
    found = [(GONE, None)] * len(bodies)

    def work(_: int) -> None:
        client = Client(address)
        while (place := next(turns)) < len(bodies):
            found[place] = client.post(*bodies[place])
        client.connection.close()

    threads(concurrency, work)
    return found


def open_loop(
    address: str, bodies: Sequence[tuple[bytes, str]], rate: float, seconds: float, concurrency: int
) -> tuple[list[float], Counter[int]]:
    """Send `rate` requests a second, whether or not earlier ones are answered. Returns the seconds
    of each, from its scheduled time, and statuses."""
    total = max(int(rate * seconds), 1)
    turns = itertools.count()
    spent = [0.0] * total
    statuses = Counter[int]()
    started = time.perf_counter() + 0.2

    def work(_: int) -> None:
        client = Client(address)
        while (place := next(turns)) < total:
            due = started + place / rate
            time.sleep(max(due - time.perf_counter(), 0))
            status, _answer = client.post(*bodies[place % len(bodies)])
            spent[place] = time.perf_counter() - due
            statuses[status] += 1
        client.connection.close()

    threads(concurrency, work)
    return spent, statuses


# ---- hostile ones ----


def hostile(
    address: str, photo: bytes, limit: int, until: float, seed: int
) -> dict[str, Counter[int]]:
    """Send one hostile request after another. photo: a JPEG. limit: bytes of a body that the
    server takes.

    Returns kind -> statuses.
    """
    rng = random.Random(seed)
    kinds = _kinds(address, photo, limit, rng)
    found = dict[str, Counter[int]]()
    names = list(kinds)
    while time.monotonic() < until:
        name = rng.choice(names)
        try:
            status = kinds[name]()
        except (OSError, http.client.HTTPException):
            status = GONE
        found.setdefault(name, Counter())[status] += 1
        time.sleep(PAUSE)
    return found


def _kinds(
    address: str, photo: bytes, limit: int, rng: random.Random
) -> dict[str, Callable[[], int]]:
    def send(body: Any, kind: str, **more: Any) -> int:
        client = Client(address)
        with closing(client.connection):
            return client.post(body, kind, **more)[0]

    def endless() -> Any:
        yield form(photo)[0].rpartition(b"\r\n--")[0]
        block = b"x" * 65_536
        for _ in range(limit // len(block) + 2):
            yield block

    def slow() -> int:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n")
            connection.sendall(b"Content-Type: application/json\r\n\r\n")
            for _ in range(4):
                connection.sendall(b"[")
                time.sleep(0.5)
        return GONE

    bombs = {
        "bomb": png(9, 9, (60_000, 60_000)),
        "large image": png(9_000, 9_000),
        "line": png(20_000, 10),
    }
    wrong = [
        "{", "[" * 10_000, '{"images": 1}', '{"images": ["%"]}', '{"images": [""]}', "[]", "null",
        '"\\ud800"',
    ]  # fmt: skip
    return {
        "random bytes": lambda: send(*form(rng.randbytes(rng.randrange(1, 50_000)))),
        "truncated JPEG": lambda: send(*form(photo[: rng.randrange(1, len(photo) - 2)])),
        "damaged JPEG": lambda: send(*form(_damaged(photo, rng))),
        "damaged form": lambda: send(_damaged(form(photo)[0], rng), form(photo)[1]),
        **{name: lambda data=data: send(*form(data)) for name, data in bombs.items()},  # type: ignore[misc]
        "huge body": lambda: send(b"x" * (limit + 1), form()[1]),
        "huge body in chunks": lambda: send(endless(), form()[1], encode_chunked=True),
        "slow body": slow,
        "wrong JSON": lambda: send(rng.choice(wrong).encode(), "application/json"),
        "no such path": lambda: send(photo, "image/jpeg", path=f"/{rng.random()}"),
    }


def _damaged(data: bytes, rng: random.Random) -> bytes:
    found = bytearray(data)
    for _ in range(5):
        found[rng.randrange(len(found))] = rng.randrange(256)
    return bytes(found)


@cache
def png(width: int, height: int, claimed: tuple[int, int] | None = None) -> bytes:
    """Make a grey PNG, small however many pixels it has. claimed: the size that its header
    claims."""
    file = io.BytesIO()
    Image.new("L", (width, height)).save(file, "PNG", compress_level=9)
    data = bytearray(file.getvalue())
    if claimed:
        data[16:24] = struct.pack(">II", *claimed)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)
