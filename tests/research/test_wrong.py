"""wrong.py: what thresholds let through, by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import wrong


def test_the_earlier_rule_wants_a_mean_and_right_answers() -> None:
    confidence = np.array([0.5, 0.9, 0.7, 0.8, 0.6])
    right = np.array([False, True, True, True, True])
    # 0.9, 0.8, 0.7 and 0.6 have a mean of 0.75, and 4 of 4 + 1 are right
    assert wrong.mean_rule(confidence, right, 0.25) == 0.6
    # the mean is 0.8 down to 0.7, where 3 of 3 + 1 are too few to say
    assert wrong.mean_rule(confidence, right, 0.2) == pytest.approx(0.8)
    assert wrong.mean_rule(np.full(20, 0.9), np.arange(20) < 10, 0.2) == math.inf


@pytest.mark.parametrize("name", wrong.RULES)
def test_halves_of_a_model_that_is_always_right_keep_every_promise(name: str) -> None:
    labels = np.arange(200) % 2
    table = np.where(np.eye(2)[labels] > 0, 0.95, 0.05)
    assert wrong.by_halves(table, labels, 0.1, wrong.RULES[name]) == [100, 100, 100]
    shuffled = np.random.default_rng(0).permutation(labels)
    guesses = wrong.by_halves(table, shuffled, 0.1, wrong.RULES[name])
    assert guesses[1:] == [0, 0]


def line(data: str, halves: list[float], sure: list[int]) -> dict[str, Any]:
    keys = [f"{name} {100 * share:g}" for share in wrong.SHARES for name in wrong.RULES]
    common = {"data": data, "images": 100, "method": "linear-probe"}
    return {**common, "halves": dict.fromkeys(keys, halves), "folds": dict.fromkeys(keys, sure)}


def test_a_promise_is_kept_by_runs_that_answer() -> None:
    lines = [line("food", [80, 100, 40], [20, 19]), line("rooms", [100, 50, 20], [0, 0])]
    rows = wrong.rows_of(lines)
    assert rows[0] == ["5 %", "earlier", "90", "75", "30", "1 of 1", "10"]
    assert rows[2] == ["10 %", "earlier", "90", "75", "30", "1 of 1", "10"]
    lines = [line("food", [80, 100, 40], [20, 18]), line("sports", [100, 50, 20], [10, 10])]
    assert [row[5] for row in wrong.rows_of(lines)] == ["1 of 2"] * 2 + ["2 of 2"] * 4
    assert [*wrong.tables(lines)] == ["reporting: wrong answers"]


def test_methods_have_tables_of_their_own() -> None:
    probe = line("food", [80, 100, 40], [20, 19])
    plus = {**line("food", [100, 50, 20], [10, 10]), "method": "rmadapter-plus"}
    names = ["reporting: wrong answers", "reporting: wrong answers of rmadapter-plus"]
    found = wrong.tables([probe, plus])
    assert [*found] == names
    rows = [line.split(" | ")[2] for name in names for line in found[name].splitlines()[2:]]
    assert rows == ["80"] * 6 + ["100"] * 6
