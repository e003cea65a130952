"""docs/suggest.md against the lines behind it."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest
import suggest
from studies import with_interval

from rmadapter.curate import suggest as propose
from rmadapter.curate.acquisition import FIRST, NEXT

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "suggest.md").read_text(encoding="utf-8")
TEXT = " ".join(PAGE.split())
LINES = [
    json.loads(line) for line in (DOCS / "results/suggest.jsonl").read_text("utf-8").splitlines()
]
PRODUCT = {"next": propose.DEFAULT_NEXT, "first": propose.DEFAULT_FIRST}


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
    told = TEXT.split(f"**{kind}**: ")[1].split(" **")[0]
    chosen = suggest.best(LINES, kind)
    points = with_interval(suggest.ahead(LINES, suggest.REPORT, kind, chosen))
    assert f"{chosen} was chosen; elsewhere it is {points} points ahead of random" in told
    assert not any(
        suggest.proven(LINES, kind, rule) for rule in suggest.KINDS[kind] if rule != "random"
    )
    assert "No rule is ahead by more than its interval" in told
    assert PRODUCT[kind] == suggest.default(LINES, kind)
    assert f"The default is {PRODUCT[kind]}" in told


def test_why_typicality_comes_first() -> None:
    sets = (*suggest.CHOOSE, *suggest.REPORT)
    ahead = suggest.ahead(LINES, sets, "first", "typicality")
    assert (
        f"ahead of random on {sum(x > 0 for x in ahead)} of {len(sets)} sets ({with_interval(ahead)} over all)"
        in TEXT
    )
    assert max(suggest.ahead(LINES, sets, "next", "coverage")) < 0  # "behind on all five sets"
    shares = (suggest.classes(LINES, rule)[0] for rule in ("typicality", "random"))
    assert (
        "{:.0f} % of the classes with one image per class, random {:.0f} %".format(*shares) in TEXT
    )


def test_the_design_is_that_of_the_tool() -> None:
    assert f"at most {suggest.POOL} images per class of a set's train split" in TEXT
    assert f"at most {suggest.TEST} images per class" in TEXT
    assert f"trained for {suggest.METHOD.recipe.epochs} steps" in TEXT
    assert f"chosen on {' and '.join(suggest.CHOOSE)}" in TEXT
    assert f"reported on {', '.join(suggest.REPORT)}" in TEXT
    assert suggest.DRAWS == 2
    assert suggest.ROUNDS == (1, 2, 3, 4)
