"""choice.py: points behind the best, and how far probabilities can be trusted, by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import choice
import numpy as np
import pytest
from choice_rule import CANDIDATES, FEW_IMAGES, PROBE_FOR_FEW, choose, pick, preferred

from rmadapter import metrics
from rmadapter.artifacts.record import HeldOut
from rmadapter.methods import METHODS, load_method


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


def test_few_images_show_an_error_of_a_model_that_makes_none() -> None:
    few, many = (choice.by_chance(np.linspace(0.3, 0.9, count)) for count in (50, 5000))
    assert many < 2 < 10 < few
    # one bin: the mean distance of a share of n from its expectation
    assert choice.by_chance(np.full(100, 0.5), 2000) == pytest.approx(100 * 0.0796 / 2, rel=0.05)


def test_trust_is_measured_at_the_models_own_temperature() -> None:
    labels = np.array([0, 1, 0, 1])
    table = np.array([[0.92, 0.08], [0.2, 0.8], [0.3, 0.7], [0.45, 0.55]])
    held_out = HeldOut(probabilities=(0.85, 0.7), right="11")
    found = choice.trust(table, labels, 2.0, held_out)
    sure = metrics.tempered(table, 2.0).max(1)  # 0.77, 0.67, 0.60, 0.53
    right = [True, True, False, True]
    assert found["error"] == metrics.calibration_error(sure, right)
    assert found["error_untouched"] == metrics.calibration_error(table.max(1), right)
    assert found["said"] == [3, 2]
    assert found["asked"] == [0, 0]  # too few held-out answers
    assert choice.trust(table, labels, None, None)["asked"] == [1, 1]
    assert choice.trust(table, labels, None, None)["error"] == pytest.approx(
        found["error_untouched"]
    )


def test_the_first_within_two_standard_errors_of_the_best_is_taken() -> None:
    right = np.ones(100, bool)
    four, five = right.copy(), right.copy()
    four[:4] = False  # behind by 4 with an error of 1.96, twice which is 3.92
    five[:5] = False  # behind by 5 with an error of 2.18
    three = right.copy()
    three[:3] = False  # behind by 3 with an error of 1.71
    assert pick([five, four, three, right]) == 2
    assert pick([right, three, four]) == 0
    # as many right as the best, on other images: behind by nothing
    assert pick([np.roll(four, 50), four]) == 0
    # 9 behind, but on so many images that differ: the error is 4.9
    noisy, best = right.copy(), right.copy()
    noisy[:17], best[17:25] = False, False
    assert pick([noisy, best]) == 0
    assert pick([~right, ~right]) == 0


@pytest.mark.parametrize(
    ("right", "folds", "chosen"),
    [
        # which of 9 images in 3 folds RMAdapter+ is right about; the probe: all but every third
        ("110110110", 1, "rmadapter-plus"),  # not behind
        ("100111111", 2, "rmadapter-plus"),  # behind by one image, and then ahead
        ("100110110", 3, "rmadapter-plus"),  # behind, but not shown to be
        ("000000000", 1, "linear-probe"),  # hopeless
    ],
)
def test_a_slow_candidate_is_judged_on_as_few_folds_as_settle_it(
    right: str, folds: int, chosen: str
) -> None:
    hits = {"linear-probe": "110110110", "rmadapter-plus": right}
    asked: list[tuple[str, int]] = []

    class ThreeFolds:
        judged = SimpleNamespace(labels=[*range(9)])

        def __len__(self) -> int:
            return 3

        def answers(self, method: Any, name: str, *, count: int, **_: Any) -> Any:
            asked.append((name, count))
            places = [i if hits[name][i] == "1" else (i + 1) % 9 for i in range(3 * count)]
            return SimpleNamespace(table=np.eye(9)[places])

    methods = {name: load_method(name) for name in ("rmadapter-plus", "linear-probe")}
    some: Any = ThreeFolds()
    assert choose(some, methods, minutes=1) == chosen
    assert asked[0] == ("linear-probe", 3)  # the cheap one first, on all folds
    assert asked[-1] == ("rmadapter-plus", folds)


def test_both_probes_are_preferred_for_few_images_alone() -> None:
    assert {*CANDIDATES} <= {*METHODS}
    assert preferred(CANDIDATES, 16) == preferred(CANDIDATES, FEW_IMAGES) == [*CANDIDATES]
    probes = ("linear-probe", PROBE_FOR_FEW)
    for few in (preferred(CANDIDATES, FEW_IMAGES - 1), preferred(probes, 2)):
        assert few.index(PROBE_FOR_FEW) + 1 == few.index("linear-probe")
    assert preferred(CANDIDATES, FEW_IMAGES - 1)[0] == CANDIDATES[0]
    assert preferred(("zero-shot", "linear-probe"), 2) == ["zero-shot", "linear-probe"]
