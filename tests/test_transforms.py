"""Augmentation against torchvision under torch.manual_seed; batches against single pictures."""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as tv

from rmadapter.data.images import ImageSet
from rmadapter.data.transforms import Pictures, batches, train_transform
from rmadapter.errors import UserError

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
AUGMENT = train_transform(SimpleNamespace(image_size=32, mean=MEAN, std=STD))  # type: ignore[arg-type]
PREPROCESS = tv.Compose([tv.Resize((8, 8)), tv.ToTensor()])


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (60, 90, 3), np.uint8)


def five() -> ImageSet:
    return ImageSet.from_lists([noise(i) for i in range(5)], ["a"] * 5)


def test_augmentation_equals_torchvision() -> None:
    picture = Image.fromarray(noise(0))
    for seed in range(5):
        torch.manual_seed(seed)
        crop = tv.RandomResizedCrop(32, (0.08, 1), (3 / 4, 4 / 3), interpolation=tv.InterpolationMode.BICUBIC)
        expected = np.asarray(tv.RandomHorizontalFlip()(crop(picture))).transpose(2, 0, 1) / 255
        expected = (expected - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
        got = AUGMENT(picture, seed)
        assert got.shape == (3, 32, 32)
        assert got.dtype == torch.float32
        assert np.abs(got.numpy() - expected).max() < 1e-5
    assert not torch.equal(AUGMENT(picture, 1), AUGMENT(picture, 2))


def states() -> tuple[Any, ...]:
    numbers = np.random.get_state()[1]
    return random.getstate(), numbers.tobytes(), torch.random.get_rng_state().numpy().tobytes()  # type: ignore


def test_global_generators_stay_untouched() -> None:
    before = states()
    AUGMENT(Image.fromarray(noise(0)), 2**56 - 1)
    list(batches(five(), PREPROCESS, 2))
    list(batches(five(), AUGMENT, 2, key=(1, 1)))
    assert states() == before


@pytest.mark.parametrize("workers", [0, 2])
def test_batches(workers: int) -> None:
    images = five()
    plain = list(batches(images, PREPROCESS, 2, workers))
    assert [batch.shape for batch in plain] == [(2, 3, 8, 8), (2, 3, 8, 8), (1, 3, 8, 8)]
    assert torch.equal(torch.cat(plain), torch.stack([PREPROCESS(Image.fromarray(noise(i))) for i in range(5)]))
    augmented = torch.cat(list(batches(images, AUGMENT, 2, workers, key=(1, 0))))
    assert torch.equal(augmented, torch.cat(list(batches(images, AUGMENT, 3, key=(1, 0)))))


def test_augmentation_depends_on_seed_epoch_and_index() -> None:
    images = ImageSet.from_lists([noise(0)] * 2, ["a"] * 2)
    seen = [Pictures(images, AUGMENT, key)[i] for key in ((1, 0), (1, 1), (2, 0)) for i in (0, 1)]
    assert len({tensor.numpy().tobytes() for tensor in seen}) == 6


def test_pictures_can_be_pickled() -> None:
    pictures = Pictures(five(), AUGMENT, (1, 0))
    first = pictures[0]  # fills whatever is computed on first use
    assert torch.equal(pickle.loads(pickle.dumps(pictures))[0], first)
    assert len(pictures) == 5


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_file_is_one_sentence_from_workers_too(tmp_path: Path, workers: int) -> None:
    (tmp_path / "bad.png").write_bytes(b"")
    images = ImageSet.from_lists([tmp_path / "bad.png"], ["a"])
    with pytest.raises(UserError, match=r"^\S*bad\.png: not a readable image \(the file is empty, 0 bytes\)$"):
        list(batches(images, PREPROCESS, 1, workers))
