"""docs/suspects.md against the lines behind it."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path

import suspects

from rmadapter.curate.suspects import NEIGHBOURS, PROBE
from rmadapter.runs.folds import FOLDS

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "suspects.md").read_text(encoding="utf-8")
LINES = [
    json.loads(line) for line in (DOCS / "results/suspects.jsonl").read_text("utf-8").splitlines()
]


def test_every_line_is_there_once_and_of_one_backbone() -> None:
    sets = re.findall(r"--out docs/results/suspects.jsonl (.+)", PAGE)[0].split()
    keys = [tuple(line[key] for key in suspects.KEY) for line in LINES]
    assert sorted(keys) == sorted(product(sets, suspects.KINDS, suspects.SHARES, (1, 2, 3)))
    assert (
        len({line["backbone"] for line in LINES})
        == len({tuple(line["scores"]) for line in LINES})
        == 1
    )
    assert {line["versions"]["cleanlab"] for line in LINES} == set(
        re.findall(r"\*\*cleanlab\*\* ([\d.]+)", PAGE)
    )


def test_the_tables_are_those_of_the_lines() -> None:
    found = suspects.tables(LINES).split("\n\n")
    assert len(found) == 3
    for table in found:
        assert table in PAGE


def test_the_product_has_the_rule_that_was_chosen() -> None:
    assert suspects.best(LINES) == f"probe {PROBE['C']:g}, logit margin"
    assert FOLDS == 4
    assert NEIGHBOURS == 10
