"""The threshold of `--wrong`: its test beside SciPy's, its promise in simulated calibrations."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import TypeAlias

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy.stats import binomtest
from wrong import Rule, mean_rule

from rmadapter.answers import held_out
from rmadapter.answers.held_out import needed, rank, sure_from

DRAWS = 2000
LIMIT = 0.1 + 3 * math.sqrt(0.1 * 0.9 / DRAWS)  # of one in ten, three standard errors more
SIZES = [(40, 0.2), (100, 0.1), (400, 0.1), (400, 0.05)]  # images, share that may be wrong
# how confidences are drawn, and how often answers of a confidence are right
Kind: TypeAlias = tuple[
    Callable[[np.random.Generator, int], np.ndarray], Callable[[np.ndarray], np.ndarray]
]
KINDS: dict[str, Kind] = {
    "calibrated": (lambda rng, count: rng.beta(5, 1, count), lambda sure: sure),
    "mostly certain": (lambda rng, count: rng.beta(1.2, 0.3, count), lambda sure: sure),
    "of few values": (lambda rng, count: rng.beta(5, 1, count).round(1), lambda sure: sure),
    "too sure": (lambda rng, count: rng.beta(5, 1, count), lambda sure: 0.92 * sure),
    "all a little too often wrong": (
        lambda rng, count: rng.beta(5, 1, count),
        lambda sure: np.full_like(sure, 0.899),
    ),
    "the surest the worst": (
        lambda rng, count: rng.beta(5, 1, count),
        lambda sure: 1 - 0.2 * sure**8,
    ),
    "those in between the worst": (
        lambda rng, count: rng.beta(5, 1, count),
        lambda sure: np.where((sure > 0.86) & (sure < 0.9), 0.4, 0.97),
    ),
}


@pytest.fixture(autouse=True)
def remembered_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute each rank once, of those that thousands of calibrations share."""
    monkeypatch.setattr(held_out, "rank", cache(rank))


def simulated(kind: str, images: int, wrong: float, rule: Rule) -> tuple[float, float]:
    """Return the share of calibrations after which a larger share of answers is wrong than
    promised, by their true probabilities, and the mean share of answers that are kept."""
    draw, accuracy = KINDS[kind]
    rng = np.random.default_rng(0)
    new = -np.sort(-draw(rng, 400_000))
    errors = 1 - np.cumsum(accuracy(new)) / np.arange(1, len(new) + 1)
    confidence = -np.sort(-draw(rng, DRAWS * images).reshape(DRAWS, images), axis=1)
    right = rng.random(confidence.shape) < accuracy(confidence)
    found = [rule(*both, wrong) for both in zip(confidence, right, strict=True)]
    kept = np.searchsorted(-new, -np.array(found), "right")
    broken = (kept > 0) & (errors[kept - 1] > wrong)
    return float(broken.mean()), float(kept.mean()) / len(new)


@pytest.mark.parametrize("kind", KINDS)
def test_too_many_are_wrong_after_at_most_one_of_ten_calibrations(kind: str) -> None:
    for images, wrong in SIZES:
        assert simulated(kind, images, wrong, sure_from)[0] <= LIMIT


def test_a_rule_that_holds_on_average_breaks_the_promise() -> None:
    for images, wrong in SIZES[1:]:
        assert simulated("calibrated", images, wrong, mean_rule)[0] > LIMIT


def test_calibrations_with_more_images_keep_more_answers() -> None:
    """Of calibrated answers as here, 75 % may be kept where 10 % may be wrong."""
    kept = [simulated("calibrated", images, 0.1, sure_from)[1] for images in (50, 100, 400)]
    assert 0.1 < kept[0] < kept[1] < kept[2] < 0.75
    assert kept[2] > 0.45


def test_a_threshold_passes_by_the_exact_binomial_test() -> None:
    for count in (22, 37, 38, 100):
        for misses in range(12):
            p = binomtest(misses, count, 0.1, alternative="less").pvalue
            assert (misses < rank(count, 0.1)) == (p <= 0.1)


def test_answers_are_sure_from_the_last_threshold_that_passes() -> None:
    confidence = np.linspace(0.99, 0.6, 40)
    right = np.ones(40, bool)
    assert sure_from(confidence[:21], right[:21], 0.1) == math.inf  # too few
    assert sure_from(confidence[:22], right[:22], 0.1) == confidence[21]
    assert sure_from(confidence, right, 0.1) == confidence[39]
    right[22] = False
    assert sure_from(confidence, right, 0.1) == confidence[39]  # 38 and 40 with one wrong
    right[39] = False
    assert sure_from(confidence, right, 0.1) == confidence[37]
    right[37] = False
    assert sure_from(confidence, right, 0.1) == confidence[21]
    right[21] = False
    assert sure_from(confidence, right, 0.1) == math.inf
    assert sure_from([], [], 0.1) == math.inf
    order = np.random.default_rng(0).permutation(40)
    assert sure_from(confidence[order], (np.arange(40) < 39)[order], 0.1) == confidence[39]


def test_one_wrong_answer_among_many_sure_ones_does_not_make_all_unsure() -> None:
    """Of 1,000 answers, 125 are kept by the first threshold, and 7 of these may be wrong."""
    confidence, right = np.linspace(0.99, 0.5, 1000), np.ones(1000, bool)
    right[:7] = False
    assert sure_from(confidence, right, 0.1) == confidence[-1]
    right[7] = False
    assert sure_from(confidence, right, 0.1) == math.inf


def test_equal_confidences_are_sure_together() -> None:
    """Also where the right ones among them come first."""
    right = [True] * 60 + [False] * 40
    assert sure_from([0.97] * 100, right, 0.1) == math.inf
    assert sure_from([0.98] * 22 + [0.97] * 100, [True] * 22 + right, 0.1) == 0.98
    assert sure_from([0.9] * 22, [True] * 22, 0.1) == 0.9


@given(st.lists(st.tuples(st.integers(0, 100), st.booleans()), max_size=60), st.integers(1, 99))
def test_the_wanted_share_of_sure_held_out_answers_is_right(
    answers: list[tuple[int, bool]], percent: int
) -> None:
    confidence = np.array([each[0] / 100 for each in answers])
    right = np.array([each[1] for each in answers], bool)
    sure = confidence >= sure_from(confidence, right, percent / 100)
    assert (~right[sure]).sum() * 100 <= percent * sure.sum()
    assert not sure.any() or sure.sum() >= needed(percent / 100)
