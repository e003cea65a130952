"""Prediction sets beside MAPIE's, and their promise beside its distribution in closed form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from mapie.classification import SplitConformalClassifier
from scipy.stats import beta, norm
from sklearn.base import BaseEstimator, ClassifierMixin

from rmadapter.answers.held_out import least_share, needed, rank
from rmadapter.answers.sets import Calibration, in_sets
from rmadapter.errors import UserError

CLASSES = 5


def draw(images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities [N, C], and labels of which many are probable."""
    rng = np.random.default_rng(seed)
    table = rng.dirichlet(np.full(CLASSES, 0.4), images)
    labels = np.array([rng.choice(CLASSES, p=0.8 * row + 0.2 / CLASSES) for row in table])
    return table, labels


class Table(ClassifierMixin, BaseEstimator):
    """A classifier whose inputs are its probabilities."""

    classes_ = np.arange(CLASSES)

    def fit(self, table: np.ndarray, labels: np.ndarray) -> Table:
        return self

    def predict_proba(self, table: np.ndarray) -> np.ndarray:
        return table

    def predict(self, table: np.ndarray) -> np.ndarray:
        return table.argmax(1)

    def __sklearn_is_fitted__(self) -> bool:
        return True


@pytest.mark.parametrize("error", [0.05, 0.1, 0.15])
def test_sets_are_those_of_mapie(error: float) -> None:
    """At the mean error of the limit's place among the images."""
    table, labels = draw(97, 1)
    new, _ = draw(200, 2)
    level = 1 - (rank(97, error) + 0.5) / 98
    other = SplitConformalClassifier(Table(), confidence_level=level, prefit=True)
    _, sets = other.conformalize(table, labels).predict_set(new)
    expected = sets[:, :, 0]
    expected[np.arange(len(new)), new.argmax(1)] = True  # ours are never empty
    ours = in_sets(new, Calibration.of(table, labels, "held out").limits(error, CLASSES))
    assert not ours.all()
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize(("images", "error"), [(45, 0.05), (160, 0.1), (400, 0.03)])
def test_the_share_missed_has_the_distribution_of_theory(images: int, error: float) -> None:
    """Without ties and without the class that is always in, it is Beta(k, N + 1 - k), and more than
    promised in one calibration of ten, or fewer."""
    shares = np.random.default_rng(3).random((4000, images))
    one_class = np.zeros(images, int)
    limits = [
        Calibration.of(np.stack([row, 1 - row], 1), one_class, "held out").limits(error, 2)[0]
        for row in shares
    ]
    missed = np.array(limits)  # of a uniform share, what lies below the limit
    k = rank(images, error)
    spread = np.sqrt(k * (images + 1 - k) / (images + 1) ** 2 / (images + 2) / len(shares))
    assert abs(missed.mean() - k / (images + 1)) < 4 * spread
    broken = beta.sf(error, k, images + 1 - k)
    assert (missed > error).mean() == pytest.approx(broken, abs=4 * np.sqrt(0.1 / len(shares)))
    assert broken <= 0.1


@pytest.mark.parametrize("error", [0.01, 0.05, 0.1, 0.3, 0.9])
def test_a_place_is_the_highest_that_keeps_the_promise_in_nine_of_ten_draws(error: float) -> None:
    """The share below the k-th of N uniform numbers is Beta(k, N + 1 - k)."""
    for images in (1, 5, 21, 22, 44, 45, 99, 229, 230, 1600, 10_000):
        k = rank(images, error)
        if k:
            assert beta.cdf(error, k, images + 1 - k) >= 0.9 - 1e-9
        assert k == images or beta.cdf(error, k + 1, images - k) < 0.9
        assert (k > 0) == (images >= needed(error))


def test_one_image_of_each_group_calibrates() -> None:
    """Where images of a group resemble each other, the promise holds for new groups in nine of ten
    calibrations; by all of the images it would not."""
    rng, groups = np.random.default_rng(5), np.repeat(np.arange(60), 10)
    missed: dict[bool, list[float]] = {True: [], False: []}
    for seed in range(1000):
        own = rng.normal(size=60)[groups] * 0.8**0.5 + rng.normal(size=600) * 0.2**0.5
        share = norm.cdf(own)  # by which a share as small as this is missed among new groups
        table = np.stack([share, 1 - share], 1)
        for grouped, found in missed.items():
            numbers = groups if grouped else None
            calibration = Calibration.of(table, np.zeros(600, int), "held out", numbers, seed)
            assert calibration.grouped == grouped
            found.append(calibration.limits(0.05, 2)[0])
    assert len(calibration.shares) == 600
    one, all_of_them = (np.array(missed[grouped]) for grouped in (True, False))
    k = rank(60, 0.05)
    assert one.mean() == pytest.approx(k / 61, abs=4 * one.std() / 1000**0.5)
    broken = beta.sf(0.05, k, 61 - k)
    assert (one > 0.05).mean() == pytest.approx(broken, abs=0.03)
    assert (all_of_them > 0.05).mean() > 0.15


