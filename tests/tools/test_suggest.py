"""tools/suggest.py: what it writes, that it goes on where it was, and what follows from its lines,
by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import suggest

from rmadapter.backbones import Backbone
from tests.helpers.studies import Study, study

__all__ = ["study"]  # a fixture


def line(
    data: str, rule: str, test: list[float], seed: int = 1, kind: str = "next"
) -> dict[str, Any]:
    return {"data": data, "kind": kind, "rule": rule, "seed": seed, "test": test}


def test_how_far_a_rule_is_ahead_of_random() -> None:
    lines = [line("x", "random", [10, 20, 30]), line("x", "margin", [10, 24, 36])]
    lines += [line("x", "random", [5, 20, 20], 2), line("x", "margin", [5, 20, 22], 2)]
    lines += [line("y", "random", [0, 50, 50]), line("y", "margin", [0, 49, 50])]
    assert suggest.ahead(lines, ["x", "y", "z"], "next", "margin") == [
        3,
        -0.5,
    ]  # (5 + 1) / 2; the start does not count
    assert suggest.ahead(lines, ["x"], "next", "random") == [0]
    first = [
        line("x", "random", [10, 20], kind="first"),
        line("x", "coverage", [14, 20], kind="first"),
    ]
    assert suggest.ahead(first, ["x"], "first", "coverage") == [2]
    assert suggest.told([1.0, 1.0]) == "+1.0 ± 0.0"


def test_a_rule_is_proven_where_it_beats_random_by_more_than_its_interval() -> None:
    gains = {"margin": 5, "mix": 3}
    lines = [
        line(data, rule, [0, 50 + gains.get(rule, 0) + seed], seed)
        for data in (*suggest.CHOOSE, *suggest.REPORT)
        for rule in suggest.NEXT
        for seed in (1, 2)
    ]
    assert suggest.best(lines, "next") == "margin"
    assert suggest.proven(lines, "next", "margin")
    assert suggest.default(lines, "next") == "margin"
    noisy = [
        x if x["data"] != suggest.REPORT[0] or x["rule"] != "margin" else {**x, "test": [0, 0]}
        for x in lines
    ]
    assert suggest.best(noisy, "next") == "margin"
    assert not suggest.proven(noisy, "next", "margin")
    assert suggest.default(noisy, "next") == suggest.FALLBACK["next"] == "random"


def test_how_many_classes_are_among_the_first() -> None:
    lines = [
        {**line(data, "random", [0], kind="first"), "classes": found, "classes_in_all": 4}
        for data, found in (("x", [1, 2]), ("x", [3, 4]), ("y", [4, 4]))
    ]
    assert suggest.classes(lines, "random") == [75, 87.5]


@pytest.mark.slow
def test_finished_lines_are_kept(
    study: Study, colors: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(suggest, "ROUNDS", (1, 2))
    monkeypatch.setattr(suggest, "CHOOSE", (colors.name,))
    monkeypatch.setattr(suggest, "REPORT", (colors.name,))
    monkeypatch.setattr(
        suggest, "KINDS", {"next": {n: suggest.NEXT[n] for n in ("margin", "random")}}
    )
    study(suggest, "--seeds", "1")
    lines = study(suggest, "--seeds", "1", "2")
    assert [(x["rule"], x["seed"]) for x in lines] == [
        ("margin", 1),
        ("random", 1),
        ("margin", 2),
        ("random", 2),
    ]
    assert all(len(x["test"]) == 3 and 0 <= min(x["test"]) <= max(x["test"]) <= 100 for x in lines)
    assert lines[0]["test"][0] == lines[1]["test"][0]  # they start from the same images
    assert (lines[0]["pool"], lines[0]["classes_in_all"], lines[0]["test_images"]) == (24, 4, 16)
    capsys.readouterr()
    study(suggest, "--tables")
    assert capsys.readouterr().out.startswith(
        "| next: accuracy in % | at first | +1 a class | +2 a class |"
    )


def test_the_first_images_have_no_label_before(
    colors: Path, tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rmadapter.runs.lab.load_backbone", lambda name: tiny_clip)
    study = suggest.Study(suggest.Lab(root=colors.parent, keep=True, progress=False), colors.name)
    found = study.first("coverage", 1)
    assert len(found["test"]) == len(suggest.FIRSTS)
    assert all(1 <= count <= 4 for count in found["classes"])
    rows = study.chosen("next", "margin", [0, 6, 12, 18], study.fitted([0, 6, 12, 18], 1), 50, 1)
    assert not {0, 6, 12, 18} & {*rows}
    assert len(set(rows)) == len(rows) <= 20
