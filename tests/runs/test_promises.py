"""What prediction sets kept of their promise, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from rmadapter.answers.sets import Calibration
from rmadapter.answers.taxonomy import Taxonomy
from rmadapter.data.duplicates import halves
from rmadapter.metrics import wilson
from rmadapter.runs.promises import Answered


def answered(
    table: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None,
    tree: Taxonomy | None = None,
) -> Answered:  # fmt: skip
    """Return answers on images that stand alone, or are of groups."""
    return Answered(table, labels, np.arange(len(labels)) if groups is None else groups, tree)


def table_of(own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities [N, 2] of images that are all of class 0, and their labels."""
    return np.stack([own, 1 - own], 1), np.zeros(len(own), int)


def test_a_promise_is_measured_on_other_images() -> None:
    calibration = Calibration.of(*table_of(np.linspace(0.31, 0.49, 45)), "folds")
    table, labels = table_of(np.array([0.2, 0.3, 0.4, 0.6, 0.65, 0.9]))  # at 5 %: 0.31
    five, ten = answered(table, labels).measured(calibration)  # 1 % needs 230 images
    assert (five.error, ten.error) == (5, 10)
    assert (five.calibrated, five.most) == (45, None)
    assert five.missed == pytest.approx(100 * 2 / 6)
    assert (five.low, five.high) == wilson(2, 6)
    # two are answered wrongly, one rightly, and three have both classes
    assert five.labels == pytest.approx(9 / 6)
    assert five.answered == pytest.approx(50)
    assert five.right == pytest.approx(100 / 3)
    assert five.misses == (five.missed, None)
    assert not five.by_class


def test_parents_answer_where_a_label_cannot() -> None:
    tree = Taxonomy.of({"a": "x", "b": "x", "c": "y"}, "abc")
    shares = np.array([0.31] * 45)
    calibration = Calibration(tuple(shares), (0,) * 45, 3, "folds")  # all limits are 0.31
    table = np.array([
        [0.9, 0.05, 0.05], [0.5, 0.4, 0.1], [0.5, 0.4, 0.1], [0.5, 0.1, 0.4], [0.1, 0.1, 0.8],
    ])  # fmt: skip
    labels = np.array([0, 1, 2, 0, 0])
    five, _ = answered(table, labels, tree=tree).measured(calibration)
    # a; x, rightly and wrongly; nothing holds a and c; c, wrongly
    assert five.levels == (40, 40)
    assert five.wrong == 40
    assert five.answered == 40
    assert five.missed == 40
    plain, _ = answered(table, labels).measured(calibration)
    assert (plain.levels, plain.wrong) == ((), None)
    assert plain.missed == five.missed


def test_nothing_is_measured_where_nothing_can_be_promised() -> None:
    table, labels = table_of(np.linspace(0.1, 0.9, 8))
    assert answered(table, labels).measured(Calibration.of(table, labels, "folds")) == ()
    assert answered(table, labels).cross_measured(np.arange(8) % 2, "folds") == ()
    assert answered(*table_of(np.ones(60))).cross_measured(np.zeros(60), "folds") == ()


def test_each_part_is_measured_by_the_others() -> None:
    """Images of a part that is worse than the other are missed, and those of the other are not."""
    table, labels = table_of(np.repeat([0.9, 0.2], 60))
    [five, _] = answered(table, labels).cross_measured(np.repeat([0, 1], 60), "held out")
    assert (five.missed, five.calibrated) == (50, 60)


def test_limits_of_each_class_are_measured() -> None:
    labels = np.repeat([0, 1], [240, 208])
    table = np.random.default_rng(0).dirichlet([1, 1], 448)
    calibration = Calibration.of(table, labels, "held out")
    measured = answered(table, labels).measured(calibration)
    assert [one.by_class for one in measured] == [False, True, True]  # at 1, 5 and 10 %


def test_halves_are_of_equal_size_and_random() -> None:
    parts = halves(np.arange(101), 0)
    assert np.bincount(parts).tolist() == [51, 50]
    assert parts.tolist() != halves(np.arange(101), 1).tolist()
    assert 10 < parts[:51].sum() < 40


def test_a_group_is_in_one_half() -> None:
    groups = np.random.default_rng(0).permutation(np.repeat(np.arange(40), 5))
    parts = halves(groups, 0)
    assert len({*zip(groups.tolist(), parts.tolist(), strict=True)}) == 40
    assert parts.sum() == 100  # 20 groups


def test_one_image_of_each_group_calibrates_and_all_are_measured() -> None:
    """Of 100 groups, each of five images that are alike, half calibrate the other half."""
    own = np.repeat(np.random.default_rng(0).uniform(0.05, 0.45, 100), 5)
    table, labels = table_of(own)
    groups = np.arange(500) // 5
    five, _ = answered(table, labels, groups).cross_measured(halves(groups, 0), "held out")
    assert five.calibrated == 50
    assert five.misses == (five.missed, None)
    alone = answered(table, labels).cross_measured(halves(groups, 0), "held out")[0]
    assert alone.calibrated == 250
    assert five.high - five.low > alone.high - alone.low
