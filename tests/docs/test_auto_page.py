"""docs/studies/auto.md against the lines behind it."""

from __future__ import annotations

import json
from pathlib import Path

import auto
import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "studies/auto.md").read_text(encoding="utf-8")
LINES = [json.loads(line) for line in (DOCS / "results/auto.jsonl").read_text().splitlines()]
CHEAP = [
    *("linear-probe", "linear-probe-pair", "linear-probe-zero-shot"),
    *("tip-adapter-f", "zero-shot", "zero-shot-ensemble"),
]
FOUND = auto.accuracies(LINES, CHEAP)


def test_the_tables_are_those_of_the_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert f"--out docs/results/auto.jsonl --tables --candidates {' '.join(CHEAP)}" in PAGE
    for candidates in (CHEAP, [*CHEAP, "rmadapter"]):
        auto.show(auto.accuracies(LINES, candidates))
        assert capsys.readouterr().out.strip() in PAGE
    keys = [(line["data"], line["shots"], line["seed"], line["candidate"]) for line in LINES]
    assert len(keys) == len(set(keys))
    assert {(task[1], task[2]) for task in FOUND} == {
        (shots, seed) for shots in (2, 4, 16) for seed in (1, 2, 3)
    }
    assert len(FOUND) == 14 * 9
