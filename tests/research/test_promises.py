"""The study of prediction sets: figures counted by hand, and sets made by loops."""

from __future__ import annotations

import numpy as np
import pytest
from promises import FREE, SETS, by_halves, figures, kept, mean_known, rejected, tables

from rmadapter.answers.held_out import rank

RNG = np.random.default_rng(5)
TABLE = RNG.dirichlet(np.full(4, 0.5), 60)
LABELS = np.array([RNG.choice(4, p=row) for row in TABLE])


def test_figures_of_sets() -> None:
    inside = np.array([[1, 0], [0, 1], [1, 1], [1, 0]], bool)
    assert figures(inside, np.array([0, 0, 1, 0])) == [25, 75, pytest.approx(66.6667), 1.25]
    assert figures(np.ones((2, 2), bool), np.array([0, 1])) == [0, 0, None, 2]


@pytest.mark.parametrize(("name", "penalty"), [("aps", 0.0), ("raps", 0.1)])
def test_adaptive_sets_are_those_of_a_loop(name: str, penalty: float) -> None:
    """A class's score is the probability of all classes down to it, and the penalties."""

    def score(row: np.ndarray, label: int) -> float:
        above = [value for value in row if value >= row[label]]
        return float(sum(above) + penalty * max(len(above) - FREE, 0))

    own = sorted(score(row, label) for row, label in zip(TABLE, LABELS, strict=True))
    limit = own[-rank(60, 0.1)]
    new = RNG.dirichlet(np.full(4, 0.5), 30)
    expected = [[score(row, c) <= limit or row[c] == row.max() for c in range(4)] for row in new]
    np.testing.assert_array_equal(SETS[name](TABLE, LABELS, new, 0.1), expected)


def test_halves_of_the_images_calibrate_the_others() -> None:
    found = by_halves(TABLE, LABELS, 0.1)
    assert {*found} == {*SETS}
    for missed, answered, right, classes, good in found.values():
        assert missed is not None
        assert answered is not None
        assert right is not None
        assert classes is not None
        assert good is not None
        # of 30 images, k = 1: 1 / 31, and the most probable class makes it no larger
        assert missed <= 100 * 1 / 31 + 1
        assert 80 <= good <= 100
        assert 0 <= answered <= 100
        assert 0 <= right <= 100
        assert 1 <= classes <= 4


def test_tables_of_lines() -> None:
    line = {
        "data": "rsscn7", "shots": 4, "seed": 1, "method": "linear-probe-pair", "images": 100,
        "calibrated": 45, "folds": {"5": [4.0, 30.0, 90.0, 1.5]}, "rejected": {"5": 6.0},
        "halves": {"5": {name: [5.1, 31.0, 91.0, 1.4, 92.0] for name in SETS}},
        "domains": {"other": {"5": [17.0, 0, 0, 0]}},
    }  # fmt: skip
    broken = line | {"seed": 2, "folds": {"5": [6.0, 30.0, 90.0, 1.5]}, "rejected": {"5": 5.0}}
    found = tables([line, broken])
    kept = found["choosing: linear-probe-pair"].splitlines()[-1]
    assert kept == "| 4 | 5 % | 0 of 1 | 1 of 2 | 50 | 90 | 5.0 | 1.50 | 30.0 | 2 | 90.0 | 90.0 |"
    away = found["choosing: rejected"].splitlines()[-1]
    assert away == "| both probes | 4 | 5 % | 1 of 2 | 50 | 5.5 |"
    assert rejected([line])[0][3:] == ["0 of 1", "0", "6.0"]
    ways = found["choosing: held out"].splitlines()
    assert ways[2] == "| 4 | 5 % | lac | 92 | 5.10 | 1.400 | 31.0 |"
    assert len(ways) == 2 + len(SETS)
    assert found["shift"].splitlines()[-1] == "| rsscn7 | other | both probes | 2 | 17.0 | 17.0 |"
    assert len(tables([line | {"data": "food"}])["reporting: held out"].splitlines()) == 3


def test_a_run_without_an_answer_is_no_figure_of_the_answers() -> None:
    """Earlier lines have 0 % right there, later ones None."""
    line = {"shots": 4, "seed": 1, "images": 100, "calibrated": 45}
    some = [(50.0, 90.0), (10.0, 60.0), (0.0, 0.0), (0.0, None)]
    lines = [
        line | {"data": f"set {i}", "folds": {"5": [4.0, answered, right, 2.0]}}
        for i, (answered, right) in enumerate(some)
    ]
    [row] = kept(lines)
    assert row[-4:] == ["15.0", "2", "75.0", "85.0"]  # 45 and 6 of 50 and 10 answers


def test_a_mean_of_nothing_is_none() -> None:
    assert mean_known([1.0, None, 3.0]) == 2
    assert mean_known([None]) is None
