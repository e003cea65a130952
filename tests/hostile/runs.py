"""Folders of runs with one damaged file: a run that still loads gives its old answers.

Half of them have lost their SHA256SUMS, as after a forgery: their answers may change, but reading
them is just as safe.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from rmadapter.artifacts.checkpoint import load, read_draw
from rmadapter.support.files import SUMS
from tests.hostile import valid
from tests.hostile.harness import Changed
from tests.hostile.mutate import damaged, spoilt_json

FILES = (
    "model.json",
    "model.json",
    "model.safetensors",
    "model.safetensors",
    "run.json",
    "config.yaml",
)


def cases(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    rng = random.Random(seed)
    for number in range(count):
        method = valid.METHODS[number // 10 % len(valid.METHODS)]
        file = rng.choice(FILES)
        data = (valid.run(method) / file).read_bytes()
        spoil = spoilt_json(rng, json.loads(data)) if file.endswith(".json") else _header(rng, data)
        yield f"{method}/{file}/{spoil[0]}-{number}", spoil[1]


def _header(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    """Most of what a safetensors file can say wrongly stands in its first bytes."""
    if rng.random() < 0.5:
        return damaged(rng, data)
    what, start = damaged(rng, data[:400])
    return f"start-{what}", start + data[400:]


def ask(name: str, content: bytes, folder: Path) -> object:
    method, file, _ = name.split("/")
    run = valid.copied(valid.run(method), folder / "run", file)
    (run / file).write_bytes(content)
    if forged := int(name.rsplit("-", 1)[1]) % 2 == 1:
        (run / SUMS).unlink(missing_ok=True)
    found = answer(run)
    if found != sound(method) and not forged:
        raise Changed(f"{found} instead of {sound(method)}"[:1000])
    return found


@cache
def sound(method: str) -> tuple[object, ...]:
    return answer(valid.run(method))


def answer(run: Path) -> tuple[object, ...]:
    """Labels and probabilities, and what the run says about its images."""
    fitted, labels, *_ = load(run, valid.backbone())
    rows = [
        row for part in fitted.probabilities(valid.images().images[:2]) for row in part.tolist()
    ]
    return labels, rows, read_draw(run)[:2]
