"""Near-duplicate images: copies, resized copies, mirror images, and neighbours in a burst."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
from PIL import Image

from rmadapter.data.decode import ImageSource, load_image
from rmadapter.support.terminal import track

BITS, SIDE = 64, 32
FAR = 8  # bits that may differ
ALIKE = 0.9  # least correlation of the grey images: smooth images may share their bits by chance
CHUNK = 2048


def looks(images: Sequence[ImageSource], progress: bool = False) -> np.ndarray:
    """Features [N, 2, 64 + 1024] of each image and its mirror image, by which near-duplicates are
    found.

    The 64 are signs: whether each of 8 x 8 cells gets lighter to the right (the difference hash).
    The 1024 are the 32 x 32 grey image with mean 0 and norm 1. Raises as `load_image`.
    """
    with ThreadPoolExecutor() as pool:
        found = list(
            track(pool.map(_look, images), len(images), "looking for duplicates", progress)
        )
    return np.stack(found) if found else np.empty((0, 2, BITS + SIDE * SIDE), np.float32)


def _look(source: ImageSource) -> np.ndarray:
    image = load_image(source)
    grey = image.convert("L")
    small = np.asarray(grey.resize((9, 8), Image.Resampling.BICUBIC), np.int16)
    large = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float32)
    found = np.stack([_one(small, large), _one(small[:, ::-1], large[:, ::-1])])
    if not found[:, BITS:].any():
        found[:, BITS:] = _of_colour(image)
    return found


def _one(small: np.ndarray, large: np.ndarray) -> np.ndarray:
    signs = np.where(small[:, 1:] > small[:, :-1], 1, -1).ravel()
    flat = (large - large.mean()).ravel()
    return np.concatenate([signs, flat / max(float(np.linalg.norm(flat)), 1e-6)]).astype(np.float32)


def _of_colour(image: Image.Image) -> np.ndarray:
    """In place of the grey image, whose norm is 0: a direction of its own for each colour."""
    red, green, blue = image.resize((1, 1)).tobytes()
    found = np.random.default_rng(red << 16 | green << 8 | blue).standard_normal(SIDE * SIDE)
    return found / np.linalg.norm(found)


def pairs(some: np.ndarray, others: np.ndarray) -> Iterator[tuple[int, int]]:
    """Index pairs (i, j) of near-duplicates, mirrored or not, from two results of `looks`."""
    for start in range(0, len(some), CHUNK):
        part = some[start : start + CHUNK, 0]
        near = np.zeros((len(part), len(others)), bool)
        for low, side in product(range(0, len(others), CHUNK), (0, 1)):
            near[:, low : low + CHUNK] |= _alike(part, others[low : low + CHUNK, side])
        yield from ((start + int(i), int(j)) for i, j in np.argwhere(near))


def _alike(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Bool [N, M]. Bits are compared first, the 16 times longer grey images only where they match,
    which is rare."""
    found = some[:, :BITS] @ others[:, :BITS].T >= BITS - 2 * FAR  # a bit that differs costs two
    rows, columns = found.any(1).nonzero()[0], found.any(0).nonzero()[0]
    found[np.ix_(rows, columns)] &= some[rows, BITS:] @ others[columns, BITS:].T >= ALIKE
    return found


def groups(found: np.ndarray, named: Sequence[str] = ()) -> np.ndarray:
    """Group numbers [N] of images, given their `looks`; images linked by a chain of near-duplicates
    share a number.

    named: known group of each image, "" for none; images of one known group are linked, too.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    first: dict[str, int] = {}
    same = [(i, first.setdefault(name, i)) for i, name in enumerate(named) if name]
    links = np.array(
        [*pairs(found, found), *same, *((i, i) for i in range(len(found)))], int
    ).reshape(-1, 2)
    graph = coo_matrix((np.ones(len(links)), (links[:, 0], links[:, 1])), (len(found), len(found)))
    return connected_components(graph, directed=False)[1]
