"""tools/odd_images.py: plain cases are found, it goes on where it was, and its table is that of its
lines."""

from __future__ import annotations

import numpy as np
import odd_images
from PIL import Image

from rmadapter.curate.suspects import measure
from rmadapter.data.read import ImageSet


def test_noise_that_is_blurred_is_found_and_as_it_is_not() -> None:
    rng = np.random.default_rng(0)
    noise = tuple(
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)) for _ in range(40)
    )
    images = ImageSet(noise, (0,) * 40, ("a",))
    measured = measure(noise)
    assert odd_images.blurred(images, measured, 4, seed=1) == 1
    assert odd_images.blurred(images, measured, 0, seed=1) == 0


def test_a_stranger_is_found_where_the_others_are_close_together() -> None:
    rng = np.random.default_rng(0)
    close, far = rng.normal([10, 0, 0], 0.1, (120, 3)), np.array([[0.0, 10, 0]])
    assert odd_images.strangers(close, np.arange(120), far, seed=1) == 1
    assert odd_images.strangers(close, np.arange(120), close[:1], seed=1) == 0
