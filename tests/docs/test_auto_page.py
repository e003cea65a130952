"""docs/studies/auto.md against the lines behind it."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import auto
import numpy as np
import pytest

from rmadapter.methods.auto import preferred
from rmadapter.metrics import confidence_interval

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "studies/auto.md").read_text(encoding="utf-8")
TEXT = " ".join(PAGE.split())
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


def test_what_the_page_says_of_the_choice() -> None:
    points = {
        name: fmean(sets.values())
        for name, sets in auto.regrets(FOUND).items()
        if name != auto.BEST
    }
    assert min(points, key=lambda name: points[name]) == auto.AUTO
    nine = defaultdict(list)
    for data, value in auto.regrets(FOUND)[auto.AUTO].items():
        nine[data.split("/")[0]].append(value)
    mean = fmean(map(fmean, nine.values()))
    assert (
        f"({points['auto']:.2f}; with the domains of pacs and office_caltech averaged, over nine sets, {mean:.2f})"
        in TEXT
    )
    assert len(nine) == 9
    both, plain = points["linear-probe-pair"], points["linear-probe"]
    assert (
        f"No difference is shown from always taking both probes ({both:.2f}), "
        f"nor from the plain linear probe ({plain:.2f})" in TEXT
    )

    first = {task: preferred(CHEAP, task[1])[0] for task in FOUND}
    others = [task for task, values in FOUND.items() if values[auto.AUTO] != values[first[task]]]
    assert (
        f"It took the first of its order in {len(FOUND) - len(others)} of {len(FOUND)} tasks; the four others"
        in TEXT
    )
    assert [task[1] for task in others] == [2] * 4
    lost = {task: values[auto.BEST] - values[auto.AUTO] for task, values in FOUND.items()}
    worst = max(lost, key=lambda task: lost[task])
    assert worst[1] == 2
    two = fmean(auto.regrets(FOUND, 2)[auto.AUTO].values())
    assert f"The most is lost there: {two:.1f} points, up to {lost[worst]:.1f}." in TEXT


def test_what_the_page_says_of_choosing_and_of_rmadapter() -> None:
    chosen, other = (
        {t: v for t, v in FOUND.items() if (t[0] in auto.CHOOSE) == c} for c in (True, False)
    )
    gains = []
    for shots in (2, 4, 16):
        points = {name: fmean(sets.values()) for name, sets in auto.regrets(chosen, shots).items()}
        gains.append(points["linear-probe"] - points["linear-probe-pair"])
    assert (
        f"by {gains[0]:.1f} points at two shots and {gains[1]:.1f} at four, and behind it by {-gains[2]:.1f}"
        in TEXT
    )
    points = {name: fmean(sets.values()) for name, sets in auto.regrets(other).items()}
    more = points["linear-probe-pair"] - points[auto.AUTO]
    assert (
        f"`auto` is {points['auto']:.1f} points behind, and always taking both probes {more:.2f} more"
        in TEXT
    )
    early = [line for line in LINES if line["seed"] == 1 and line["data"] not in auto.CHOOSE]
    before = auto.regrets(
        auto.accuracies(early, [name for name in CHEAP if name != "linear-probe-pair"])
    )
    assert f"which was {fmean(before[auto.AUTO].values()):.1f} points behind there" in TEXT
    dear = auto.regrets(auto.accuracies(LINES, [*CHEAP, "rmadapter"]))
    extra = np.array([points - dear[auto.AUTO][data] for data, points in dear["rmadapter"].items()])
    interval = confidence_interval(extra)
    assert (
        f"it lies {extra.mean():.1f} ± {interval:.1f} points behind `auto` over twelve sets" in TEXT
    )
    assert len(extra) == 12
    assert extra.mean() > interval
