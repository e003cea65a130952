"""Which labels look wrong: rules over answers [N, C] of models that did not learn from the image, and over neighbours.

Every score is higher for a label that is more likely to be wrong.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

NEIGHBOURS = 10
CHUNK = 2048


class Near(NamedTuple):
    """rows [N, k] of the nearest other images, the nearest first, and their cosines [N, k]; -inf for none."""

    rows: np.ndarray
    cosines: np.ndarray


def nearest(features: np.ndarray, together: np.ndarray, count: int = NEIGHBOURS) -> Near:
    """features: [N, e]. together: [N] numbers; images with the same one, such as copies, are no neighbours."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    count, rows, cosines = min(count, len(unit)), [], []
    for start in range(0, len(unit), CHUNK):
        part = unit[start : start + CHUNK] @ unit.T
        part[together[start : start + CHUNK, None] == together[None]] = -np.inf
        found = np.argsort(-part, axis=1, kind="stable")[:, :count]
        rows.append(found)
        cosines.append(np.take_along_axis(part, found, 1))
    return Near(np.concatenate(rows), np.concatenate(cosines))


def votes(near: Near, labels: np.ndarray, classes: int) -> np.ndarray:
    """[N, C]: shares of the neighbours' labels, each weighed by its cosine; zeros where there is no neighbour."""
    weights = np.clip(near.cosines, 0, None)
    table = np.zeros((len(weights), classes))
    np.add.at(table, (np.arange(len(weights))[:, None], labels[near.rows]), weights)
    return table / np.maximum(table.sum(1, keepdims=True), 1e-12)


def self_confidence(table: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """1 - the probability of the given label (Northcutt et al., JAIR 70, 2021, arXiv 1911.00068)."""
    return 1 - _given(table, labels)


def margin(table: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """0 to 1: by how much another class is more probable than the given one, their normalised margin (as above)."""
    others = table.copy()
    others[np.arange(len(labels)), labels] = -np.inf
    return (1 + others.max(1) - _given(table, labels)) / 2


def mean_rank(*scores: np.ndarray) -> np.ndarray:
    """0 to 1: the mean place among the images by each score."""
    from scipy.stats import rankdata

    return np.mean([rankdata(score) / len(score) for score in scores], axis=0)


def confident(table: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """[N]: the class that an image confidently belongs to, or -1 for none (equation 1 of Northcutt et al.).

    That is the most probable of those whose probability reaches the mean that it has over images with that label. A
    label is suspicious where this is another class: off the diagonal of the confident joint.
    """
    above = np.where(table >= _thresholds(table, labels) - 1e-9, table, -1.0)  # a mean of equal numbers may round up
    return np.where(above.max(1) >= 0, above.argmax(1), -1)


def adjusted(table: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Probabilities less these thresholds, as shares of their sum once the least of all would be 0: a class that every
    image gets little of is not held against those with its label (Kuan and Mueller, DataPerf at ICML 2022)."""
    found = table - np.minimum(_thresholds(table, labels), 1)
    found = found - found.min()
    return found / np.maximum(found.sum(1, keepdims=True), 1e-12)


def _thresholds(table: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """[C]: the mean probability of each class over images with that label; infinite for one without images."""
    counts = np.bincount(labels, minlength=table.shape[1])
    sums = np.bincount(labels, weights=_given(table, labels), minlength=table.shape[1])
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)


def _given(table: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return table[np.arange(len(labels)), labels].astype(float)
