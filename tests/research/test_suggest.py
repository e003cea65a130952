"""suggest.py: how far a rule is ahead of random, and the default that follows, by hand."""

from __future__ import annotations

from typing import Any

import suggest


def line(
    data: str, rule: str, test: list[float], seed: int = 1, kind: str = "next"
) -> dict[str, Any]:
    return {"data": data, "kind": kind, "rule": rule, "seed": seed, "test": test}


def test_a_rule_is_ahead_by_its_mean_after_the_start() -> None:
    lines = [line("x", "random", [10, 20, 30]), line("x", "margin", [10, 24, 36])]
    lines += [line("x", "random", [5, 20, 20], 2), line("x", "margin", [5, 20, 22], 2)]
    lines += [line("y", "random", [0, 50, 50]), line("y", "margin", [0, 49, 50])]
    points = suggest.ahead(lines, ["x", "y", "z"], "next", "margin")
    assert points == [3, -0.5]  # (5 + 1) / 2; the start does not count
    assert suggest.ahead(lines, ["x"], "next", "random") == [0]
    first = [
        line("x", "random", [10, 20], kind="first"),
        line("x", "coverage", [14, 20], kind="first"),
    ]
    assert suggest.ahead(first, ["x"], "first", "coverage") == [2]


def test_a_rule_is_proven_if_it_beats_random_by_more_than_its_interval() -> None:
    gains = {"margin": 5, "mix": 3}
    lines = [
        line(data, rule, [0, 50 + gains.get(rule, 0) + seed], seed)
        for data in (*suggest.CHOOSE, *suggest.REPORT)
        for rule in suggest.NEXT
        for seed in (1, 2)
    ]
    assert suggest.best(lines, "next") == suggest.default(lines, "next") == "margin"
    assert suggest.proven(lines, "next", "margin")
    for one in lines:
        if (one["data"], one["rule"]) == (suggest.REPORT[0], "margin"):
            one["test"] = [0, 0]
    assert suggest.best(lines, "next") == "margin"
    assert not suggest.proven(lines, "next", "margin")
    assert suggest.default(lines, "next") == "margin"  # no other was named before the study


def test_the_share_of_classes_among_the_first_images_is_a_mean_over_sets() -> None:
    lines = [
        {**line(data, "random", [0], kind="first"), "classes": classes, "classes_in_all": 4}
        for data, classes in (("x", [1, 2]), ("x", [3, 4]), ("y", [4, 4]))
    ]
    assert suggest.classes(lines, "random") == [75, 87.5]
