"""Images that look wrong whatever their label: blurred, tiny, of one colour, unlike all others, or
duplicates."""

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

LONGEST = (
    256  # pixels: larger images are reduced to this longer side before their sharpness is measured
)
# modified z-score of an outlier (Iglewicz and Hoaglin, How to Detect and Handle Outliers, 1993)
FAR = 3.5
TINY, HALF = 64, 0.5  # tiny: a shorter side below TINY pixels and below HALF of the set's median
NTH, SHARE = 5, 0.01
FLAT = 4.0  # of 255: standard deviation of the channel that varies most


def measure(images: Sequence[ImageSource], progress: bool = False) -> np.ndarray:
    """[N, 3]: pixels of the shorter side, variance of the Laplacian (Pech-Pacheco et al., ICPR
    2000) of the grey image with values in 0..255, and standard deviation of the channel that varies
    most. Raises as load_image does."""
    with ThreadPoolExecutor() as pool:
        return np.array(
            [*track(pool.map(_measure, images), len(images), "looking at images", progress)]
        ).reshape(-1, 3)


def _measure(source: ImageSource) -> tuple[float, float, float]:
    image = load_image(source)
    shorter, spread = min(image.size), np.asarray(image, np.float32).std((0, 1)).max()
    image.thumbnail((LONGEST, LONGEST), Image.Resampling.BICUBIC)
    grey = np.asarray(image.convert("L"), np.float32)
    middle = grey[1:-1, 1:-1]
    edges = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * middle
    return shorter, float(edges.var()) if edges.size else 0.0, float(spread)


def odd(measured: np.ndarray) -> list[list[str]]:
    """What is wrong with each of N images. measured: as from `measure`."""
    shorter, sharpness, spread = measured.T
    usual = np.median(shorter) if len(shorter) else 0.0
    flat = spread < FLAT
    tiny = (shorter < TINY) & (shorter < HALF * usual)
    blurred = (modified_z(np.log(np.maximum(sharpness, 1e-3))) < -FAR) & ~flat
    kinds = (("one colour", flat), ("tiny", tiny), ("blurred", blurred))
    return [[name for name, found in kinds if found[i]] for i in range(len(measured))]


def modified_z(values: np.ndarray) -> np.ndarray:
    """[N]: distance from the median in units of a standard deviation that is robust to outliers
    (see FAR)."""
    if not len(values):
        return values
    middle = np.median(values)
    spread = np.median(np.abs(values - middle))
    return 0.6745 * (values - middle) / spread if spread > 0 else np.zeros(len(values))


def outliers(cosines: np.ndarray) -> np.ndarray:
    """[N]: whether an image is in the SHARE that is farthest from its 5th neighbour (Ramaswamy et
    al., SIGMOD 2000); of 100 images or more, some always are. cosines: [N, k] to neighbours,
    nearest first; -inf, for none, is not far."""
    far = 1 - cosines[:, min(NTH, cosines.shape[1]) - 1]
    far[~np.isfinite(far)] = -np.inf
    found = np.zeros(len(far), bool)
    found[np.argsort(-far, kind="stable")[: int(SHARE * len(far))]] = True
    return found & (far > 0)


def copies(images: ImageSet, found: np.ndarray) -> list[list[str]]:
    """Which other image each of N images duplicates. found: from `duplicates.looks`.

    Among copies with one label, all but the first are named; with two labels, all are, since either
    may be wrong.
    """
    others: dict[int, list[int]] = defaultdict(list)
    for i, j in pairs(found, found):
        if i != j and (j < i or images.labels[i] != images.labels[j]):
            others[i].append(j)
    reasons: list[list[str]] = [[] for _ in images.images]
    for i, some in others.items():
        other = next((j for j in some if images.labels[j] != images.labels[i]), some[0])
        same = (
            "same file as" if images.contents[i] == images.contents[other] else "nearly the same as"
        )
        label = images.written[images.labels[other]]
        two = images.labels[other] != images.labels[i]
        reasons[i] = [
            f"{'two labels: ' * two}{same} {images.name(other)}{f', labelled {label}' * two}"
        ]
    return reasons
