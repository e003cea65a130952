"""CoCoOp against a plain forward pass of open_clip's modules, and as a whole on eight images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rmadapter.backbone import Backbone, load_backbone
from rmadapter.bench.methods.base import Training
from rmadapter.bench.methods.cocoop import CoCoOp
from test_coop import CLASSES, LABELS, eight, leaves_no_trace, overfits, plain_logits, same_as_plain, states
from test_prompts import plain_text


def plain_rows(learner: Any, backbone: Backbone, train: Training) -> Tensor:
    """Logits of the pictures 5, 0 and 3: each has class features of its own."""
    features = F.normalize(states(train).features[[5, 0, 3]], dim=-1)
    hidden = (features @ learner.down.weight.T + learner.down.bias).clamp(min=0)
    shifts = hidden @ learner.up.weight.T + learner.up.bias
    rows = [
        plain_logits(backbone, train, plain_text(backbone, CLASSES, learner.ctx + shift))[i]
        for i, shift in enumerate(shifts)
    ]
    return torch.stack(rows)


@pytest.mark.parametrize("name", ["tiny_clip", "tiny_hf"])
def test_loss_and_gradients_are_the_plain_ones(name: str, request: pytest.FixtureRequest) -> None:
    backbone = request.getfixturevalue(name)

    def plain(learner: Any, train: Training) -> Tensor:
        return F.cross_entropy(plain_rows(learner, backbone, train), LABELS)

    # The meta-net has two hidden units here; the seed is one of those with which both are alive.
    assert same_as_plain(CoCoOp(context="a photo of the"), backbone, plain, seed=2)


def test_an_image_is_scored_alike_in_any_company(tiny_clip: Backbone) -> None:
    train = eight(tiny_clip)
    score = CoCoOp(epochs=1).fit(tiny_clip, train).for_classes(CLASSES)
    alone = torch.cat([score(train.frozen().batch(torch.tensor([i]), train.device)) for i in range(8)])
    torch.testing.assert_close(score(states(train)), alone)
    assert not alone.requires_grad


def test_parameters_are_those_of_the_code() -> None:
    # The released prompt learner: context of 4 x 512; 512 -> 32 -> 512, both with biases
    assert CoCoOp().parameters(load_backbone("ViT-B-16/none")) == 4 * 512 + (512 * 32 + 32) + (32 * 512 + 512) == 35_360


def test_eight_images_are_learned_by_heart(tiny_clip: Backbone) -> None:
    assert overfits(CoCoOp(epochs=30, learning_rate=0.02), tiny_clip)


@pytest.mark.parametrize("name", ["tiny_clip", "tiny_hf"])
def test_a_fit_leaves_no_trace(name: str, request: pytest.FixtureRequest) -> None:
    assert leaves_no_trace(CoCoOp(epochs=2), request.getfixturevalue(name))
