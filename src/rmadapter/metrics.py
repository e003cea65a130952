"""Accuracy, its spread and its calibration.

Returned rates are in percent; probabilities passed in are 0..1.
"""

from __future__ import annotations

import math
import statistics

import numpy as np
from numpy.typing import ArrayLike

BINS = 15  # of the calibration error


def accuracy(answers: ArrayLike, labels: ArrayLike) -> float:
    """Return the micro top-1 accuracy in percent.

    Args:
        answers: [N, C] probabilities (or any scores), or [N] predicted labels.
        labels: [N] int.

    Raises:
        ValueError: There are none, or the lengths differ.
    """
    return 100 * float(_correct(answers, labels).mean())


def harmonic_mean(a: float, b: float) -> float:
    """Return 2ab / (a + b), which sums up base-to-novel results; 0 if either is 0."""
    return statistics.harmonic_mean([float(a), float(b)])


def open_world(probabilities: np.ndarray, labels: ArrayLike, base: int) -> dict[str, float]:
    """Return what answers among trained and other classes in one list are worth, in percent.

    Args:
        probabilities: [N, C].
        labels: [N], with images of both.
        base: Number of trained classes, which are the first.

    Returns:
        The rates by name. `base_half` and `novel_half` count images of trained classes that get one
        of these as their answer, and images of others that get one of the others. `auroc` is that
        of the largest probability of a trained class, for images of these against others.
        `openworld_auc` counts pairs of one image each that are both right among the classes of
        their own half, and in that order (Hua et al., ICML 2025, arXiv 2505.05180).
    """
    which = np.asarray(labels)
    of_base, half = which < base, probabilities.argmax(1) < base
    sure = probabilities[:, :base].max(1)
    right = np.where(
        of_base,
        probabilities[:, :base].argmax(1) == which,
        base + probabilities[:, base:].argmax(1) == which,
    )
    share = right[of_base].mean() * right[~of_base].mean()
    both = _above(sure[of_base & right], sure[~of_base & right]) if share else 0.0
    rates = {
        "base_half": half[of_base].mean(),
        "novel_half": (~half[~of_base]).mean(),
        "auroc": _above(sure[of_base], sure[~of_base]),
        "openworld_auc": share * both,
    }
    return {name: 100 * float(rate) for name, rate in rates.items()}


def _above(first: np.ndarray, second: np.ndarray) -> float:
    """Return how many of all pairs have the larger number in the first; equal ones count half."""
    order = np.sort(second)
    below = np.searchsorted(order, first, "left") + np.searchsorted(order, first, "right")
    return float(below.mean()) / 2 / len(order)


def confidence_interval(values: ArrayLike, level: float = 0.95) -> float:
    """Return half the width of the mean's confidence interval by Student's t; NaN for fewer than
    two values."""
    from scipy.special import stdtrit  # what scipy.stats calls, a hundred times slower

    sample = np.asarray(values, dtype=np.float64)
    if sample.size < 2:
        return float("nan")
    quantile = stdtrit(sample.size - 1, (1 + level) / 2)
    return float(quantile * sample.std(ddof=1) / math.sqrt(sample.size))


def wilson(right: int, images: int) -> tuple[float, float]:
    """Return the 95 % interval in percent of an accuracy (Wilson, 1927), for one set of images and
    one model."""
    from scipy.stats import binomtest

    interval = binomtest(right, images).proportion_ci(0.95, method="wilson")
    return 100 * float(interval.low), 100 * float(interval.high)


def interval(right: ArrayLike, groups: ArrayLike | None = None) -> tuple[float, float]:
    """Return the 95 % interval in percent of an accuracy on N images, of which some may belong
    together: Wilson's, for the number of images that would tell as much if each stood alone.

    Args:
        right: [N] bool.
        groups: [N], number of each image's group; None where each stands alone.
    """
    correct = np.asarray(right, dtype=bool)
    count, rate = len(correct), float(correct.mean())
    if groups is None or len(np.unique(groups)) == count:
        return wilson(int(correct.sum()), count)
    low, high = _wilson(
        rate, _effective(rate * (1 - rate), (correct - rate) / count, groups, count)
    )
    return 100 * low, 100 * high


def _effective(variance: float, parts: np.ndarray, groups: ArrayLike, most: float) -> float:
    """Return how many images that stand alone would tell as much about a mean as images of groups:
    the variance of one image over the cluster-robust variance of the mean; where all images agree,
    the number of groups.

    Args:
        variance: Variance of one image.
        parts: [N], what each image adds to the error of the mean; they sum to 0.
        groups: [N], number of each image's group.
        most: Largest number to return.
    """
    _, which = np.unique(groups, return_inverse=True)
    count = int(which.max()) + 1
    if count == 1 or not variance:
        return min(count, most)
    robust = float((np.bincount(which, parts) ** 2).sum()) * count / (count - 1)
    return min(variance / robust, most) if robust else most


