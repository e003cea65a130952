"""What a training does where a device's memory ends."""

from __future__ import annotations

import gc
import re

import pytest

from rmadapter.backbones import Backbone, load_backbone
from rmadapter.errors import UserError
from rmadapter.methods import load_method
from tests.helpers.pretend_gpu import limited, plugged_in
from tests.helpers.shots import noisy_colors, shots_of

SMALL = {"epochs": 1, "first_block": 2, "rank": 4}


def test_the_batch_size_that_is_named_fits(tiny_clip: Backbone) -> None:
    """In a device that has room for three quarters of what the first one took."""
    images = noisy_colors(16)

    def train(batch_size: int) -> None:
        method = load_method("rmadapter", {**SMALL, "batch_size": batch_size})
        method.fit(gpu, shots_of(gpu, images, device=device.type))

    def refused() -> str:
        """Return the message; the traceback, which is dropped, holds the tensors of the step."""
        with pytest.raises(UserError, match="64 images and 4 classes") as told:
            train(64)
        return str(told.value)

    with plugged_in() as device:
        gpu = load_backbone(tiny_clip.name).to(device)
        with limited() as free:
            train(64)
        with limited(0.75 * free.peak):
            found = re.search(r"batch_size=(\d+)", refused())
            gc.collect()
            assert found
            train(int(found[1]))
