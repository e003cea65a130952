"""Find near-duplicate images: copies, resized copies, mirror images, and neighbours in a burst."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
from PIL import Image

BITS = 64
SIDE = 32
MAX_DIFFERENCE = 8  # bits
MIN_CORRELATION = 0.9  # of the grey images: smooth images may share their bits by chance
CHUNK_SIZE = 2048  # images
BIT_PIXELS = 9 * 8  # whose neighbours give the bits


def thumbprint(image: Image.Image) -> bytes:
    """Return what `looks` needs of an RGB image: 9 x 8 and 32 x 32 grey pixels, and a colour."""
    grey = image.convert("L")
    small = grey.resize((9, 8), Image.Resampling.BICUBIC).tobytes()
    large = grey.resize((SIDE, SIDE), Image.Resampling.BICUBIC).tobytes()
    # the colour counts only for an image of one grey
    colour = image.resize((1, 1)).tobytes() if len(set(large)) == 1 else bytes(3)
    return small + large + colour


def looks(thumbprints: Sequence[bytes]) -> np.ndarray:
    """Return features [N, 2, 64 + 1024] of each image and its mirror image, which near-duplicates
    share.

    The 64 are signs: whether each of 8 x 8 cells gets lighter to the right (the difference hash).
    The 1024 are the 32 x 32 grey image with mean 0 and norm 1.
    """
    features = [_features(thumbprint) for thumbprint in thumbprints]
    return np.stack(features) if features else np.empty((0, 2, BITS + SIDE * SIDE), np.float32)


def _features(thumbprint: bytes) -> np.ndarray:
    pixels = np.frombuffer(thumbprint, np.uint8)
    small = pixels[:BIT_PIXELS].reshape(8, 9).astype(np.int16)
    large = pixels[BIT_PIXELS:-3].reshape(SIDE, SIDE).astype(np.float32)
    features = np.stack([_one(small, large), _one(small[:, ::-1], large[:, ::-1])])
    if not features[:, BITS:].any():  # a norm of 0 says nothing: take a direction for each colour
        red, green, blue = thumbprint[-3:]
        direction = np.random.default_rng(red << 16 | green << 8 | blue).standard_normal(SIDE**2)
        features[:, BITS:] = direction / np.linalg.norm(direction)
    return features


def _one(small: np.ndarray, large: np.ndarray) -> np.ndarray:
    signs = np.where(small[:, 1:] > small[:, :-1], 1, -1).ravel()
    flat = (large - large.mean()).ravel()
    return np.concatenate([signs, flat / max(float(np.linalg.norm(flat)), 1e-6)]).astype(np.float32)


def pairs(some: np.ndarray, others: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield index pairs (i, j) of near-duplicates, mirrored or not, from two results of `looks`."""
    for start in range(0, len(some), CHUNK_SIZE):
        part = some[start : start + CHUNK_SIZE, 0]
        near = np.zeros((len(part), len(others)), bool)
        for low, side in product(range(0, len(others), CHUNK_SIZE), (0, 1)):
            near[:, low : low + CHUNK_SIZE] |= _similar(part, others[low : low + CHUNK_SIZE, side])
        yield from ((start + int(i), int(j)) for i, j in np.argwhere(near))


def _similar(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return bool [N, M]. Bits are compared first, and the 16 times longer grey images only where
    the bits match, which is rare."""
    similar = some[:, :BITS] @ others[:, :BITS].T >= BITS - 2 * MAX_DIFFERENCE  # a bit costs two
    rows = similar.any(1).nonzero()[0]
    columns = similar.any(0).nonzero()[0]
    correlations = some[rows, BITS:] @ others[columns, BITS:].T
    similar[np.ix_(rows, columns)] &= correlations >= MIN_CORRELATION
    return np.asarray(similar)


def groups(looks: np.ndarray, named: Sequence[str] = ()) -> np.ndarray:
    """Return group numbers [N] of images; images linked by a chain of near-duplicates share one.

    Args:
        looks: As from `looks`, of N images.
        named: Known group of each image, "" for none; images of one known group are linked, too.
    """
    first: dict[str, int] = {}
    same = [(i, first.setdefault(name, i)) for i, name in enumerate(named) if name]
    return linked([*pairs(looks, looks), *same], len(looks))


def linked(links: Sequence[tuple[int, int]], count: int) -> np.ndarray:
    """Return group numbers [N] of N images; images linked by a chain of pairs share one."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    ends = np.array(links, int).reshape(-1, 2)
    graph = coo_matrix((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), (count, count))
    return np.asarray(connected_components(graph, directed=False)[1])


def halves(groups: np.ndarray, seed: int) -> np.ndarray:
    """Return a random half, 0 or 1, for each of N images; images of a group share one.

    Args:
        groups: Number of each image's group, [N].
        seed: Seed of the draw.
    """
    _, which = np.unique(groups, return_inverse=True)
    parts: np.ndarray = np.random.default_rng(seed).permutation(int(which.max()) + 1) % 2
    return parts[which]