def balanced_accuracy(
    answers: ArrayLike, labels: ArrayLike, groups: ArrayLike | None = None
) -> tuple[float, float, float]:
    """Return the mean recall in percent of the classes that have images, and the low and high end
    of its 95 % interval.

    The interval is Wilson's, for the number of images that would tell as much if every class had
    equally many: C squared over the sum of 1 / n (Kish, 1965), n images of each of C classes. It is
    that of the accuracy where all n are equal, and an approximation where recalls differ much. With
    groups it is for fewer images, as in `interval`.

    Args:
        answers, labels: As for `accuracy`.
        groups: As for `interval`.

    Raises:
        ValueError: As for `accuracy`.
    """
    right, true = _correct(answers, labels), np.asarray(labels)
    counts = np.bincount(true)
    present = counts > 0
    recalls = np.bincount(true[right], minlength=len(counts)) / np.maximum(counts, 1)
    classes = int(present.sum())
    rate, images = float(recalls[present].mean()), classes**2 / float((1 / counts[present]).sum())
    if groups is not None and len(np.unique(groups)) < len(true):
        images = _effective(
            rate * (1 - rate), (right - recalls[true]) / counts[true] / classes, groups, images
        )
    low, high = _wilson(rate, images)
    return 100 * rate, 100 * low, 100 * high


def _wilson(rate: float, images: float) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a rate from 0 to 1 on any number of images."""
    from scipy.special import ndtri

    z = float(ndtri(0.975)) ** 2
    middle = (rate + z / images / 2) / (1 + z / images)
    half = math.sqrt(z / images * (rate * (1 - rate) + z / images / 4)) / (1 + z / images)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def paired(
    first: ArrayLike, second: ArrayLike, groups: ArrayLike | None = None
) -> tuple[float, float, float, float]:
    """Compare two models on the same images.

    The interval is that of Agresti and Min (2005), who add half an image to each of the four cells.
    With groups it is for as many images as would tell as much if each stood alone, as in
    `interval`, and p is that of the exact test that changes the signs of whole groups, which is
    McNemar's where each image stands alone.

    Args:
        first, second: [N] bool, which images each model gets right.
        groups: As for `interval`.

    Returns:
        How much more often the second is right, in percentage points, the low and high end of that
        difference's 95 % interval, and the p value of McNemar's exact test.

    Raises:
        ValueError: There are none, or the lengths differ.
    """
    from scipy.stats import norm

    one, two = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if not one.size or one.shape != two.shape:
        raise ValueError(f"{one.size} answers beside {two.size}")
    change = two.astype(int) - one
    which = np.arange(len(change)) if groups is None else np.unique(groups, return_inverse=True)[1]
    sums = np.bincount(which, change).astype(int)  # by group
    images = float(len(change))
    if len(sums) < images:
        images = _effective(change.var(), (change - change.mean()) / images, which, images)
    share = images / len(change)
    count = images + 2
    middle = share * change.sum() / count
    other = share * np.abs(change).sum() + 1
    half = norm.ppf(0.975) * np.sqrt((other / count - middle**2) / count)
    low, high = (float(np.clip(100 * end, -100, 100)) for end in (middle - half, middle + half))
    return 100 * float(change.mean()), low, high, _by_signs(sums)


def _by_signs(sums: np.ndarray) -> float:
    """Return the two-sided p value of the sum of some whole numbers [G] if each had its sign by
    chance."""
    from scipy.stats import binom

    chances = np.ones(1)  # of each sum of the magnitudes of the positive ones
    for size, count in zip(*np.unique(np.abs(sums[sums != 0]), return_counts=True), strict=True):
        of_size = np.zeros(size * count + 1)
        of_size[::size] = binom.pmf(np.arange(count + 1), count, 0.5)
        chances = np.convolve(chances, of_size)
    far = np.abs(2 * np.arange(len(chances)) + 1 - len(chances)) >= abs(int(sums.sum()))
    return min(float(chances[far].sum()), 1.0)


def calibration_error(confidence: ArrayLike, right: ArrayLike) -> float:
    """Return the mean distance in percent between confidence and accuracy, over 15 bins of equal
    width (closed on the right), each weighted by its answers (Guo et al., 2017).

    Args:
        confidence: [N], the probability of each answer, 0..1.
        right: [N], whether the answer is right.
    """
    sure = np.asarray(confidence, dtype=np.float64)
    bin_of = np.digitize(sure, np.linspace(0, 1, BINS + 1)[1:-1], right=True)
    return 100 * float(np.abs(np.bincount(bin_of, sure - np.asarray(right))).sum()) / len(sure)


def equal_count(
    confidence: ArrayLike, right: ArrayLike, bins: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Divide answers, from the least to the most confident, into bins of equal count or one more.

    Returns mean confidence [B] and accuracy [B] in percent, and Wilson's 95 % interval [B, 2]; B is
    `bins`, or fewer if there are fewer answers.
    """
    sure, correct = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=bool)
    parts = np.array_split(np.argsort(sure, kind="stable"), max(1, min(bins, len(sure))))
    ends = [wilson(int(correct[part].sum()), len(part)) for part in parts]
    means = [[100 * float(values[part].mean()) for part in parts] for values in (sure, correct)]
    return np.array(means[0]), np.array(means[1]), np.array(ends)


