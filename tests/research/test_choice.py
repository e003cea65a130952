"""choice.py: points behind the best, and shares of sure answers, by hand."""

from __future__ import annotations

from typing import Any

import choice
from choice import CANDIDATES


def task(data: str, shots: int, chosen: int, tests: list[float]) -> list[dict[str, Any]]:
    """Return the lines of a task: the candidates' accuracies, 10 for those that are not given, and
    the paper's method with 30."""
    rates = [*tests, *[10.0] * (len(CANDIDATES) - len(tests))]
    common = {"data": data, "shots": shots, "seed": 1, "images": 40}
    common |= {"said": [20, 15], "asked": [0, 0], "error": 5.0 + shots}
    common |= {"error_untouched": 20.0, "error_best": 4.0, "error_by_chance": 3.0}
    lines = [
        {**common, "method": name, "test": rate, "chosen": place == chosen}
        for place, (name, rate) in enumerate(zip(CANDIDATES, rates, strict=True))
    ]
    return [*lines, {**common, "method": "rmadapter", "test": 30.0, "chosen": False}]


LINES = [
    *task("rooms", 4, 0, [60, 50]),
    *task("rooms", 8, 1, [70, 50]),
    *task("clouds", 4, 1, [60, 70]),
    *task("food", 4, 0, [80, 70]),
]


def test_a_set_counts_once_with_the_mean_of_its_tasks() -> None:
    tasks = choice.by_task(LINES, choice.CHOOSE_ALL)
    assert {*tasks} == {("rooms", 4, 1), ("rooms", 8, 1), ("clouds", 4, 1)}
    assert choice.per_set(tasks, choice.AUTO) == {"rooms": 10, "clouds": 0}  # (0 + 20) / 2
    assert choice.per_set(tasks, CANDIDATES[0]) == {"rooms": 0, "clouds": 10}
    assert choice.per_set(tasks, "rmadapter", 4) == {"rooms": 30, "clouds": 40}
    rows = choice.accuracy_table(tasks).splitlines()[2:]
    assert len(rows) == len(CANDIDATES) + 2
    assert rows[0].split("|")[2:5] == [" 0.0 ", " 20.0 ", " 5.0 "]
    assert rows[1].split("|")[5].startswith(" +0.0 ±")  # behind by -10 and by 10 more
    assert choice.chosen_table(tasks).splitlines()[2:] == [
        f"| {CANDIDATES[0]} | 1 | 0 |",
        f"| {CANDIDATES[1]} | 1 | 1 |",
    ]


def test_sure_answers_are_counted_over_all_tasks() -> None:
    [row] = choice.trust_table(choice.by_task(LINES, ["food"])).splitlines()[2:]
    cells = ["4", "9.0", "20.0", "4.0", "3.0", "50 %", "75 %", "0 %", "–"]
    assert row == f"| {' | '.join(cells)} |"
    older = [
        {key: value for key, value in line.items() if key != "error_by_chance"} for line in LINES
    ]
    [row] = choice.trust_table(choice.by_task(older, ["food"])).splitlines()[2:]
    assert " | 4.0 | – | 50 % | " in row
