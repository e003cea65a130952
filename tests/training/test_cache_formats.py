"""In which number format frozen activations are held."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rmadapter.backbones import Backbone
from rmadapter.settings import Machine
from rmadapter.training.cache import Cache, Held, Live
from tests.helpers.rounding import assert_same_float32
from tests.helpers.shots import meaningless

IMAGES = meaningless(7)


def of(backbone: Backbone, folder: Path, memory: float) -> Cache:
    return Cache(
        backbone, Machine(device="cpu", cache_memory=memory), folder=folder, progress=False
    )


@pytest.mark.parametrize("memory", [4.0, 0.0])
def test_tokens_are_held_in_the_number_format_of_the_training(
    tiny_clip: Backbone, tmp_path: Path, memory: float
) -> None:
    """In memory or in a file; features stay in float32, and so do the tokens that are asked for
    without a format."""
    cache = of(tiny_clip, tmp_path, memory)
    half, full = cache.source(IMAGES, 2, precision="bf16"), cache.source(IMAGES, 2)
    assert isinstance(half, Held)
    assert isinstance(full, Held)
    assert torch.equal(half.x, full.x.bfloat16())
    assert torch.equal(half.y, full.y.bfloat16())
    assert_same_float32(half.features, full.features)
    assert len(list(tmp_path.glob("frozen-*.bin"))) == (0 if memory else 2)
    again = of(tiny_clip, tmp_path, memory).source(
        IMAGES, 2, precision="bf16"
    )  # from the file, if there is one
    assert isinstance(again, Held)
    assert torch.equal(again.x, half.x)
    assert (
        cache.source(IMAGES, None, precision="bf16").batch(torch.arange(7)).features.dtype
        == torch.float32
    )


def test_states_that_are_computed_on_demand_are_those_that_are_held(
    tiny_clip: Backbone, tmp_path: Path
) -> None:
    """Also where a loss asks for them, within the number format of a training step."""
    cache, held = (
        Cache(tiny_clip, Machine(device="cpu", cache_memory=m), progress=False) for m in (0.0, 4.0)
    )
    live, rows = cache.source(IMAGES, 2), torch.arange(7)
    assert isinstance(live, Live)
    with torch.autocast("cpu", torch.bfloat16):
        found = live.batch(rows)
    for name in ("features", "x", "y"):
        assert_same_float32(getattr(found, name), getattr(held.source(IMAGES, 2).batch(rows), name))
