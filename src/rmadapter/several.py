"""Several labels per image: how far a run's means may be from those on other images of the same
kind."""

from __future__ import annotations

import numpy as np

DRAWS = 1000
BLOCK = 2_000_000  # weights of images held in memory at once


def intervals(
    scores: np.ndarray,
    zero_shot: np.ndarray,
    targets: np.ndarray,
    threshold: float,
    draws: int = DRAWS,
) -> tuple[tuple[float, float], ...]:
    """95 % intervals, in percent, of four figures: mean average precision, that of the untouched
    backbone, macro F1, and the first minus the second.

    They reach 1.96 standard deviations to each side, by the bootstrap (Efron, 1979): N images drawn
    with replacement, `draws` times from a fixed seed. Bootstrap percentiles would be too high,
    since an image drawn twice raises average precision. scores, zero_shot: probabilities [N, C].
    targets: [N, C] of bool, whether an image has a label.
    """

    def figures(weights: np.ndarray) -> np.ndarray:
        mine, theirs = (mean_precision(weights, table, targets) for table in (scores, zero_shot))
        return np.stack(
            [mine, theirs, mean_f1(weights, scores >= threshold, targets), mine - theirs]
        )

    rng, count = np.random.default_rng(0), len(targets)
    sizes = [
        min(BLOCK // count + 1, draws - start) for start in range(0, draws, BLOCK // count + 1)
    ]
    drawn = [
        figures(rng.multinomial(count, [1 / count] * count, size=size).astype(np.float32))
        for size in sizes
    ]
    half = 1.96 * np.concatenate(drawn, axis=1).std(axis=1)
    middle = figures(np.ones((1, count), np.float32))[:, 0]
    least = [0, 0, 0, -100]  # percent
    ends = np.clip(middle - half, least, 100), np.clip(middle + half, least, 100)
    return tuple(zip(*np.round(ends, 4).tolist(), strict=True))


def mean_precision(weights: np.ndarray, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """[B]: mean average precision in percent where image n counts weights[b, n] times, over classes
    with an image.

    As in scikit-learn, images with equal scores count together. scores, targets: [N, C]
    """
    found = []
    for column, wanted in zip(scores.T, targets.T, strict=True):
        order = np.argsort(-column, kind="stable")
        ends = (
            np.searchsorted(-column[order], -column[order], side="right") - 1
        )  # the last image of each score
        own = weights[:, order]
        right = own * wanted[order]
        precision = right.cumsum(1)[:, ends] / np.maximum(own.cumsum(1)[:, ends], 1)
        found.append(_shares((precision * right).sum(1), right.sum(1)))
    return np.nanmean(found, axis=0)


def mean_f1(weights: np.ndarray, answered: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """[B]: macro F1 in percent, weighted as in `mean_precision`. answered: [N, C] of bool."""
    right, wanted, given = (
        weights @ table.astype(np.float32) for table in (answered & targets, targets, answered)
    )
    return np.nanmean(_shares(2 * right, np.where(wanted > 0, wanted + given, 0)), axis=1)


def _shares(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole in percent; NaN where whole is 0."""
    return 100 * np.divide(
        part, whole, out=np.full(whole.shape, np.nan, np.float64), where=whole > 0
    )
