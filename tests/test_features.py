"""Frozen activations of a set, against the model's own on each batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rmadapter.backbone import Backbone
from rmadapter.config import Config
from rmadapter.data.images import ImageSet
from rmadapter.features import freeze_images
from rmadapter.model import AdaptedCLIP


@pytest.mark.parametrize("first_block", [1, 4])
def test_batches_are_what_the_tower_gives(tiny_clip: Backbone, first_block: int) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 255, (40, 50, 3), dtype=np.uint8) for _ in range(7)]
    images = ImageSet.from_lists(arrays, ["a", "b"] * 3 + ["a"])
    model = AdaptedCLIP(tiny_clip, Config.make({"first_block": first_block}))
    frozen = freeze_images(model, images, batch_size=3, progress=False)
    assert len(frozen) == 7
    rows = [5, 0, 6]
    batch = frozen.batch(torch.tensor(rows), model.device)
    from PIL import Image

    pictures = torch.stack([tiny_clip.preprocess(Image.fromarray(arrays[i])) for i in rows])
    expected = model.frozen("image", pictures)
    torch.testing.assert_close(batch.x, expected.x)
    torch.testing.assert_close(batch.y, expected.y)
    torch.testing.assert_close(batch.features, expected.features)
    assert batch.y.ndim == (2 if first_block == 4 else 3)  # of the top block only the token that is read is kept
    assert not batch.x.is_inference()
