"""docs/explain.md against the lines behind it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import explain_study

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "explain.md").read_text(encoding="utf-8")
LINES = [
    json.loads(line) for line in (DOCS / "results/explain.jsonl").read_text("utf-8").splitlines()
]
[METHOD] = explain_study.METHODS


def test_every_set_has_as_many_images_once() -> None:
    keys = [(line["data"], line["row"]) for line in LINES]
    assert len(keys) == len(set(keys))
    counts = Counter(line["data"] for line in LINES)
    assert sorted(counts) == sorted(explain_study.SETS)
    assert len(set(counts.values())) == 1
    assert len({line["backbone"] for line in LINES}) == 1


def test_the_table_is_that_of_the_lines() -> None:
    assert explain_study.tables(LINES) in PAGE
