"""CoOp against a plain forward pass of open_clip's modules, and as a whole on eight images."""

from __future__ import annotations

from typing import Any

import pytest
import torch.nn.functional as F
from torch import Tensor

from rmadapter.methods.coop import CoOp
from rmadapter.training.contract import Shots
from tests.helpers.context_prompts import (
    CLASSES,
    LABELS,
    assert_same_as_plain,
    plain_logits,
    plain_text,
)


@pytest.mark.parametrize("name", ["tiny_clip", "tiny_hf"])
@pytest.mark.parametrize("context", ["a photo of the", ""])
def test_loss_and_gradient_are_the_plain_ones(
    name: str, context: str, request: pytest.FixtureRequest
) -> None:
    def plain(learner: Any, shots: Shots) -> Tensor:
        classes = plain_text(learner.backbone, CLASSES, learner.ctx)
        return F.cross_entropy(plain_logits(learner.backbone, shots, classes), LABELS)

    assert_same_as_plain(CoOp(context=context), request.getfixturevalue(name), plain)
