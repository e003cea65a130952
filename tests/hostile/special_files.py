"""Pipes, sockets, devices, folders and circular links in place of a file."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.hostile import entry_points

KINDS: dict[str, Callable[[Path], object]] = {
    "fifo": os.mkfifo,
    "socket": lambda path: socket.socket(socket.AF_UNIX).bind(os.path.relpath(path)),
    "folder": lambda path: path.mkdir(),
    "loop": lambda path: path.symlink_to(path.name),
    "nowhere": lambda path: path.symlink_to("nowhere"),
    "zero": lambda path: path.symlink_to("/dev/zero"),
    "memory": lambda path: path.symlink_to("/proc/self/mem"),
    "terminal": lambda path: path.symlink_to("/dev/tty"),
    "closed": lambda path: path.touch(0),
    "hole": lambda path: path.touch() or os.truncate(path, 2**40),  # type: ignore[func-returns-value]
}
ENDINGS = {"data": ".csv", "data set": ".csv", "image": ".jpg", "records": ".json"}


def cases(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    rng = random.Random(seed)
    entries = [*entry_points.ENTRY_POINTS, *entry_points.inside(Path())]
    every = [(entry, kind) for entry in entries for kind in KINDS]
    rng.shuffle(every)
    for number in range(count):
        yield "/".join((*every[number % len(every)], str(number))), b""


def check(name: str, content: bytes, folder: Path) -> object:
    entry, kind, _ = name.split("/")
    before = os.getcwd()
    os.chdir(folder)
    try:
        if entry in entry_points.ENTRY_POINTS:
            path = folder / f"odd{ENDINGS.get(entry, '')}"
            KINDS[kind](path)
            return entry_points.ENTRY_POINTS[entry](str(path))
        path, read = entry_points.inside(folder)[entry]
        path.parent.mkdir(parents=True, exist_ok=True)
        KINDS[kind](path)
        return read()
    finally:
        os.chdir(before)
