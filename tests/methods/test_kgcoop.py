"""KgCoOp against a plain forward pass of open_clip's modules, and as a whole on eight images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.methods.coop import CoOp
from rmadapter.methods.kgcoop import KgCoOp
from rmadapter.settings import configured
from rmadapter.training.contract import Shots
from tests.helpers.context_prompts import (
    CLASSES,
    LABELS,
    assert_same_as_plain,
    eight_shots,
    knowledge,
    plain_logits,
    plain_text,
)
from tests.helpers.shots import logits_of
from tests.helpers.slow import ci_except


@pytest.mark.parametrize("name", ci_except(["tiny_clip", "tiny_hf"], "tiny_clip"))
def test_loss_and_gradient_are_the_plain_ones(name: str, request: pytest.FixtureRequest) -> None:
    def plain(learner: Any, shots: Shots) -> Tensor:
        classes = plain_text(learner.backbone, CLASSES, learner.ctx)
        ce = F.cross_entropy(plain_logits(learner.backbone, shots, classes), LABELS)
        return ce + 8 * knowledge(learner.backbone, classes)

    # from noise: "a photo of a" is at a distance of 0
    assert_same_as_plain(KgCoOp(context=""), request.getfixturevalue(name), plain)


@pytest.mark.ci
def test_weight_zero_is_coop_and_a_large_one_stays_near_the_written_prompts(
    tiny_clip: Backbone,
) -> None:
    fields = {"context": "", "epochs": 60, "batch_size": 8, "learning_rate": 0.02}
    shots = eight_shots(tiny_clip)
    coop = configured(CoOp(), fields).fit(tiny_clip, shots)
    weights = {
        w: configured(KgCoOp(), {**fields, "distance_weight": w}).fit(tiny_clip, shots)
        for w in (0, 0.01, 8.0)
    }
    assert torch.equal(logits_of(weights[0], shots), logits_of(coop, shots))
    last = {w: fitted.trained.history[-1]["distance"] / w for w, fitted in weights.items() if w}
    assert last[8.0] < 0.5 * last[0.01]
