"""docs/suggest.md against the lines behind it."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest
import suggest

from rmadapter.curate.suggest import DEFAULT_FIRST, DEFAULT_NEXT, FIRST, NEXT

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "suggest.md").read_text(encoding="utf-8")
LINES = [
    json.loads(line) for line in (DOCS / "results/suggest.jsonl").read_text("utf-8").splitlines()
]
PRODUCT = {"next": DEFAULT_NEXT, "first": DEFAULT_FIRST}


def test_every_line_is_there_once_and_of_one_backbone() -> None:
    rules = [(kind, rule) for kind, some in suggest.KINDS.items() for rule in some]
    wanted = product((*suggest.CHOOSE, *suggest.REPORT), rules, (1, 2, 3))
    assert sorted(tuple(line[key] for key in suggest.KEY) for line in LINES) == sorted(
        (data, kind, rule, seed) for data, (kind, rule), seed in wanted
    )
    assert len({line["backbone"] for line in LINES}) == 1


def test_the_tables_are_those_of_the_lines() -> None:
    found = suggest.tables(LINES).split("\n\n")
    assert len(found) == 2
    for table in found:
        assert table in PAGE
    for rule in {*NEXT, *FIRST}:
        assert f"\n| {rule} | " in PAGE.split("## What that is worth")[0]


@pytest.mark.parametrize("kind", ["next", "first"])
def test_the_default_is_what_follows_from_the_lines(kind: str) -> None:
    assert not any(
        suggest.proven(LINES, kind, rule) for rule in suggest.KINDS[kind] if rule != "random"
    )
    assert PRODUCT[kind] == suggest.default(LINES, kind)
