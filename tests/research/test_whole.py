"""whole.py: its plain pass is open_clip's own, in what it gives and in what it costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from whole import image_states, whole

from rmadapter.backbones import Backbone
from rmadapter.methods.coop import CoOp
from tests.helpers.deep_prompts import NAMES


def counted(run: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """What a function gives, and the operations that it took."""
    with FlopCounterMode(display=False) as counter:
        found = run()
    return found.detach(), counter.get_total_flops()


def test_prompts_are_as_long_as_the_backbone_takes_them(tiny_clip: Backbone) -> None:
    clip: Any = tiny_clip.model
    tokens = tiny_clip.tokenizer([f"a photo of a {name}." for name in NAMES])
    expected, operations = counted(lambda: clip.encode_text(tokens))
    with whole():
        learner = CoOp().module(tiny_clip)
        prompts = learner.bind(NAMES, ())
        for run in (lambda: tiny_clip.text.frozen(tokens).features, prompts):
            found, executed = counted(run)
            torch.testing.assert_close(
                *(x / x.norm(dim=-1, keepdim=True) for x in (found, expected))
            )
            assert executed == operations
    lean, fewer = counted(learner.bind(NAMES, ()))
    assert fewer < operations / 2
    torch.testing.assert_close(lean, expected / expected.norm(dim=-1, keepdim=True))


@pytest.mark.parametrize("first", [None, 1, 3])
def test_image_features_and_tokens_are_those_of_the_plain_pass(
    first: int | None, tiny_clip: Backbone
) -> None:
    encoder, pixels = tiny_clip.image, torch.randn(2, 3, 32, 32)
    known = encoder.frozen(pixels, first)
    (found, executed), (_, operations) = (
        counted(
            lambda: (
                image_states(encoder, pixels, known).x if first else tiny_clip.image.visual(pixels)
            )
        ),
        counted(lambda: tiny_clip.model.encode_image(pixels)),  # type: ignore[operator]
    )
    states = image_states(encoder, pixels, known)
    if first is None:
        torch.testing.assert_close(states.features, known.features)
        assert executed == operations
    else:
        assert torch.equal(found, known.x)
        assert executed < operations
