"""docs/suspects.md against the lines behind it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import suspects

from rmadapter.curate import checks
from rmadapter.curate.suspects import PROBE
from rmadapter.runs.folds import FOLDS

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "suspects.md").read_text(encoding="utf-8")
TEXT = " ".join(PAGE.split())
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
        re.findall(r"\*\*cleanlab\*\* ([\d.]+)", TEXT)
    )
    sizes = {line["images"] + line["left_out"] for line in LINES}
    assert f"{min(sizes)} to {max(sizes)} images per set" in TEXT


def test_the_tables_are_those_of_the_lines() -> None:
    found = suspects.tables(LINES).split("\n\n")
    assert len(found) == 3
    for table in found:
        assert table in PAGE


def test_the_product_has_the_rule_that_was_chosen() -> None:
    assert suspects.best(LINES) == f"probe {PROBE['C']:g}, logit margin"
    assert f"takes C = {PROBE['C']:g} without a search" in TEXT
    assert FOLDS == 4
    assert checks.NEIGHBOURS == 10


def test_what_is_said_of_the_chosen_rule() -> None:
    chosen, sets = suspects.best(LINES), sorted({line["data"] for line in LINES})

    def mean(name: str, kind: str = "random", some: Sequence[str] = suspects.REPORT) -> str:
        return f"{suspects.mean(LINES, some, name, kind, 10):.2f}"

    controls = f"(zero-shot {mean('zero-shot, self-confidence')}, chance {mean('random')})"
    assert f"mean average precision {mean(chosen)} at 10 % random flips {controls}" in TEXT
    assert f"and {mean(chosen, 'confusable')} at 10 % confusable ones" in TEXT
    by_set = [mean(chosen, some=[data]) for data in sets]
    assert (
        f"is {mean(chosen, some=sets)}: from {min(by_set)} on trashnet to {max(by_set)} on neu_steel"
        in TEXT
    )
    found = {name: suspects.difference(LINES, chosen, name) for name in LINES[0]["scores"]}
    told = {name: f"{middle:+.3f} ± {half:.3f}" for name, (middle, half) in found.items()}
    ahead, same = (
        f"cleanlab, probe 3, {rule}" for rule in ("self_confidence", "normalized_margin")
    )
    assert f"ahead of cleanlab's self_confidence by {told[ahead]}" in TEXT
    assert found[ahead][0] > found[ahead][1]
    assert f"From its normalized_margin no difference is shown: {told[same]}" in TEXT
    assert abs(found[same][0]) < found[same][1]
    both = "mean rank of probe 3 and neighbours, logit margin"
    assert f"(without it {told[both]})" in TEXT
    assert abs(found[both][0]) < found[both][1]


def test_the_thresholds_are_those_of_the_product() -> None:
    assert f"standard deviation below {checks.FLAT:g} of 255" in TEXT
    assert f"below {checks.TINY} pixels" in TEXT
    assert f"{checks.FAR:g} robust standard deviations below" in TEXT
    assert (checks.NTH, checks.SHARE, checks.HALF) == (5, 0.01, 0.5)
