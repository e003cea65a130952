"""docs/explain.md against the lines behind it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from statistics import fmean

import explain_study
from explain_study import CANDIDATES

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "explain.md").read_text(encoding="utf-8")
TEXT = " ".join(PAGE.split())
LINES = [
    json.loads(line) for line in (DOCS / "results/explain.jsonl").read_text("utf-8").splitlines()
]
[METHOD] = explain_study.METHODS


def test_every_set_has_as_many_images_once() -> None:
    keys = [(line["data"], line["row"]) for line in LINES]
    assert len(keys) == len(set(keys))
    counts = Counter(line["data"] for line in LINES)
    assert sorted(counts) == sorted(explain_study.SETS)
    [count] = set(counts.values())
    assert f"asks it about {count} test images per set" in TEXT
    assert len({line["backbone"] for line in LINES}) == 1


def test_the_table_is_that_of_the_lines() -> None:
    assert explain_study.tables(LINES) in PAGE
    assert (
        f"with {' and '.join(f'{100 * share:.0f} %' for share in explain_study.SHARES)} of the patches"
        in TEXT
    )
    assert f"to {['', '', '', '', 'four'][explain_study.SHOTS]} images per class" in TEXT


def test_the_page_has_no_map_as_none_is_better_than_random() -> None:
    proven = [name for name in CANDIDATES if explain_study.better(LINES, METHOD, name, "random")]
    best = max(
        proven,
        key=lambda name: fmean(explain_study.ahead(LINES, METHOD, name, "random")),
        default=None,
    )
    beyond = [name for name in CANDIDATES if explain_study.better(LINES, METHOD, name, "centre")]
    assert f"Better than random by more than the interval: {', '.join(proven) or 'none'}." in TEXT
    every = [
        name for name in CANDIDATES if min(explain_study.ahead(LINES, METHOD, name, "random")) > 0
    ]
    assert f"Ahead of random on each of the three sets: {', '.join(every) or 'none'}." in TEXT
    assert ("There are none on the page" in TEXT) == (best is None)
    assert f"Better than centre: {', '.join(beyond) or 'none'}." in TEXT
