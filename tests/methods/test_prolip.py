"""ProLIP against the backbone's own forward pass with another projection, and Adam by hand."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rmadapter.backbones import Backbone
from rmadapter.data.read import read_images
from rmadapter.errors import UserError
from rmadapter.methods.prolip import ProLIP
from rmadapter.methods.zero_shot import ZeroShot
from rmadapter.settings import configured
from rmadapter.training.contract import Known
from tests.helpers.rounding import double
from tests.helpers.shots import logits_of, noise_images, pixels_of, shots_of
from tests.helpers.slow import ci_except

NAMES = ("cat", "red car")
LINEAR = "visual.head.proj.weight"
PROJECTION = {"tiny_clip": "visual.proj", "tiny_hf": LINEAR, "tiny_siglip": LINEAR}


def plain_logits(
    model: Any, backbone: Backbone, pixels: torch.Tensor, names: tuple[str, ...]
) -> torch.Tensor:
    """By an open_clip model's own forward passes."""
    tokens = backbone.tokenizer([f"a photo of a {name}." for name in names])
    x = F.normalize(model.encode_image(pixels), dim=-1)
    w = F.normalize(model.encode_text(tokens), dim=-1)
    return model.logit_scale.exp() * x @ w.T


@pytest.mark.parametrize("name", ci_except(PROJECTION, "tiny_clip"))
def test_logits_are_those_of_a_backbone_with_that_projection(
    name: str, request: pytest.FixtureRequest
) -> None:
    given: Backbone = request.getfixturevalue(name)
    backbone = double(given)
    other: Any = copy.deepcopy(backbone.model)
    weight = other.get_parameter(PROJECTION[name])
    weight.data = weight.data + 0.1 * torch.randn_like(weight)
    tensors = {"weight": (weight if name == "tiny_clip" else weight.T).detach()}
    fitted = ProLIP().restore(backbone, Known(NAMES, ("a photo of a {}.",)), tensors)
    assert fitted.parameters == ProLIP().parameters(given).trained == weight.numel()
    pixels = torch.randn(3, 3, 32, 32).double()
    with torch.no_grad():
        expected = plain_logits(other, backbone, pixels, NAMES)
        before = plain_logits(backbone.model, backbone, pixels, NAMES)
    torch.testing.assert_close(
        fitted.score(NAMES)(fitted.states(pixels)), expected, rtol=1e-9, atol=1e-9
    )
    assert not torch.allclose(expected, before, atol=1e-3)


@pytest.mark.parametrize("strength", [1.0, 50.0])
def test_steps_are_adams_on_cross_entropy_and_the_distance_from_the_start(
    tiny_clip: Backbone, colors: Path, strength: float
) -> None:
    """As methods/ProLIP.py of the released code defines them: three steps on all shots, along a
    cosine."""
    shots = shots_of(tiny_clip, read_images(colors)["train"])
    method = configured(ProLIP(strength=strength), {"epochs": 3, "learning_rate": 0.01})
    fitted = method.fit(tiny_clip, shots)
    clip: Any = copy.deepcopy(tiny_clip.model)
    for parameter in clip.parameters():
        parameter.requires_grad_(parameter is clip.visual.proj)
    start = clip.visual.proj.detach().clone()
    pixels = pixels_of(tiny_clip, shots.images)
    labels = shots.labels
    optimizer = torch.optim.Adam([clip.visual.proj], lr=0.01, eps=1e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
    most, losses = max(torch.bincount(labels).tolist()), []
    for _ in range(3):
        optimizer.zero_grad()
        logits = plain_logits(clip, tiny_clip, pixels, shots.classes)
        loss = (
            F.cross_entropy(logits, labels)
            + strength / most * (clip.visual.proj - start).square().sum()
        )
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step()
        scheduler.step()
    assert [step["loss"] for step in fitted.trained.history] == pytest.approx(losses, rel=1e-3)
    torch.testing.assert_close(
        fitted.tensors["weight"], clip.visual.proj.detach(), rtol=1e-2, atol=1e-4
    )
    with torch.no_grad():
        expected = plain_logits(clip, tiny_clip, pixels, NAMES)
    torch.testing.assert_close(logits_of(fitted, shots, NAMES), expected, rtol=1e-2, atol=1e-2)


def test_each_epoch_trains_on_the_next_view(tiny_clip: Backbone) -> None:
    """A projection that hardly moves: the loss of an epoch is that of its view."""
    shots = shots_of(tiny_clip, noise_images(6), augmentation="standard", views=2)
    fitted = configured(ProLIP(), {"epochs": 3, "learning_rate": 1e-12}).fit(tiny_clip, shots)
    losses = [step["loss"] for step in fitted.trained.history]
    assert losses[0] == pytest.approx(losses[2], rel=1e-5)
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)
    weights = ZeroShot().fit(tiny_clip, shots).score()
    for view in (0, 1):
        states = shots.source().batch(torch.arange(6), view)
        assert losses[view] == pytest.approx(
            float(F.cross_entropy(weights(states), shots.labels)), rel=1e-4
        )


def test_a_backbone_without_a_projection_is_refused(tiny_clip: Backbone) -> None:
    backbone: Any = double(tiny_clip)
    backbone.model.visual.proj = None
    with pytest.raises(
        UserError, match=r"trains the linear projection after the image encoder, but .+ has none"
    ):
        ProLIP().parameters(backbone)
