"""CoCoOp against a plain forward pass of open_clip's modules, and as a whole on eight images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.methods.cocoop import CoCoOp
from rmadapter.settings import configured
from rmadapter.training.contract import Shots
from tests.helpers.context_prompts import (
    CLASSES,
    LABELS,
    ROWS,
    assert_same_as_plain,
    eight_shots,
    plain_logits,
    plain_text,
)
from tests.helpers.rounding import assert_same_float32
from tests.helpers.shots import logits_of, pixels_of
from tests.helpers.slow import ci_except


def plain_rows(learner: Any, shots: Shots) -> Tensor:
    """Logits of ROWS: each image has class features of its own."""
    backbone: Any = learner.backbone
    pixels = pixels_of(backbone, shots.images, ROWS).to(learner.ctx.dtype)
    features = F.normalize(backbone.model.encode_image(pixels), dim=-1)
    hidden = (features @ learner.down.weight.T + learner.down.bias).clamp(min=0)
    shifts = hidden @ learner.up.weight.T + learner.up.bias
    rows = [
        plain_logits(backbone, shots, plain_text(backbone, CLASSES, learner.ctx + shift))[i]
        for i, shift in enumerate(shifts)
    ]
    return torch.stack(rows)


@pytest.mark.parametrize("name", ci_except(["tiny_clip", "tiny_hf"], "tiny_clip"))
def test_loss_and_gradients_are_the_plain_ones(name: str, request: pytest.FixtureRequest) -> None:
    def plain(learner: Any, shots: Shots) -> Tensor:
        return F.cross_entropy(plain_rows(learner, shots), LABELS)

    # The meta-net has two hidden units here; the seed is one of those with which both are alive.
    assert_same_as_plain(
        CoCoOp(context="a photo of the"), request.getfixturevalue(name), plain, seed=2
    )


def test_scores_do_not_depend_on_the_batch(tiny_clip: Backbone) -> None:
    shots = eight_shots(tiny_clip)
    fitted = configured(CoCoOp(), {"epochs": 1}).fit(tiny_clip, shots)
    score, held = fitted.score(), shots.source()
    alone = torch.cat([score(held.batch(torch.tensor([i]))) for i in range(8)])
    assert_same_float32(logits_of(fitted, shots), alone)
    assert not alone.requires_grad
