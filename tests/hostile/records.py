"""Damaged run.json files: an accepted record survives writing and reading, and can be shown."""

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
from tests.hostile.mutate import damage_json

CROSS = {"all": 60.0, "dtd": 40.0, "cars": 30.5}
UNTESTED, NOTES = {"base": None, "novel": 1.0}, ("a: b", "c")
VALID = (
    record("mma", "pets", 1, {"base": 80.0, "novel": 70.0}),
    record("rmadapter", "pets", 2, CROSS, protocol="cross-dataset", value=[1, None]),
    record("zero-shot", "pets", 3, UNTESTED, axis="rank", value=4, notes=NOTES),
)


def cases(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    rng = random.Random(seed)
    for number in range(count):
        what, content = damage_json(rng, json.loads(rng.choice(VALID).line()))
        yield f"{what}-{number}", content


def check(name: str, content: bytes, folder: Path) -> object:
    file = folder / "run.json"
    file.write_bytes(content)
    accepted = read_record(file)
    accepted.save(file)
    if read_record(file) != accepted:
        raise Changed("another record after writing and reading")
    scores = [(score.title, score.chance) for score in accepted.scores]
    return accepted.metrics, scores, experiment_of(accepted), read_records(file)
