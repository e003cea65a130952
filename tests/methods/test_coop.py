"""CoOp against a plain forward pass of open_clip's modules, and as a whole on eight images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.methods.coop import CoOp
from rmadapter.methods.zero_shot import ZeroShot
from rmadapter.training.contract import Shots
from tests.helpers.context_prompts import (
    CLASSES,
    LABELS,
    NEW,
    assert_same_as_plain,
    eight_shots,
    plain_logits,
    plain_text,
)
from tests.helpers.shots import logits_of, untrained


@pytest.mark.parametrize("name", ["tiny_clip", "tiny_hf"])
@pytest.mark.parametrize("context", ["a photo of the", ""])
def test_loss_and_gradient_are_the_plain_ones(
    name: str, context: str, request: pytest.FixtureRequest
) -> None:
    def plain(learner: Any, shots: Shots) -> Tensor:
        classes = plain_text(learner.backbone, CLASSES, learner.ctx)
        return F.cross_entropy(plain_logits(learner.backbone, shots, classes), LABELS)

    assert_same_as_plain(CoOp(context=context), request.getfixturevalue(name), plain)


def test_untrained_context_is_the_written_prompt(tiny_clip: Backbone) -> None:
    """Before the first step: zero-shot CLIP with "a photo of a"."""
    shots = eight_shots(tiny_clip)
    found = logits_of(untrained(CoOp(), tiny_clip, shots).fitted, shots, NEW)
    expected = logits_of(ZeroShot().fit(tiny_clip, shots), shots, NEW)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
