"""Measure what prediction sets keep of what they promise, on images that the model did not learn
from."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rmadapter import metrics
from rmadapter.artifacts.predictions import Evaluation
from rmadapter.artifacts.value import Promise, Split
from rmadapter.conformal import ERRORS, Calibration, Source, in_sets, needed
from rmadapter.taxonomy import Taxonomy
from rmadapter.training.contract import Fitted


def measured(
    table: np.ndarray, labels: np.ndarray, calibration: Calibration, tree: Taxonomy | None = None
) -> tuple[Promise, ...]:
    """Measure the promises at each of `ERRORS` for which the calibration has enough images.

    table: probabilities [N, C]. labels: [N], indices of the right classes. tree: of these, if they
    have parents, which then answer where a label cannot.
    """
    parts = [(np.arange(len(labels)), calibration)]
    return tuple(_measure(error, table, labels, parts, tree) for error in calibration.possible())


def kept(fitted: Fitted, evaluation: Evaluation, split: Split) -> tuple[Promise, ...]:
    """Measure the promises of a saved model on images of its classes; none for other classes, and
    on the images that calibrated it."""
    calibration = fitted.calibration
    if calibration is None or evaluation.images.classes != fitted.classes:
        return ()
    if split == calibration.source == "held out":
        return ()
    tree = evaluation.images.taxonomy
    return measured(evaluation.probabilities, evaluation.labels, calibration, tree)


def cross_measured(
    table: np.ndarray, labels: np.ndarray, groups: np.ndarray, source: Source,
    tree: Taxonomy | None = None,
) -> tuple[Promise, ...]:  # fmt: skip
    """Measure like `measured`, each group of images by a calibration on the others.

    groups: [N], number of each image's group.
    """
    numbers = np.unique(groups)
    if len(numbers) < 2:
        return ()
    parts = []
    for number in numbers:
        own = groups == number
        parts.append((np.flatnonzero(own), Calibration.of(table[~own], labels[~own], source)))
    least = min(len(calibration.shares) for _, calibration in parts)
    possible = [error for error in ERRORS if least >= needed(error)]
    return tuple(_measure(error, table, labels, parts, tree) for error in possible)


def halves(images: int, seed: int) -> np.ndarray:
    """Return a random half, 0 or 1, for each of N images."""
    return np.random.default_rng(seed).permutation(images) % 2


def _measure(
    error: float,
    table: np.ndarray,
    labels: np.ndarray,
    parts: list[tuple[np.ndarray, Calibration]],
    tree: Taxonomy | None,
) -> Promise:
    """parts: rows of the images, each with the calibration for them."""
    inside = np.zeros(table.shape, bool)
    for rows, calibration in parts:
        inside[rows] = in_sets(table[rows], calibration.limits(error, table.shape[1]))
    missed = ~inside[np.arange(len(labels)), labels]
    sizes = inside.sum(1)
    answered = sizes == 1
    low, high = metrics.wilson(int(missed.sum()), len(missed))
    calibrated = min(len(calibration.shares) for _, calibration in parts)
    levels, wrong = _backed_off(inside, labels, tree) if tree else ((), None)
    return Promise(
        error=100 * error,
        calibrated=calibrated,
        most=100 * metrics.most_missed(calibrated, error),
        by_class=all(calibration.by_class(error) for _, calibration in parts),
        missed=100 * float(missed.mean()),
        low=low,
        high=high,
        labels=float(sizes.mean()),
        answered=100 * float(answered.mean()),
        right=100 * float(1 - missed[answered].mean()) if answered.any() else None,
        misses=tuple(_by_class(missed, labels, table.shape[1])),
        levels=levels,
        wrong=wrong,
    )


def _backed_off(
    inside: np.ndarray, labels: np.ndarray, tree: Taxonomy
) -> tuple[tuple[float, ...], float]:
    """Return the share of images that are answered at each level, and of those answered wrongly.
    inside: which classes are in the set of each image, [N, C]."""
    counts, wrong = [0] * (tree.depth + 1), 0
    for row, label in zip(inside, labels.tolist(), strict=True):
        place = tree.common(np.flatnonzero(row).tolist())
        if place:
            counts[place.level] += 1
            wrong += place not in tree.above(label)
    return tuple(100 * count / len(labels) for count in counts), 100 * wrong / len(labels)


def _by_class(missed: np.ndarray, labels: np.ndarray, classes: int) -> Iterator[float | None]:
    """Yield the share of each class's images, in percent, whose sets miss it; None without any."""
    for number in range(classes):
        own = missed[labels == number]
        yield 100 * float(own.mean()) if len(own) else None
