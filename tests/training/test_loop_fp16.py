"""Steps in float16 on a CPU, which `minimise` leaves to GPUs: losses are scaled, and what overflows
moves nothing."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from rmadapter.backbones import Backbone
from rmadapter.encoders import Grid, States
from rmadapter.training.loop import Batch, Recipe, Trainer
from tests.helpers.shots import shots_of


def moved(backbone: Backbone, precision: str, factor: float) -> tuple[Tensor, list[float]]:
    """What SGD with a rate of 1 makes of zero weights in the first step that counts; and the scales
    until then."""
    module, x = (
        nn.Linear(4, 2, bias=False),
        torch.randn(8, 4, generator=torch.Generator().manual_seed(0)),
    )
    nn.init.zeros_(module.weight)
    recipe = Recipe(learning_rate=1.0, momentum=0.0, weight_decay=0.0)
    loop, scales = (
        Trainer(module, recipe, shots_of(backbone, precision=precision), lambda name: 1.0),
        list[float](),
    )
    batch = Batch(
        0,
        torch.arange(8),
        torch.zeros(8, dtype=torch.long),
        States(None, Grid(None)),
        torch.Generator(),
    )
    while not module.weight.any() and len(scales) < 20:
        scales.append(loop.scaler.get_scale())
        loop.step(lambda _: factor * (module(x) - 1).float().square().mean(), batch, [1.0], 1.0)
    return module.weight.detach(), scales


def test_a_step_that_overflows_is_left_out_and_the_next_ones_are_scaled_less(
    tiny_clip: Backbone,
) -> None:
    (plain, once), (half, scales) = (
        moved(tiny_clip, precision, 1000.0) for precision in ("fp32", "fp16")
    )
    assert once == [1.0]
    assert len(scales) > 1
    assert all(b == a / 2 for a, b in pairwise(scales))
    torch.testing.assert_close(half, plain, rtol=5e-3, atol=1.0)


def test_gradients_too_small_for_the_format_are_not_lost(tiny_clip: Backbone) -> None:
    plain, half = (moved(tiny_clip, precision, 1e-7)[0] for precision in ("fp32", "fp16"))
    torch.testing.assert_close(half, plain, rtol=5e-2, atol=1e-10)
