"""CoOp against a plain forward pass of open_clip's modules, and as a whole on eight images."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.data.read import ImageSet
from rmadapter.methods.coop import CoOp
from rmadapter.methods.zero_shot import ZeroShot
from rmadapter.settings import configured
from rmadapter.training.contract import Shots
from tests.helpers.rounding import FACTOR, assert_rounds_like, double
from tests.helpers.shots import gradients, logits_of, pixels_of, shots_of, untrained
from tests.methods.parts.test_context import plain_text

CLASSES = ("cat", "a small red car", "dog", "tree house")
NEW = ("blue bird", "house")
ROWS = (5, 0, 3)
LABELS = torch.tensor([2, 0, 1])  # of these rows


def eight(backbone: Backbone, seed: int = 1) -> Shots:
    """Two noisy images of one colour for each of four classes."""
    colors = np.repeat([(40, 60, 220), (30, 170, 60), (220, 40, 30), (200, 200, 40)], 2, axis=0)
    noise = np.random.default_rng(0).normal(colors[:, None, None], 40, (8, 32, 32, 3))
    pixels = np.clip(noise, 0, 255).astype(np.uint8)
    return shots_of(
        backbone, ImageSet.from_lists(list(pixels), [0, 0, 1, 1, 2, 2, 3, 3], CLASSES), seed=seed
    )


def same_as_plain(
    method: Any,
    backbone: Backbone,
    plain: Callable[[Any, Shots], Tensor],
    seed: int = 1,
    factor: float = FACTOR,
) -> None:
    """Loss and every gradient of three shots at the start; plain(learner, shots) -> loss of ROWS.

    The method works in float32; so it is the plain way in float64 that says what is right, and in
    float32 how exactly.
    """
    shots = eight(backbone, seed)
    start = untrained(method, backbone, shots)
    exact = copy.deepcopy(start.module).double()
    exact.backbone = double(backbone)
    found = _loss_and_gradients(start.module, start.terms(ROWS)["loss"])
    same, truth = (
        _loss_and_gradients(module, plain(module, shots)) for module in (start.module, exact)
    )
    assert all(gradient.norm() > 0 for gradient in truth[1].values())
    for one, mine, true in zip(same, found, truth, strict=True):
        assert_rounds_like(one, mine, true, factor=factor)


def _loss_and_gradients(learner: Any, loss: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return {"loss": loss.detach()}, gradients(learner, loss)


def plain_logits(backbone: Backbone, shots: Shots, classes: Tensor) -> Tensor:
    """Of ROWS, from pixels on."""
    model: Any = backbone.model
    features = model.encode_image(
        pixels_of(backbone, shots.images, ROWS).to(model.logit_scale.dtype)
    )
    return model.logit_scale.exp() * F.normalize(features, dim=-1) @ F.normalize(classes, dim=-1).T


def the_seed_decides(method: Any, backbone: Backbone) -> bool:
    """Two fits with one seed agree, another seed does not, and nothing asks for gradients of the
    backbone."""
    shots = [eight(backbone, seed) for seed in (1, 1, 2)]
    once, again, other = (logits_of(method.fit(backbone, some), some, NEW) for some in shots)
    still = all(parameter.grad is None for parameter in backbone.model.parameters())
    return (
        once.shape == (8, 2) and torch.equal(once, again) and not torch.equal(once, other) and still
    )


def overfits(method: Any, backbone: Backbone) -> bool:
    shots = eight(backbone)
    fitted = method.fit(backbone, shots)
    loss = [record.get("ce", record["loss"]) for record in fitted.trained.history]
    return loss[-1] < 0.2 * loss[0] and logits_of(fitted, shots).argmax(-1).tolist() == list(
        shots.images.labels
    )


@pytest.mark.parametrize("name", ["tiny_clip", "tiny_hf"])
@pytest.mark.parametrize("context", ["a photo of the", ""])
def test_loss_and_gradient_are_the_plain_ones(
    name: str, context: str, request: pytest.FixtureRequest
) -> None:
    def plain(learner: Any, shots: Shots) -> Tensor:
        classes = plain_text(learner.backbone, CLASSES, learner.ctx)
        return F.cross_entropy(plain_logits(learner.backbone, shots, classes), LABELS)

    same_as_plain(CoOp(context=context), request.getfixturevalue(name), plain)


def test_untrained_context_is_the_written_prompt(tiny_clip: Backbone) -> None:
    """Before the first step: zero-shot CLIP with "a photo of a"."""
    shots = eight(tiny_clip)
    found = logits_of(untrained(CoOp(), tiny_clip, shots).fitted, shots, NEW)
    expected = logits_of(ZeroShot().fit(tiny_clip, shots), shots, NEW)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_parameters_are_those_of_the_code(vit_b16: Backbone) -> None:
    # The released prompt learner: 4 context tokens of width 512
    assert CoOp().parameters(vit_b16) == (2048, 0)


def test_eight_images_are_learned_by_heart(tiny_clip: Backbone) -> None:
    assert overfits(configured(CoOp(), {"epochs": 120, "learning_rate": 0.02}), tiny_clip)


@pytest.mark.parametrize("name", ["tiny_clip", "tiny_hf"])
def test_the_seed_decides(name: str, request: pytest.FixtureRequest) -> None:
    assert the_seed_decides(
        configured(CoOp(context=""), {"epochs": 3}), request.getfixturevalue(name)
    )
