"""Frozen activations of a set, against the model's own on each batch; in memory, in a file, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rmadapter.backbone import Backbone
from rmadapter.config import Config
from rmadapter.data.images import ImageSet
from rmadapter.data.transforms import Pictures, train_transform
from rmadapter.features import FrozenImages, cache_key, freeze_images
from rmadapter.model import AdaptedCLIP

ARRAYS = [np.random.default_rng(i).integers(0, 255, (40, 50, 3), dtype=np.uint8) for i in range(7)]
IMAGES = ImageSet.from_lists(ARRAYS, ["a", "b"] * 3 + ["a"])


def configured(backbone: Backbone, **fields: Any) -> AdaptedCLIP:
    return AdaptedCLIP(backbone, Config.make({"first_block": 2, "rank": 4, **fields}))


def same(one: FrozenImages | None, two: FrozenImages | None) -> bool:
    assert one is not None
    assert two is not None
    return torch.equal(one.x, two.x) and torch.equal(one.y, two.y) and torch.equal(one.features, two.features)


@pytest.mark.parametrize("first_block", [1, 4])
def test_batches_are_what_the_tower_gives(tiny_clip: Backbone, first_block: int) -> None:
    model = configured(tiny_clip, first_block=first_block)
    frozen = freeze_images(model, IMAGES, batch_size=3, progress=False)
    assert frozen is not None
    assert len(frozen) == 7
    rows = torch.tensor([5, 0, 6])
    batch = frozen.batch(rows, model.device)
    pictures = torch.stack([tiny_clip.preprocess(Image.fromarray(ARRAYS[i])) for i in rows])
    expected = model.frozen("image", pictures)
    torch.testing.assert_close(batch.x, expected.x)
    torch.testing.assert_close(batch.y, expected.y)
    torch.testing.assert_close(batch.features, expected.features)
    assert batch.y.ndim == (2 if first_block == 4 else 3)  # of the top block only the token that is read is kept
    assert not batch.x.is_inference()


def test_views_are_augmented_pictures_in_turn(tiny_clip: Backbone) -> None:
    model = configured(tiny_clip, augmentation="standard", views=2, seed=5)
    frozen = freeze_images(model, IMAGES, progress=False)
    assert frozen is not None
    assert (len(frozen), frozen.views, len(frozen.x)) == (7, 2, 14)
    for epoch, view in ((0, 0), (1, 1), (2, 0)):
        pictures = Pictures(IMAGES, train_transform(tiny_clip), (5, view))
        expected = model.frozen("image", torch.stack([pictures[i] for i in (3, 4)]))
        batch = frozen.batch(torch.tensor([3, 4]), model.device, epoch)
        torch.testing.assert_close(batch.x, expected.x)


def test_beyond_the_budget_a_file_takes_over(
    tiny_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory = freeze_images(configured(tiny_clip), IMAGES, progress=False)
    model = configured(tiny_clip, cache_memory=0)
    in_file = freeze_images(model, IMAGES, folder=tmp_path, progress=False)
    assert same(in_memory, in_file)
    files = list(tmp_path.iterdir())
    assert [file.name for file in files] == [f"frozen-{cache_key(model, IMAGES)}.bin"]
    monkeypatch.setattr("rmadapter.features._fill", None)  # the second time the file is read, not computed
    assert same(in_memory, freeze_images(model, IMAGES, folder=tmp_path, progress=False))


def test_without_room_there_is_no_cache(tiny_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = configured(tiny_clip, cache_memory=0)
    assert freeze_images(model, IMAGES, progress=False) is None
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    assert freeze_images(model, IMAGES, folder=tmp_path, progress=False) is None
    assert not list(tmp_path.iterdir())


def test_an_interrupted_file_leaves_nothing(tiny_clip: Backbone, tmp_path: Path) -> None:
    broken = ImageSet.from_lists([*ARRAYS[:3], tmp_path / "missing.png"], ["a", "b", "a", "b"])
    model = configured(tiny_clip, cache_memory=0)
    with pytest.raises((OSError, ValueError)):
        freeze_images(model, broken, folder=tmp_path, batch_size=2, progress=False)
    assert not list(tmp_path.iterdir())


def test_the_key_follows_everything_that_activations_depend_on(tiny_clip: Backbone, tiny_siglip: Backbone) -> None:
    keys = [
        cache_key(configured(tiny_clip), IMAGES),
        cache_key(configured(tiny_clip, first_block=3), IMAGES),
        cache_key(configured(tiny_clip, augmentation="standard", views=2), IMAGES),
        cache_key(configured(tiny_clip, augmentation="standard", views=2, seed=2), IMAGES),
        cache_key(configured(tiny_siglip), IMAGES),
        cache_key(configured(tiny_clip), IMAGES.subset(range(6))),
    ]
    assert len(set(keys)) == len(keys)
    assert cache_key(configured(tiny_clip, rank=8, alpha=0.3), IMAGES) == keys[0]  # adapters do not matter
