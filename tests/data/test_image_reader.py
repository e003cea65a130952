"""An image file is decoded once for pixels, near-duplicate features and SHA-256."""

from __future__ import annotations

import hashlib
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rmadapter.data.decode import image_error
from rmadapter.data.duplicates import looks
from rmadapter.data.image_reader import ImageReader
from rmadapter.data.image_set import ImageSet
from rmadapter.errors import UserError
from tests.helpers.decodes import count_decodes


def small(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image.resize((4, 4)), np.float32))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    found = [tmp_path / f"{name}.png" for name in "abc"]
    for seed, path in enumerate(found):
        noise = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), np.uint8)
        Image.fromarray(noise).save(path)
    return found


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    return count_decodes(monkeypatch)


def test_one_pass_serves_pixels_looks_and_content(files: list[Path], decodes: Counter[str]) -> None:
    expected = [small(Image.open(path)) for path in files]
    images = ImageSet(tuple(files), (0, 1, 1), ("cat", "dog"))
    images.read(small)
    part = images.subset([2, 0])
    for row, image in enumerate(part.images):
        assert torch.equal(part.reader.pixels(image, small), expected[[2, 0][row]])
    assert part.contents == tuple(hashlib.sha256(files[i].read_bytes()).digest() for i in (2, 0))
    assert part.looks().shape == (2, 2, 64 + 32 * 32)
    assert decodes == {str(path): 1 for path in files}


def test_looks_come_with_requested_pixels(files: list[Path], decodes: Counter[str]) -> None:
    reader = ImageReader()
    reader.pixels(files[0], small)
    first = reader.thumbprints(files[:1])  # decoded again: nobody had requested them before
    reader.pixels(files[1], small)
    both = reader.thumbprints(files[:2])
    assert [decodes[str(path)] for path in files] == [2, 1, 0]
    assert both[0] == first[0]
    assert np.array_equal(looks(both)[0], looks(ImageReader().thumbprints(files))[0])


def test_pixels_are_kept_once_within_memory(files: list[Path], decodes: Counter[str]) -> None:
    one = small(Image.open(files[0])).nbytes
    reader = ImageReader(room=2 * one)
    assert reader.read(files, small) == ["", "", ""]
    kept = sum(decodes[str(path)] == 1 for path in files if reader.pixels(path, small).nbytes)
    assert kept == 2
    assert sum(decodes.values()) == 4
    reader.read(files[:1], small)
    before = decodes.total()
    reader.pixels(files[0], lambda image: small(image) + 1)
    assert decodes.total() == before + 1
    reader.pixels(files[0], small)
    assert decodes.total() == before + 1
    reader.pixels(files[0], small)
    assert decodes.total() == before + 2


def test_unreadable_images_are_named_with_a_way_out(files: list[Path]) -> None:
    files[1].write_bytes(files[1].read_bytes()[:900])
    files[2].write_bytes(b"noise")
    assert image_error(files[1], header=True) == ""
    assert files[2].name in image_error(files[2], header=True)
    first, *errors = ImageReader().read(files, small)
    assert first == ""
    assert [path.name in error for path, error in zip(files[1:], errors, strict=True)] == [True] * 2
    with pytest.raises(UserError, match=r"b\.png: .*1 more.*--skip-bad"):
        ImageSet(tuple(files), (0, 0, 0), ("cat",)).read(small)


def test_images_in_memory_and_an_empty_pickle(files: list[Path], decodes: Counter[str]) -> None:
    array = np.asarray(Image.open(files[0]))
    reader = ImageReader()
    assert reader.read([array, files[0]], small) == ["", ""]
    assert torch.equal(reader.pixels(array, small), reader.pixels(files[0], small))
    assert len(set(reader.thumbprints([array, files[0], Image.fromarray(array)]))) == 1
    copy = pickle.loads(pickle.dumps(reader))
    copy.thumbprints(files[:1])
    assert decodes == {str(files[0]): 2}