def tempered(probabilities: ArrayLike, temperature: float) -> np.ndarray:
    """Return probabilities [N, C] after the logits are divided by a temperature."""
    from scipy.special import softmax

    result: np.ndarray = softmax(_logs(probabilities) / temperature, axis=1)
    return result


def temperature(
    probabilities: ArrayLike,
    labels: ArrayLike,
    most: float = 20.0,
    expected: float = 1.0,
    spread: float = float("inf"),
) -> float:
    """Return the divisor of the logits with the least cross-entropy (Guo et al., 2017), between
    1 / most and most.

    Targets are smoothed as if there were one more image of unknown class (after Platt, 1999), so
    that a few images that are all right do not demand certainty.

    Args:
        probabilities: [N, C].
        labels: [N] int.
        most: The largest divisor.
        expected, spread: Median of a log-normal prior and the standard deviation of its logarithm,
            by default none, which few images do not overrule.

    Raises:
        ValueError: As for `accuracy`.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    _correct(probabilities, labels)
    logs = _logs(probabilities)
    count, classes = logs.shape
    targets = np.full_like(logs, 1 / (count + 1) / classes)
    targets[np.arange(count), np.asarray(labels)] += count / (count + 1)

    def loss(power: float) -> float:
        fit = -float((targets * log_softmax(logs / most**power, axis=1)).sum())
        unlikely = (power * math.log(most) - math.log(expected)) / spread
        return fit + unlikely**2 / 2

    return float(most ** minimize_scalar(loss, bounds=(-1, 1), method="bounded").x)


def _logs(probabilities: ArrayLike) -> np.ndarray:
    """Return logarithms, finite even where float32 rounded a small probability to 0."""
    return np.log(np.maximum(np.asarray(probabilities, dtype=np.float64), 1e-45))


def confusion(labels: ArrayLike, predictions: ArrayLike, n: int) -> np.ndarray:
    """Return counts [n, n] over classes 0..n-1: row = true class, column = predicted class."""
    from sklearn.metrics import confusion_matrix

    # Two at least: for a single class scikit-learn warns that there may be more.
    counts: np.ndarray = confusion_matrix(labels, predictions, labels=range(max(n, 2)))
    return counts[:n, :n]


def per_class_accuracy(labels: ArrayLike, predictions: ArrayLike, n: int) -> np.ndarray:
    """Return the accuracy [n] in percent within each true class (its recall), NaN for a class
    without images."""
    true = np.asarray(labels)
    right = np.bincount(true[true == np.asarray(predictions)], minlength=n)
    with np.errstate(invalid="ignore"):
        return 100 * right / np.bincount(true, minlength=n)


def confusions(
    labels: ArrayLike, predictions: ArrayLike, n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the cells of `confusion` off its diagonal that are not 0, row by row: true class [K],
    predicted class [K] and count [K]. With many classes the matrix is nearly empty, and it grows
    with their square."""
    true, predicted = np.asarray(labels), np.asarray(predictions)
    wrong = true != predicted
    places, counts = np.unique(true[wrong] * n + predicted[wrong], return_counts=True)
    return places // n, places % n, counts


def _correct(answers: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """Return which answers are right, [N] bool."""
    predicted, true = np.asarray(answers), np.asarray(labels)
    if predicted.ndim == 2:
        predicted = predicted.argmax(axis=1)
    if not true.size or predicted.shape != true.shape:
        raise ValueError(f"{predicted.size} answers for {true.size} labels")
    right: np.ndarray = predicted == true
    return right
