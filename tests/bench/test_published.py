"""Printed figures: typed, from a named place, and their contradictions found by arithmetic that is
done again here."""

from __future__ import annotations

import csv
from importlib.resources import files
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
from pydantic import ValidationError

from rmadapter.bench.published import Figure, contradictions, published, sources
from rmadapter.data.catalog.sets import CATALOG
from rmadapter.methods import METHODS

PAPER = list(CATALOG)[:15]


def figure(value: float, **fields: Any) -> Figure:
    cell = {
        "method": "mma", "protocol": "base-to-novel", "dataset": "dtd", "shots": 16,
        "backbone": "B",
    }  # fmt: skip
    read = {"value": value, "kind": "printed", "source": "vacsr", "place": "Table 9"}
    return Figure(**{**cell, **read, "metric": "hm", **fields})


def test_every_figure_has_a_source_that_is_described_and_a_place() -> None:
    found = published()
    assert {f.source for f in found} == sources().keys()
    assert all(f.place and all(sources()[f.source]) for f in found)
    assert {f.dataset for f in found} <= {"average", *PAPER}
    assert len({(*f.cell, f.source, f.place) for f in found}) == len(found)
    ours = {
        "zero-shot", "coop", "maple", "mmrl", "2sfs", "prolip", "clip-lora", "lp-plus-plus",
        "tip-adapter-f",
    }  # fmt: skip
    assert ours < {f.method for f in found} & METHODS.keys()


def test_a_line_of_the_file_is_what_is_read() -> None:
    text = (files("rmadapter") / "assets/published/figures.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    assert len([f for f in published() if f.source != "rmadapter"]) == len(rows)
    wanted = ("mmrl", "sun397", "hm", "vacsr")
    [row] = [r for r in rows if (r["method"], r["dataset"], r["metric"], r["source"]) == wanted]
    [read] = [f for f in published() if (f.method, f.dataset, f.metric, f.source) == wanted]
    expected = {**row, "value": "81.2"}
    assert {name: str(value) for name, value in read.model_dump().items()} == expected
    assert row["value"] == "81.20"


WRONG = (
    {"value": 100.1},
    {"metric": "f1"},
    {"kind": "guessed"},
    {"dataset": ""},
    {"shots": 32},
    {"licence": "MIT"},
)


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_figure_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        figure(**{"value": 50.0, **wrong})


def test_contradictions_of_what_is_printed() -> None:
    told = contradictions()
    again = [
        f for f in published() if f.kind == "rerun" and f.method == "mmrl" and f.metric == "novel"
    ]
    values = [f.value for f in again]
    # Student's t of 4 degrees of freedom
    assert fmean(values) + 2.776 * stdev(values) / 5**0.5 < 80.17
    [one] = [text for text in told if text.startswith("mmrl, base-to-novel, eurosat, novel")]
    assert "printed as 80.17, but 5 runs with the released code gave 69.87 to 74.90" in one
    [hm] = [
        text
        for text in told
        if text.startswith("mma, base-to-novel, ucf101, HM") and "ICML" in text
    ]
    assert f"that of its base and novel figures is {2 * 86.23 * 80.03 / (86.23 + 80.03):.2f}" in hm
    [two] = [
        text for text in told if text.startswith("promptsrc, base-to-novel, stanford_cars, base")
    ]
    assert "76.87 (Lin et al., RMAdapter" in two
    assert "78.27 (Zhang et al." in two
    # one run proves nothing
    assert not any(text.startswith("maple, base-to-novel, eurosat, base") for text in told)


def test_each_kind_of_contradiction_and_no_other() -> None:
    sets = PAPER[:5]
    fine = [
        figure(value, dataset=dataset, metric=metric)
        for dataset, (metric, value) in product(
            sets, [("base", 80.0), ("novel", 60.0), ("hm", 68.57)]
        )
    ]
    fine += [
        figure(80.0, dataset="average", metric="base"),
        figure(60.01, dataset="average", metric="novel"),
    ]
    assert contradictions(fine) == []
    assert (
        len(
            contradictions([*fine, figure(81.0, dataset="average", metric="base", source="onpokd")])
        )
        == 1
    )
    swapped = {(sets[0], "hm"): 68.6, ("average", "novel"): 60.1}
    told = contradictions(
        f.model_copy(update={"value": swapped.get((f.dataset, f.metric), f.value)}) for f in fine
    )
    expected = [f"{sets[0]}, HM", "average, novel"]
    assert [text.split(":")[0].split(", ", 2)[2] for text in told] == expected
    hms = [figure(80.0, metric="base"), figure(60.0, metric="novel")]
    halves = [f.model_copy(update={"dataset": "average"}) for f in hms]  # whose HM is 68.57
    each = [
        figure(value, dataset=dataset)
        for dataset, value in zip(sets, (60.0, 65.0, 68.0, 70.0, 72.0), strict=True)
    ]
    for value, parts, count in (
        (68.57, each, 0),
        (67.0, each, 0),
        (67.5, each, 1),
        (67.5, [], 0),
        (68.7, [], 1),
    ):
        told = contradictions([*halves, *parts, figure(value, dataset="average")])
        assert len(told) == count, (value, told)
    runs = [
        figure(70.0 + i, metric="base", kind="rerun", source="mmrl-issue-14", place=f"seed {i}")
        for i in range(3)
    ]
    assert contradictions([figure(73.0, metric="base"), *runs]) == []
    assert len(contradictions([figure(74.0, metric="base"), *runs])) == 1
    assert contradictions([figure(74.0, metric="base"), runs[0]]) == []
    unknown = [figure(50.0, backbone=""), figure(60.0, backbone="", source="rvp")]
    assert contradictions(unknown) == []


def test_the_page_counts_what_is_there() -> None:
    page = (Path(__file__).parents[2] / "docs/studies/leaderboard.md").read_text(encoding="utf-8")
    found, told = published(), contradictions()
    others = [f for f in found if f.source != "rmadapter"]
    averages = {
        protocol: {f.method for f in others if (f.protocol, f.dataset) == (protocol, "average")}
        for protocol in ("base-to-novel", "few-shot")
    }
    for count in (
        f"has {len(others):,} figures of other papers",
        f"they are {len(found):,}",
        f"finds {len(told)} contradictions",
        f"averages | {len(averages['base-to-novel'])} methods",
        f"1 to 16 shots | {len(averages['few-shot'])} methods",
    ):
        assert count in page