def test_the_images_of_groups_are_drawn_with_the_seed() -> None:
    table, labels = draw(60, 6)
    groups = np.arange(60) // 3
    one = [Calibration.of(table, labels, "folds", groups, seed) for seed in (1, 1, 2)]
    assert one[0] == one[1] != one[2]
    assert len(one[0].shares) == 20
    alone = Calibration.of(table, labels, "folds", np.arange(60), 1)
    assert alone == Calibration.of(table, labels, "folds")
    own = {(share, label) for share, label in zip(alone.shares, alone.classes, strict=True)}
    assert {*zip(one[0].shares, one[0].classes, strict=True)} <= own
    assert "20 groups of" in one[0].promise(0.1)
    assert "60 training images" in alone.promise(0.1)


def test_the_same_as_json_and_what_earlier_versions_wrote() -> None:
    table, labels = draw(60, 7)
    for groups in (None, np.arange(60) // 3):
        calibration = Calibration.of(table, labels, "held out", groups)
        assert Calibration.from_json(calibration.json()) == calibration
    earlier = Calibration.of(table, labels, "held out")
    new = ("grouped", "broken", "missed")
    values = {name: value for name, value in earlier.json().items() if name not in new}
    assert Calibration.from_json(values) == earlier
    judged = replace(earlier, broken=(0.05, 0.1), missed=(0.2, 0.25))
    assert Calibration.from_json(judged.json()) == judged
    with pytest.raises(ValueError, match="grouped"):
        Calibration.from_json({**values, "grouped": 1})


def test_classes_with_enough_images_have_limits_of_their_own() -> None:
    """Then each of them keeps the promise, even one that is always less probable."""
    rng = np.random.default_rng(4)
    labels = np.repeat([0, 1], 200)
    own = np.where(labels == 0, rng.uniform(0.8, 1, 400), rng.uniform(0.4, 0.6, 400))
    table = np.stack([np.where(labels == 0, own, 1 - own), np.where(labels == 1, own, 1 - own)], 1)
    calibration = Calibration.of(table, labels, "held out")
    assert calibration.by_class(0.1)
    assert not calibration.by_class(0.01)
    apart, together = calibration.limits(0.1, 2), calibration.limits(0.01, 2)
    assert apart[0] > 0.8
    assert 0.4 < apart[1] < 0.45
    assert together[0] == together[1] < 0.45
    assert calibration.limits(0.1, 3)[2] == pytest.approx(sorted(own)[rank(400, 0.1) - 1], abs=2e-6)


def test_the_limit_of_a_class_is_its_own_kth_smallest_probability() -> None:
    """With 199 images of a class and 5 % that is the sixth, of 239 the eighth, of all 438 the 16th:
    the next place would break the promise in more than one calibration of ten."""
    rng = np.random.default_rng(8)
    labels = np.repeat([0, 1], [199, 239])
    own = rng.permutation(np.arange(1, 439)) / 1000
    table = np.stack([np.where(labels == 0, own, 1 - own), np.where(labels == 1, own, 1 - own)], 1)
    calibration = Calibration.of(table, labels, "held out")
    assert calibration.by_class(0.05)
    found = calibration.limits(0.05, 3)
    for number, images, k in ((0, 199, 6), (1, 239, 8)):
        smallest = np.sort(own[labels == number])
        assert found[number] == pytest.approx(smallest[k - 1], abs=2e-6)
        assert beta.sf(0.05, k, images + 1 - k) <= 0.1 < beta.sf(0.05, k + 1, images - k)
    assert found[2] == pytest.approx(np.sort(own)[15], abs=2e-6)
    assert beta.sf(0.05, 16, 423) <= 0.1 < beta.sf(0.05, 17, 422)
    in_own_set = table[labels == 0, 0] >= found[0]
    assert np.count_nonzero(~in_own_set) == 5


def test_a_class_has_a_limit_where_its_confidence_costs_less_than_half_of_the_error() -> None:
    for error in (0.01, 0.05, 0.1, 0.3):
        least = 3 * needed(error)
        for images, apart in ((least - 1, False), (least, True)):
            labels = np.repeat([0, 1], [images, 1000])
            table = np.random.default_rng(0).dirichlet([1, 1], images + 1000)
            assert Calibration.of(table, labels, "held out").by_class(error) == apart
        assert all(rank(n, error) > 0.5 * error * (n + 1) for n in range(least, 3000))


def test_a_promise_in_words() -> None:
    few = Calibration.of(*draw(50, 6), "held out")
    assert "at most 4.5 % of images like these 50 images that were not" in few.promise(0.045)
    assert "nine of ten" in few.promise(0.045)
    assert few.details(0.1, CLASSES + 2)[1:] == [
        "more may be missed, as classes were added by name (2)"
    ]


def test_a_promise_by_folds_is_an_estimate() -> None:
    table, labels = draw(50, 6)
    assert "estimated on the training images" in Calibration.of(table, labels, "folds").promise(0.1)
    assert "estimated" not in Calibration.of(table, labels, "held out").promise(0.1)


def test_a_promise_names_the_frequencies_of_classes_that_share_a_limit() -> None:
    table, labels = draw(50, 6)
    few = Calibration.of(table, labels, "held out")
    counts = np.bincount(labels)
    [text] = few.details(0.1, CLASSES)
    assert f"({counts.min()} to {counts.max()} of each)" in text
    assert "--draw natural" not in text
    [text] = Calibration.of(table, np.arange(50) % CLASSES, "folds").details(0.1, CLASSES)
    assert "(10 of each)" in text
    assert "--draw natural" in text
    [text] = Calibration.of(np.full((40, 2), 0.5), np.arange(40) % 2, "folds").details(0.1, 2)
    assert "(20 of each)" in text
    [text] = Calibration.of(*draw(3000, 6), "folds").details(0.1, CLASSES)
    assert "of each" not in text  # each class has a limit


def test_one_class_is_as_frequent_as_itself() -> None:
    few = Calibration.of(np.ones((needed(0.1), 1)), np.zeros(needed(0.1), int), "folds")
    assert not few.by_class(0.1)
    assert few.details(0.1, 1) == []


def test_an_error_needs_images() -> None:
    assert [needed(error) for error in (0.01, 0.05, 0.1, 0.5)] == [230, 45, 22, 4]
    calibration = Calibration.of(*draw(44, 5), "folds")
    with pytest.raises(UserError, match=r"5 % needs 45 images .* there are 44: allow 5.1 %"):
        calibration.limits(0.05, CLASSES)
    with pytest.raises(UserError, match="--folds 4"):
        calibration.limits(0.05, CLASSES)
    with pytest.raises(UserError, match=r"more images$"):
        Calibration.of(*draw(44, 5), "held out").limits(0.05, CLASSES)
    calibration.limits(0.051, CLASSES)
    for error in (0, 1, -0.1, float("nan")):
        with pytest.raises(UserError, match="more than 0"):
            calibration.limits(error, CLASSES)


def test_the_least_share_is_possible_and_a_smaller_one_is_not() -> None:
    for images in range(1, 3000):
        least = least_share(images)
        assert needed(least) <= images
        assert rank(images, least) >= 1
        assert least < 0.002 or needed(least - 0.001) > images


@pytest.mark.parametrize(
    ("shares", "classes"),
    [((), ()), ((0.5,), (0, 1)), ((0.5, 0.4), (0, 1)), ((-0.1,), (0,)), ((0.5,), (2,)),
     ((0.5,), (-1,)), ((float("nan"),), (0,))],
)  # fmt: skip
def test_a_damaged_calibration_is_refused(
    shares: tuple[float, ...], classes: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"."):
        Calibration(shares, classes, 2, "folds")


@pytest.mark.parametrize(
    ("broken", "missed"),
    [((0.1,), ()), ((), (0.1,)), ((0.0,), (0.1,)), ((0.1,), (1.1,)), ((0.1,) * 4, (0.2,) * 4)],
)
def test_damaged_measurements_are_refused(
    broken: tuple[float, ...], missed: tuple[float, ...]
) -> None:
    with pytest.raises(ValueError, match="missed"):
        Calibration((0.5,), (0,), 2, "folds", False, broken, missed)
