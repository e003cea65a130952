"""Rules that find wrong labels and odd images.

Labels are judged by the answers [N, C] of models that did not learn from the image. Images are
checked whatever their label: blurred, tiny, of one colour, unlike all others, or duplicates.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from rmadapter.data.decode import ImageSource, load_image
from rmadapter.data.duplicates import pairs
from rmadapter.data.read import ImageSet
from rmadapter.support.terminal import track

NEIGHBOURS = 10
LONGEST = 256  # pixels of the longer side to which an image is reduced to measure its sharpness
# modified z-score of an outlier (Iglewicz and Hoaglin, How to Detect and Handle Outliers, 1993)
FAR = 3.5
TINY, HALF = 64, 0.5  # tiny: a shorter side below TINY pixels and below HALF of the set's median
NTH, SHARE = 5, 0.01
FLAT = 4.0  # of 255: standard deviation of the channel that varies most


# Labels


def logit_margin(table: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return how far the logit of the best other class is above that of the label.

    table: probabilities [N, C], to which 1e-6 is added. After Pleiss et al., NeurIPS 2020, arXiv
    2001.10528, who average over a training.
    """
    logits = np.log(table + 1e-6)
    rows = np.arange(len(labels))
    label_logits = logits[rows, labels]
    logits[rows, labels] = -np.inf
    margins: np.ndarray = logits.max(1) - label_logits
    return margins


def confident(table: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the class [N] that each image confidently belongs to, or -1 for none.

    It is the most probable of the classes whose probability reaches its mean over images with that
    label (equation 1 of Northcutt et al., JAIR 70, 2021, arXiv 1911.00068). A label is suspicious
    if this is another class, off the diagonal of the confident joint.
    """
    classes = table.shape[1]
    counts = np.bincount(labels, minlength=classes)
    own = table[np.arange(len(labels)), labels]
    sums = np.bincount(labels, weights=own, minlength=classes)
    thresholds = np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)
    # a mean of equal numbers may round up
    above = np.where(table >= thresholds - 1e-9, table, -1.0)
    return np.where(above.max(1) >= 0, above.argmax(1), -1)


# Images


def measure(images: Sequence[ImageSource], progress: bool = False) -> np.ndarray:
    """Measure images: returns [N, 3] with the pixels of the shorter side, the sharpness and the
    spread.

    Sharpness is the variance of the Laplacian of the grey image with values in 0..255
    (Pech-Pacheco et al., ICPR 2000), spread the standard deviation of the channel that varies most.
    Raises as `load_image` does.
    """
    with ThreadPoolExecutor() as pool:
        rows = track(pool.map(_measure, images), len(images), "looking at images", progress)
        return np.array([*rows]).reshape(-1, 3)


def _measure(source: ImageSource) -> tuple[float, float, float]:
    image = load_image(source)
    shorter = min(image.size)
    spread = np.asarray(image, np.float32).std((0, 1)).max()
    image.thumbnail((LONGEST, LONGEST), Image.Resampling.BICUBIC)
    grey = np.asarray(image.convert("L"), np.float32)
    middle = grey[1:-1, 1:-1]
    edges = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * middle
    return shorter, float(edges.var()) if edges.size else 0.0, float(spread)


def odd(measures: np.ndarray) -> list[list[str]]:
    """List what is wrong with each of N images. measures: as from `measure`."""
    shorter, sharpness, spread = measures.T
    usual = np.median(shorter) if len(shorter) else 0.0
    flat = spread < FLAT
    tiny = (shorter < TINY) & (shorter < HALF * usual)
    blurred = (modified_z(np.log(np.maximum(sharpness, 1e-3))) < -FAR) & ~flat
    kinds = (("one colour", flat), ("tiny", tiny), ("blurred", blurred))
    return [[name for name, flags in kinds if flags[i]] for i in range(len(measures))]


def modified_z(values: np.ndarray) -> np.ndarray:
    """Return each value's distance [N] from the median in units of a standard deviation that is
    robust to outliers (see FAR)."""
    if not len(values):
        return values
    middle = np.median(values)
    spread = np.median(np.abs(values - middle))
    return 0.6745 * (values - middle) / spread if spread > 0 else np.zeros(len(values))


def outliers(cosines: np.ndarray) -> np.ndarray:
    """Flag [N] the SHARE of images that is farthest from its 5th neighbour (Ramaswamy et al.,
    SIGMOD 2000); of 100 images or more, some always are.

    cosines: [N, k] to neighbours, nearest first; -inf, for no neighbour, is not far.
    """
    far = 1 - cosines[:, min(NTH, cosines.shape[1]) - 1]
    far[~np.isfinite(far)] = -np.inf
    flags = np.zeros(len(far), bool)
    flags[np.argsort(-far, kind="stable")[: int(SHARE * len(far))]] = True
    return flags & (far > 0)


def copies(images: ImageSet, looks: np.ndarray) -> list[list[str]]:
    """Name the other image that each of N images duplicates. looks: from `duplicates.looks`.

    Among copies with one label, all but the first are named; with two labels, all are, since either
    may be wrong.
    """
    others: dict[int, list[int]] = defaultdict(list)
    for i, j in pairs(looks, looks):
        if i != j and (j < i or images.labels[i] != images.labels[j]):
            others[i].append(j)
    reasons: list[list[str]] = [[] for _ in images.images]
    for i, rows in others.items():
        other = next((j for j in rows if images.labels[j] != images.labels[i]), rows[0])
        same = images.contents[i] == images.contents[other]
        reason = f"{'same file' if same else 'nearly the same'} as {images.name(other)}"
        if images.labels[other] != images.labels[i]:
            reason = f"two labels: {reason}, labelled {images.written[images.labels[other]]}"
        reasons[i] = [reason]
    return reasons
