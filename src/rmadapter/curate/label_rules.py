"""Which labels look wrong, by the answers [N, C] of models that did not learn from the image;
nearest neighbours."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

NEIGHBOURS = 10
CHUNK = 2048


class Near(NamedTuple):
    """rows [N, k] of the nearest other images, nearest first, and their cosines [N, k]; -inf for
    none."""

    rows: np.ndarray
    cosines: np.ndarray


def nearest(features: np.ndarray, together: np.ndarray, count: int = NEIGHBOURS) -> Near:
    """Nearest images by features [N, e]. Images with the same number in together [N], such as
    copies, do not count."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    count, rows, cosines = min(count, len(unit)), [], []
    for start in range(0, len(unit), CHUNK):
        part = unit[start : start + CHUNK] @ unit.T
        part[together[start : start + CHUNK, None] == together[None]] = -np.inf
        # Many times faster than sorting or NumPy's partition. Sorted rows: of equal cosines the
        # first comes first.
        best = np.sort(torch.from_numpy(part).topk(count).indices.numpy(), axis=1)
        order = np.argsort(-np.take_along_axis(part, best, 1), axis=1, kind="stable")
        rows.append(np.take_along_axis(best, order, 1))
        cosines.append(np.take_along_axis(part, rows[-1], 1))
    return Near(np.concatenate(rows), np.concatenate(cosines))


def logit_margin(table: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How far the logit of the best other class is above that of the given one (Pleiss et al.,
    NeurIPS 2020, arXiv 2001.10528, who average over a training); from probabilities [N, C], to
    which 1e-6 is added."""
    logits = np.log(table + 1e-6)
    given = logits[np.arange(len(labels)), labels]
    logits[np.arange(len(labels)), labels] = -np.inf
    return logits.max(1) - given


def confident(table: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """[N]: the class that an image confidently belongs to, or -1 for none (equation 1 of Northcutt
    et al., JAIR 70, 2021, arXiv 1911.00068).

    It is the most probable of the classes whose probability reaches its mean over images with that
    label. A label is suspicious if this is another class, off the diagonal of the confident joint.
    """
    counts = np.bincount(labels, minlength=table.shape[1])
    sums = np.bincount(
        labels, weights=table[np.arange(len(labels)), labels], minlength=table.shape[1]
    )
    thresholds = np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)
    above = np.where(
        table >= thresholds - 1e-9, table, -1.0
    )  # a mean of equal numbers may round up
    return np.where(above.max(1) >= 0, above.argmax(1), -1)
