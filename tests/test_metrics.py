"""Oracles: closed form, scikit-learn and scipy."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
from scipy import stats
from scipy.special import softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    recall_score,
    roc_auc_score,
)

from rmadapter import metrics

RNG = np.random.default_rng(7)
LABELS = RNG.integers(0, 6, 500)
PROBABILITIES = RNG.dirichlet(np.full(6, 0.3), 500).astype(np.float32)
PREDICTIONS = PROBABILITIES.argmax(1)


def test_accuracy_takes_probabilities_or_predictions() -> None:
    expected = 100 * accuracy_score(LABELS, PREDICTIONS)
    assert metrics.accuracy(PROBABILITIES, LABELS) == pytest.approx(expected)
    assert metrics.accuracy(PREDICTIONS, LABELS) == pytest.approx(expected)
    assert metrics.accuracy([1, 0, 2, 2], [1, 0, 2, 0]) == 75.0


@pytest.mark.parametrize(
    ("answers", "labels"), [([], []), ([1, 2], [1]), (np.zeros((3, 2)), [0, 1])]
)
def test_accuracy_refuses_empty_and_unequal_lists(answers: list[int], labels: list[int]) -> None:
    with pytest.raises(ValueError, match=r"answers for \d labels"):
        metrics.accuracy(answers, labels)


def test_harmonic_mean() -> None:
    assert metrics.harmonic_mean(84.52, 77.36) == pytest.approx(stats.hmean([84.52, 77.36]))
    assert (
        metrics.harmonic_mean(0, 50)
        == metrics.harmonic_mean(50, 0)
        == metrics.harmonic_mean(0, 0)
        == 0
    )


@pytest.mark.filterwarnings("error")
def test_harmonic_mean_of_zeros_is_0_without_a_warning() -> None:
    assert metrics.harmonic_mean(np.float64(0), np.float64(3)) == 0


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_confidence_interval_equals_scipy(level: float) -> None:
    values = [71.2, 73.4, 72.1]
    low, high = stats.t.interval(level, 2, loc=np.mean(values), scale=stats.sem(values))
    assert metrics.confidence_interval(values, level) == pytest.approx((high - low) / 2)
    assert np.isnan(metrics.confidence_interval([71.2]))
    assert metrics.confidence_interval([5.0, 5.0, 5.0]) == 0


def test_wilson_in_closed_form() -> None:
    right, n, z = 37, 50, 1.959963984540054
    centre, spread = right + z * z / 2, z * math.sqrt(right * (n - right) / n + z * z / 4)
    assert metrics.wilson(right, n) == pytest.approx(
        [100 * (centre + sign * spread) / (n + z * z) for sign in (-1, 1)]
    )


def test_the_interval_of_grouped_images_is_wilsons_for_the_effective_number() -> None:
    right = np.array([1, 1, 1, 0, 0, 0, 1, 1], bool)
    assert metrics.interval(right) == metrics.wilson(5, 8)
    assert metrics.interval(right, np.arange(8)) == metrics.wilson(5, 8)
    # errors of the groups: 9 / 8, -15 / 8 and 6 / 8; cluster-robust variance of their mean
    groups, rate = [0, 0, 0, 1, 1, 1, 2, 2], 5 / 8
    variance = (9**2 + 15**2 + 6**2) / 64 / 8**2 * 3 / 2
    number = rate * (1 - rate) / variance
    z = 1.959963984540054**2
    spread = math.sqrt(z * number * rate * (1 - rate) + z * z / 4)
    ends = [100 * (number * rate + z / 2 + way * spread) / (number + z) for way in (-1, 1)]
    assert metrics.interval(right, groups) == pytest.approx(ends)
    # all images agree: the number of groups; groups that tell nothing: all images
    assert metrics.interval(np.ones(8, bool), groups) == pytest.approx(metrics.wilson(3, 3))
    assert metrics.interval(np.arange(8) % 2 == 0, np.arange(8) // 2) == metrics.wilson(4, 8)
    assert metrics.interval(np.arange(8) < 4, np.zeros(8)) == pytest.approx(
        [100 * end for end in metrics._wilson(0.5, 1)]
    )


def test_the_interval_of_grouped_images_covers() -> None:
    """18 groups of 12 images that resemble each other; without groups it covers 51 %."""
    rng, rate, covered = np.random.default_rng(0), 0.8, 0
    groups = np.repeat(np.arange(18), 12)
    for _ in range(500):
        noise = rng.normal(size=18)[groups] * 0.8**0.5 + rng.normal(size=216) * 0.2**0.5
        low, high = metrics.interval(noise < stats.norm.ppf(rate), groups)
        covered += low <= 100 * rate <= high
    assert 0.9 < covered / 500 < 0.98


def test_the_balanced_accuracy_of_groups_has_the_wider_interval() -> None:
    labels = np.repeat([0, 1], [40, 8])
    answers = np.where(np.arange(48) % 12 < 9, labels, 1 - labels)
    rate, low, high = metrics.balanced_accuracy(answers, labels)
    same = metrics.balanced_accuracy(answers, labels, np.arange(48))
    wider = metrics.balanced_accuracy(answers, labels, np.arange(48) // 3)
    assert same == (rate, low, high)
    assert wider[0] == rate
    assert wider[1] < low < high < wider[2]


def test_balanced_accuracy_equals_scikit_learns() -> None:
    few = LABELS != 3  # a class without images
    for labels, answers in ((LABELS, PREDICTIONS), (LABELS[few], PREDICTIONS[few])):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of answers that are no class of the labels
            expected = 100 * balanced_accuracy_score(labels, answers)
        assert metrics.balanced_accuracy(answers, labels)[0] == pytest.approx(expected)
    table = PROBABILITIES[few]
    assert metrics.balanced_accuracy(table, LABELS[few])[0] == pytest.approx(expected)
    with pytest.raises(ValueError, match="0 answers"):
        metrics.balanced_accuracy([], [])


def test_the_interval_of_balanced_accuracy_is_wilsons_for_the_effective_number() -> None:
    even = np.arange(40) % 4
    right = np.where(np.arange(40) < 26, even, (even + 1) % 4)
    assert metrics.balanced_accuracy(right, even)[1:] == pytest.approx(metrics.wilson(26, 40))
    # 2 and 6 images: 2**2 / (1/2 + 1/6) = 6 of which half are right
    labels, answers = [0] * 2 + [1] * 6, [0, 1, 1, 1, 1, 0, 0, 0]
    interval = stats.binomtest(3, 6).proportion_ci(0.95, method="wilson")
    expected = [50, 100 * interval.low, 100 * interval.high]
    assert metrics.balanced_accuracy(answers, labels) == pytest.approx(expected)
    assert metrics.balanced_accuracy(labels, labels)[2] == 100


@pytest.mark.ci
@pytest.mark.parametrize(("counts", "rate"), [((5, 60), 0.7), ((8, 8, 90), 0.8), ((20, 200), 0.9)])
def test_the_interval_of_balanced_accuracy_covers(counts: tuple[int, ...], rate: float) -> None:
    """Summed over every outcome where all classes have one recall, with its binomial chance."""
    covered = 0.0
    cells = [range(count + 1) for count in counts]
    for right in itertools.product(*cells):
        chance = math.prod(stats.binom.pmf(k, n, rate) for k, n in zip(right, counts, strict=True))
        if chance > 1e-6:
            labels = np.repeat(np.arange(len(counts)), counts)
            wrong = [[1] * k + [0] * (n - k) for k, n in zip(right, counts, strict=True)]
            answers = np.where(np.concatenate(wrong) == 1, labels, -1)
            _, low, high = metrics.balanced_accuracy(answers, labels)
            covered += chance * (low <= 100 * rate <= high)
    assert 0.93 < covered < 0.98


def test_calibration_error_equals_scikit_learns_curve() -> None:
    sure, correct = PROBABILITIES.max(1).astype(float), PREDICTIONS == LABELS
    right, mean = calibration_curve(correct, sure, n_bins=15)
    count, _ = np.histogram(sure, np.linspace(0, 1, 16))
    expected = 100 * np.average(abs(right - mean), weights=count[count > 0])
    assert metrics.calibration_error(sure, correct) == pytest.approx(expected)


def test_expected_calibration_error_in_closed_form() -> None:
    # Three answers at 0.9 of which two are right, one at 0.6 that is right: (3 * |90 - 66.7| + 1 *
    # |60 - 100|) / 4.
    expected = (3 * abs(90 - 200 / 3) + 40) / 4
    assert metrics.calibration_error(
        [0.9, 0.9, 0.9, 0.6], [True, True, False, True]
    ) == pytest.approx(expected)
    assert metrics.calibration_error(np.ones(4), np.ones(4, dtype=bool)) == 0


def test_bins_of_equal_count_equal_scikit_learns_quantiles() -> None:
    sure, correct = PROBABILITIES.max(1).astype(float), PREDICTIONS == LABELS
    confidence, accuracy, ends = metrics.equal_count(sure, correct, 10)
    right, mean = calibration_curve(correct, sure, n_bins=10, strategy="quantile")
    np.testing.assert_allclose(confidence, 100 * mean)
    np.testing.assert_allclose(accuracy, 100 * right)
    for rate, pair in zip(accuracy, ends, strict=True):
        assert metrics.wilson(round(rate / 2), 50) == pytest.approx(tuple(pair))  # of 500 images
    few = metrics.equal_count([0.3, 0.9, 0.6], [False, True, True], 10)
    np.testing.assert_allclose(few[0], [30, 60, 90])
    np.testing.assert_array_equal(few[1], [0, 100, 100])
    assert [len(part) for part in metrics.equal_count([0.5], [True], 0)] == [1, 1, 1]


def test_confusion_and_per_class_accuracy_equal_scikit_learn() -> None:
    matrix = metrics.confusion(LABELS, PREDICTIONS, 7)  # the seventh class has no images
    np.testing.assert_array_equal(matrix, confusion_matrix(LABELS, PREDICTIONS, labels=range(7)))
    per_class = metrics.per_class_accuracy(LABELS, PREDICTIONS, 7)
    np.testing.assert_allclose(per_class[:6], 100 * recall_score(LABELS, PREDICTIONS, average=None))
    assert np.isnan(per_class[6])
    wrong = np.zeros_like(matrix)
    true, said, counts = metrics.confusions(LABELS, PREDICTIONS, 7)
    wrong[true, said] = counts
    np.testing.assert_array_equal(wrong, matrix - np.diag(matrix.diagonal()))


@pytest.mark.filterwarnings("error")
def test_a_single_class_has_a_confusion_matrix() -> None:
    assert metrics.confusion([0, 0], [0, 0], 1).tolist() == [[2]]
    assert metrics.per_class_accuracy([0, 0], [0, 0], 1).tolist() == [100]


def test_the_module_itself_needs_none_of_the_large_libraries() -> None:
    code = (
        "import runpy, sys; runpy.run_path(sys.argv[1]); "
        "sys.exit(bool({'torch', 'scipy', 'sklearn'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code, metrics.__file__]).returncode == 0


def test_paired_answers_against_closed_forms() -> None:
    first, second = np.zeros(100, bool), np.zeros(100, bool)
    first[:60] = second[:51] = True  # 9 lost
    second[60] = True  # 1 gained
    difference, low, high, p = metrics.paired(first, second)
    assert difference == pytest.approx(-8)
    assert p == pytest.approx(2 * (1 + 10) / 2**10)  # at most one of ten coins
    middle, spread = -8 / 102, np.sqrt((11 / 102 - (8 / 102) ** 2) / 102)
    assert (low, high) == (
        pytest.approx(100 * (middle - 1.959964 * spread)),
        pytest.approx(100 * (middle + 1.959964 * spread)),
    )
    assert metrics.paired(second, first)[0] == pytest.approx(8)
    same = metrics.paired(first, first)
    assert (same[0], same[3]) == (0, 1)
    # a hundred images without a difference do not prove that there is none
    assert same[1] == -same[2] < 0
    assert metrics.paired([False], [True])[2] <= 100
    for wrong in ([], [True]):
        with pytest.raises(ValueError, match="beside"):
            metrics.paired(wrong, first)


def test_the_paired_interval_has_its_nominal_coverage() -> None:
    rng = np.random.default_rng(0)
    # both right, first alone, second alone, none
    shares = np.array([0.5, 0.1, 0.2, 0.2])
    covered = 0
    for _ in range(1000):
        cell = rng.choice(4, size=60, p=shares)
        _, low, high, _ = metrics.paired(cell <= 1, (cell == 0) | (cell == 2))
        covered += low <= 10 <= high
    assert 930 <= covered <= 975


def test_groups_of_images_are_compared_as_wholes() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.random(11) < 0.4, rng.random(11) < 0.7
    groups = np.array([0, 0, 0, 1, 1, 2, 3, 3, 4, 5, 5])
    change = second.astype(int) - first
    sums = [int(change[groups == group].sum()) for group in range(6)]
    signs = itertools.product((-1, 1), repeat=6)
    far = [abs(np.dot(sign, sums)) >= abs(sum(sums)) for sign in signs]
    assert metrics.paired(first, second, groups)[3] == pytest.approx(np.mean(far))
    # each image three times tells as much as once
    alone, thrice = metrics.paired(first, second), np.repeat(np.arange(11), 3)
    again = metrics.paired(first[thrice], second[thrice], thrice)
    assert (again[0], again[3]) == pytest.approx((alone[0], alone[3]))
    assert again[1:3] == pytest.approx(alone[1:3], abs=3)  # by ten degrees of freedom, not eleven
    counted = metrics.paired(first[thrice], second[thrice])
    assert counted[2] - counted[1] < 0.8 * (again[2] - again[1])
    assert metrics.paired(first, second, np.arange(11)[::-1]) == pytest.approx(alone)
    assert metrics.paired(first, second, np.zeros(11))[3] == 1  # one group proves nothing


def test_the_paired_interval_of_groups_has_its_nominal_coverage() -> None:
    """18 groups of 12 images, as alike as those of a burst are."""
    rng = np.random.default_rng(0)
    groups, covered, counted = np.repeat(np.arange(18), 12), 0, 0
    for _ in range(500):
        gain = rng.choice(3, size=18, p=(0.6, 0.25, 0.15))[groups]  # 1: gained, 2: lost
        gain = np.where(rng.random(len(groups)) < 0.9, gain, 0)
        one, two = gain == 2, gain == 1
        for by in (groups, None):
            _, low, high, _ = metrics.paired(one, two, by)
            covered += by is not None and low <= 9 <= high
            counted += by is None and low <= 9 <= high
    assert covered >= 450
    assert counted <= 350


def test_a_known_temperature_is_recovered() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 4))
    labels = [rng.choice(4, p=row / row.sum()) for row in softmax(logits, 1)]  # calibrated
    for wrong in (0.5, 1.0, 3.0):
        too_sure = softmax(logits / wrong, 1)
        assert metrics.temperature(too_sure, labels) == pytest.approx(1 / wrong, rel=0.05)
        np.testing.assert_allclose(
            metrics.tempered(too_sure, 1 / wrong), softmax(logits, 1), atol=1e-9
        )


def test_a_few_right_answers_do_not_demand_certainty() -> None:
    labels = [0, 1, 2, 0, 1]
    table = softmax(np.eye(3)[labels], 1)
    found = metrics.tempered(table, metrics.temperature(table, labels))
    # one image more, of which nothing is known, leaves two thirds of a sixth to the wrong classes
    np.testing.assert_allclose(found.max(1), 1 - 2 / 3 / 6, atol=1e-3)


def test_probabilities_rounded_to_zero_have_a_temperature() -> None:
    table = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], np.float32)
    assert metrics.temperature(table, [0, 1, 1]) > 1
    assert np.isfinite(metrics.tempered(table, 2.0)).all()
    with pytest.raises(ValueError, match="labels"):
        metrics.temperature(table, [0])


def test_open_world_by_every_pair() -> None:
    rng = np.random.default_rng(7)
    table, labels = rng.dirichlet(np.ones(5), 60).round(1), rng.integers(0, 5, 60)
    found = metrics.open_world(table, labels, 2)
    base, novel = np.flatnonzero(labels < 2), np.flatnonzero(labels >= 2)
    assert found["base_half"] == pytest.approx(100 * np.mean(table[base].argmax(1) < 2))
    assert found["novel_half"] == pytest.approx(100 * np.mean(table[novel].argmax(1) >= 2))
    sure = table[:, :2].max(1)
    assert found["auroc"] == pytest.approx(100 * roc_auc_score(labels < 2, sure))
    hits, ties = 0.0, 0
    for i in base:
        for j in novel:
            right = table[i, :2].argmax() == labels[i] and table[j, 2:].argmax() + 2 == labels[j]
            ties += sure[i] == sure[j]
            hits += right * ((sure[i] > sure[j]) + (sure[i] == sure[j]) / 2)
    assert ties  # or they would not be tested
    assert found["openworld_auc"] == pytest.approx(100 * hits / len(base) / len(novel))


def test_open_world_without_a_right_answer() -> None:
    table = np.array([[0.1, 0.5, 0.2, 0.2], [0.4, 0.1, 0.3, 0.2]])
    found = metrics.open_world(table, [0, 3], 2)
    assert found == {"base_half": 100, "novel_half": 0, "auroc": 100, "openworld_auc": 0}
