"""Damaged run.json: an accepted record survives writing and reading, and can be shown."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from rmadapter.artifacts.record import read_record
from rmadapter.bench.report.groups import experiment_of
from rmadapter.bench.report.read import read_records
from tests.helpers.synthetic_runs import record
from tests.hostile.harness import Changed
from tests.hostile.mutate import spoilt_json

SOUND = (
    record("mma", "pets", 1, {"base": 80.0, "novel": 70.0}),
    record(
        "rmadapter",
        "pets",
        2,
        {"all": 60.0, "dtd": 40.0, "cars": 30.5},
        protocol="cross-dataset",
        value=[1, None],
    ),
    record(
        "zero-shot",
        "pets",
        3,
        {"base": None, "novel": 1.0},
        axis="rank",
        value=4,
        notes=("a: b", "c"),
    ),
)


def cases(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    rng = random.Random(seed)
    for number in range(count):
        what, content = spoilt_json(rng, json.loads(rng.choice(SOUND).line()))
        yield f"{what}-{number}", content


def ask(name: str, content: bytes, folder: Path) -> object:
    file = folder / "run.json"
    file.write_bytes(content)
    found = read_record(file)
    found.save(file)
    if read_record(file) != found:
        raise Changed("another record when it was written and read")
    shown = [
        found.metrics,
        [(score.title, score.chance) for score in found.scores],
        experiment_of(found),
    ]
    return shown, read_records(file)
