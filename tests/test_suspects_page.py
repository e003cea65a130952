"""docs/suspects.md against the lines behind it."""

from __future__ import annotations

import json
import re
import sys
from itertools import product
from pathlib import Path

from rmadapter.folds import FOLDS
from rmadapter.suspects import oddities, rules
from rmadapter.suspects.find import PROBE

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import odd_images
import suspects

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "suspects.md").read_text(encoding="utf-8")
TEXT = " ".join(PAGE.split())
LINES, ODD = (
    [json.loads(line) for line in (DOCS / f"results/{name}.jsonl").read_text("utf-8").splitlines()]
    for name in ("suspects", "odd_images")
)


def test_every_line_is_there_once_and_of_one_backbone() -> None:
    sets = re.findall(r"--out docs/results/suspects.jsonl (.+)", PAGE)[0].split()
    keys = [tuple(line[key] for key in suspects.KEY) for line in LINES]
    assert sorted(keys) == sorted(product(sets, suspects.KINDS, suspects.SHARES, (1, 2, 3)))
    assert len({line["backbone"] for line in LINES}) == len({tuple(line["scores"]) for line in LINES}) == 1
    assert {line["versions"]["cleanlab"] for line in LINES} == set(re.findall(r"\*\*cleanlab\*\* ([\d.]+)", TEXT))
    sizes = {line["images"] + line["left_out"] for line in LINES}
    assert f"{min(sizes)} to {max(sizes)} images a set" in TEXT


def test_the_tables_are_those_of_the_lines() -> None:
    found = suspects.tables(LINES).split("\n\n")
    assert len(found) == 3
    for table in (*found, odd_images.table(ODD)):
        assert table in PAGE


def test_the_product_has_the_rule_that_was_chosen() -> None:
    assert suspects.best(LINES) == f"probe {PROBE['C']:g}, logit margin"
    assert f"takes C = {PROBE['C']:g} without a search" in TEXT
    assert FOLDS == 4
    assert rules.NEIGHBOURS == 10


def test_what_is_said_of_the_aim() -> None:
    chosen = suspects.best(LINES)
    found = suspects.mean(LINES, suspects.REPORT, chosen, "random", 10)
    assert f"mean average precision {found:.2f} at 10 % random flips" in TEXT
    zero_shot, floor = (suspects.mean(LINES, suspects.REPORT, f"{one}", "random", 10) for one in CONTROLS)
    assert f"zero-shot {zero_shot:.2f}, chance {floor:.2f}" in TEXT


CONTROLS = ("zero-shot, self-confidence", "random")


def test_the_thresholds_are_those_of_the_product() -> None:
    assert f"standard deviation below {oddities.FLAT:g} of 255" in TEXT
    assert f"below {oddities.TINY} pixels" in TEXT
    assert f"{oddities.FAR:g} robust standard deviations below" in TEXT
    assert (oddities.NTH, oddities.SHARE, oddities.HALF) == (5, 0.01, 0.5)
