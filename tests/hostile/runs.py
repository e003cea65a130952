"""Folders of runs with one damaged file: a run that still loads gives its old answers.

Half of them lack SHA256SUMS, as after a forgery: their answers may change, but they are as safe to
read.
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
from tests.hostile.mutate import damage, damage_json

FILES = (
    "model.json", "model.json", "model.safetensors", "model.safetensors", "run.json", "config.yaml",
)  # fmt: skip


def cases(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    rng = random.Random(seed)
    for number in range(count):
        method = valid.METHODS[number // 10 % len(valid.METHODS)]
        file = rng.choice(FILES)
        data = (valid.run(method) / file).read_bytes()
        if file.endswith(".json"):
            what, content = damage_json(rng, json.loads(data))
        else:
            what, content = damage_start(rng, data)
        yield f"{method}/{file}/{what}-{number}", content


def damage_start(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    """Damage bytes, half of the time among the first, where a safetensors file has its header."""
    if rng.random() < 0.5:
        return damage(rng, data)
    what, start = damage(rng, data[:400])
    return f"start-{what}", start + data[400:]


def check(name: str, content: bytes, folder: Path) -> object:
    method, file, _ = name.split("/")
    run = valid.copy_folder(valid.run(method), folder / "run", file)
    (run / file).write_bytes(content)
    if forged := int(name.rsplit("-", 1)[1]) % 2 == 1:
        (run / SUMS).unlink(missing_ok=True)
    actual, expected = answers(run), valid_answers(method)
    if actual != expected and not forged:
        raise Changed(f"{actual} instead of {expected}"[:1000])
    return actual


@cache
def valid_answers(method: str) -> tuple[object, ...]:
    return answers(valid.run(method))


def answers(run: Path) -> tuple[object, ...]:
    """Return labels and probabilities, and what the run records of its images."""
    fitted, labels, *_ = load(run, valid.backbone())
    [rows] = fitted.probabilities(valid.images().images[:2])
    return labels, rows.tolist(), read_draw(run)[:2]
