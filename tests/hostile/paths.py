"""Impossible paths and paths that lead to something other than a file."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

from tests.hostile import entry_points

PATHS = (
    "", ".", "..", "~", "~nosuchuser/x", "~root/x", "x" * 256, "é" * 128, "x" * 5_000, "a/" * 3_000,
    "/dev/null", "/dev/zero", "/dev/stdin", "/proc/self", "/proc/self/mem", "/proc/self/environ",
    "/proc/kmsg", "a\0b", "caf\udce9", "\x1b[31m", "a\nb", "-x", "/etc/passwd/x", "/root/\ud800",
    "*", "$HOME", "%s", "hf-hub:x", "hf-hub:", "hf-hub:../..", "con", "a:b", "a.py:B", "http://x/y",
    "../" * 100 + "etc/passwd", "x" * 255, "file:///etc/passwd", "\u202egnp.exe", "{}", "dtd",
    "imagenet/train", "ViT-B-32/none/x", "pocket/x",
)  # fmt: skip


def cases(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    rng, names = random.Random(seed), list(entry_points.ENTRY_POINTS)
    for number in range(count):
        path = rng.choice(PATHS)
        if rng.random() < 0.3:
            inner = f"{path}/{rng.choice(PATHS)}"
            path = rng.choice((inner, f"~{path}", f"{path}.csv", f"./{path}"))
        yield f"{names[number % len(names)]}-{number}", path.encode("utf-8", "surrogatepass")


def check(name: str, content: bytes, folder: Path) -> object:
    before = os.getcwd()
    (folder / "empty/home").mkdir(parents=True)
    os.chdir(folder / "empty/home")
    os.environ |= {"HF_HUB_OFFLINE": "1", "HOME": str(folder)}
    try:
        entry = entry_points.ENTRY_POINTS[name.partition("-")[0]]
        return entry(content.decode("utf-8", "surrogatepass"))
    finally:
        os.chdir(before)
