"""Which labels look wrong: rules over answers [N, C] of models that did not learn from the image; its neighbours."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

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
        # Many times as fast as sorting, or as NumPy's partition; of equal ones the first comes first.
        best = np.sort(torch.from_numpy(part).topk(count).indices.numpy(), axis=1)
        order = np.argsort(-np.take_along_axis(part, best, 1), axis=1, kind="stable")
        rows.append(np.take_along_axis(best, order, 1))
        cosines.append(np.take_along_axis(part, rows[-1], 1))
    return Near(np.concatenate(rows), np.concatenate(cosines))


def logit_margin(table: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """By how much the logit of the best other class is above that of the given one (Pleiss et al., NeurIPS 2020, arXiv
    2001.10528, who take the mean over a training); from probabilities [N, C], of which 1e-6 count as none."""
    logits = np.log(table + 1e-6)
    given = logits[np.arange(len(labels)), labels]
    logits[np.arange(len(labels)), labels] = -np.inf
    return logits.max(1) - given


def confident(table: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """[N]: the class that an image confidently belongs to, or -1 for none (equation 1 of Northcutt et al., JAIR 70,
    2021, arXiv 1911.00068).

    That is the most probable of those whose probability reaches the mean that it has over images with that label. A
    label is suspicious where this is another class: off the diagonal of the confident joint.
    """
    counts = np.bincount(labels, minlength=table.shape[1])
    sums = np.bincount(labels, weights=table[np.arange(len(labels)), labels], minlength=table.shape[1])
    thresholds = np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)
    above = np.where(table >= thresholds - 1e-9, table, -1.0)  # a mean of equal numbers may round up
    return np.where(above.max(1) >= 0, above.argmax(1), -1)
