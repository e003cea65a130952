"""CoOp against a plain forward pass of open_clip's modules, and as a whole on eight images."""

from __future__ import annotations

from typing import Any

import pytest
import torch.nn.functional as F
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.methods.coop import CoOp, CoOpFewShot
from rmadapter.methods.parts.learned_prompts import limit_tokens
from rmadapter.settings import configured
from rmadapter.training.contract import Shots
from tests.helpers.context_prompts import (
    CLASSES,
    LABELS,
    assert_same_as_plain,
    plain_logits,
    plain_text,
)
from tests.helpers.shots import noise_images, shots_of


@pytest.mark.parametrize("name", ["tiny_clip", "tiny_hf"])
@pytest.mark.parametrize("context", ["a photo of the", ""])
def test_loss_and_gradient_are_the_plain_ones(
    name: str, context: str, request: pytest.FixtureRequest
) -> None:
    def plain(learner: Any, shots: Shots) -> Tensor:
        classes = plain_text(learner.backbone, CLASSES, learner.ctx)
        return F.cross_entropy(plain_logits(learner.backbone, shots, classes), LABELS)

    assert_same_as_plain(CoOp(context=context), request.getfixturevalue(name), plain)


@pytest.mark.parametrize(("shots", "share"), [(1, 0.25), (2, 0.5), (4, 0.5), (5, 1.0)])
def test_the_few_shot_recipe_trains_longer_with_more_shots(
    shots: int, share: float, tiny_clip: Backbone
) -> None:
    few = shots_of(tiny_clip, noise_images(2 * shots, CLASSES[:2]))
    fitted = configured(CoOpFewShot(), {"epochs": 8, "batch_size": 64}).fit(tiny_clip, few)
    assert fitted.trained.step == 8 * share
    assert len(fitted.tensors["ctx"]) == limit_tokens(tiny_clip, 16)
