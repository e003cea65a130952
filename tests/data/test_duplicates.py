"""Near-duplicates: copies, sizes, mirror images, neighbours; and images that are only smooth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from rmadapter.data import duplicates
from rmadapter.data.decode import ImageSource
from rmadapter.data.duplicates import groups, halves, pairs
from rmadapter.data.image_set import ImageReader


def scene(seed: int, size: int = 96) -> Image.Image:
    """Blobs, smooth enough to survive another size."""
    small = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)


def looks(images: Sequence[ImageSource]) -> np.ndarray:
    return duplicates.looks(ImageReader().thumbprints(images))


def test_copies_are_found_and_other_images_are_not(tmp_path: Path) -> None:
    scene(0).save(tmp_path / "a.jpg", quality=60)
    burst = Image.fromarray(np.roll(np.asarray(scene(0)), 1, axis=1))  # the camera moved by a pixel
    same = [scene(0), tmp_path / "a.jpg", scene(0).resize((300, 300)), ImageOps.mirror(scene(0))]
    found = looks([*same, burst, *(scene(seed) for seed in range(1, 30))])
    assert found.shape == (34, 2, 64 + 32 * 32)
    assert sorted({j for i, j in pairs(found[:1], found)}) == [0, 1, 2, 3, 4]
    numbers = groups(found).tolist()
    assert len(set(numbers[:5])) == 1
    assert len(set(numbers)) == 30


def test_images_of_one_colour_are_the_same_if_the_colour_is() -> None:
    colours = [(255, 255, 255), (250, 10, 10), (255, 255, 255), (249, 10, 10)]
    found = looks([Image.new("RGB", (40, 30), colour) for colour in colours])
    assert groups(found).tolist() == [0, 1, 0, 2]
    assert set(pairs(found[:1], found[1:])) == {(0, 1)}


def test_a_chain_is_one_group() -> None:
    """The first and the last are no duplicates, but images between connect them."""
    first, last = (np.asarray(scene(seed), float) for seed in (0, 1))
    steps = [first + (last - first) * share for share in np.linspace(0, 1, 12)]
    found = looks([Image.fromarray(step.astype(np.uint8)) for step in steps])
    assert (0, 11) not in set(pairs(found, found))
    assert len(set(groups(found).tolist())) == 1


def test_smooth_images_that_share_their_bits_are_not_the_same() -> None:
    """Both grow lighter to the right everywhere, the one evenly and the other at its end."""
    x = np.linspace(0, 1, 64)
    rows = [(255 * y).astype(np.uint8) for y in (x, 0.1 * x + 0.9 * x**12)]
    found = looks([Image.fromarray(np.tile(row, (64, 1))) for row in rows])
    assert (found[0, 0, :64] == found[1, 0, :64]).all()
    assert len(set(groups(found).tolist())) == 2


def test_named_groups_join_chains() -> None:
    found = looks([scene(0), scene(1), scene(2), scene(0, 200), scene(3), scene(4)])
    assert len(set(groups(found).tolist())) == 5
    numbers = groups(found, ["", "p", "p", "p", "", ""]).tolist()  # 0 is nearly 3, which is of p
    assert len({*numbers[:4]}) == 1
    assert len({*numbers}) == 3


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    found = looks([scene(seed % 5) for seed in range(13)])
    whole = sorted(pairs(found, found))
    monkeypatch.setattr(duplicates, "CHUNK_SIZE", 4)
    assert sorted(pairs(found, found)) == whole
    assert groups(looks([])).tolist() == []


def test_halves_have_as_many_groups_and_share_none() -> None:
    numbers = np.array([7, 7, 7, 3, 0, 0, 12, 5, 5, 9, 1])  # 7 groups
    draws = {tuple(halves(numbers, seed).tolist()) for seed in range(20)}
    assert len(draws) > 5
    for half in map(np.array, draws):
        assert sorted(len({*numbers[half == side].tolist()}) for side in (0, 1)) == [3, 4]
        assert not {*numbers[half == 0].tolist()} & {*numbers[half == 1].tolist()}
    assert halves(numbers, 3).tolist() == halves(numbers, 3).tolist()
    assert halves(np.array([4, 4]), 1).tolist() == [0, 0]
