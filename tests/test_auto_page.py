"""docs/auto.md against the lines behind it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import fmean

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import auto

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "auto.md").read_text(encoding="utf-8")
TEXT = " ".join(PAGE.split())
LINES = [json.loads(line) for line in (DOCS / "results/auto.jsonl").read_text().splitlines()]
CHEAP = ["linear-probe", "linear-probe-zero-shot", "tip-adapter-f", "zero-shot", "zero-shot-ensemble"]
CHEAPEST_FIRST = ["zero-shot", "zero-shot-ensemble", "linear-probe-zero-shot", "linear-probe", "tip-adapter-f"]


def test_the_tables_are_those_of_the_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert f"--show docs/results/auto.jsonl --candidates {' '.join(CHEAP)}" in PAGE
    for candidates in (CHEAP, [*CHEAP, "rmadapter"]):
        auto.show(auto.accuracies(LINES, candidates))
        assert capsys.readouterr().out.strip() in PAGE
    keys = [(line["data"], line["shots"], line["seed"], line["candidate"]) for line in LINES]
    assert len(keys) == len(set(keys))


def test_what_the_page_says_of_the_choice() -> None:
    found = auto.accuracies(LINES, CHEAP)
    same = [values["auto"] == values["linear-probe"] for values in found.values()]
    [(took, probe)] = [(v["auto"], v["linear-probe"]) for v in found.values() if v["auto"] != v["linear-probe"]]
    assert f"it took that in {sum(same)} of {len(found)} tasks" in TEXT
    assert took < probe
    lost = {task: values[auto.BEST] - values["linear-probe"] for task, values in found.items() if task[1] == 2}
    assert f"up to {max(lost.values()):.1f} points" in TEXT
    large = [task[0] for task, points in lost.items() if points > 2]
    assert sorted(large) == ["office_caltech/product", "pacs/art_painting", "pacs/cartoon", "pacs/sketch"]
    assert {task[2] for task in found if task[0] != "trashnet"} == {1}
    dear = auto.accuracies(LINES, [*CHEAP, "rmadapter"])
    assert fmean(v["rmadapter"] for v in dear.values()) < fmean(v["linear-probe"] for v in dear.values())


def test_what_the_page_says_of_other_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    def points(order: list[str], errors: float) -> list[str]:
        monkeypatch.setattr("rmadapter.choose.ERRORS", errors)
        found = auto.accuracies(LINES, order)
        parts = [{t: v for t, v in found.items() if (t[0] in auto.CHOOSING) == chosen} for chosen in (True, False)]
        return [f"{fmean(auto.regrets(part)[auto.AUTO].values()):.1f}" for part in parts]

    choosing, other = zip(*(points(CHEAP, errors) for errors in (0.5, 1, 2)), strict=True)
    cheapest = points(CHEAPEST_FIRST, 1)
    assert len(set(choosing)) == 1
    assert f"give the same there, {choosing[0]}; cheapest first with one, {cheapest[0]}." in TEXT
    assert f"these give {other[0]}, {other[1]} and {other[2]}, and {cheapest[1]}." in TEXT
