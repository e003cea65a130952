"""CLIP-Adapter against its equations, written out with gradients by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rmadapter.backbones import Backbone
from rmadapter.data.read import ImageSet, read_images
from rmadapter.methods.clip_adapter import CLIPAdapter
from rmadapter.settings import configured
from tests.helpers.shots import logits_of, pixels_of, shots_of


def open_clip_features(
    backbone: Backbone, images: ImageSet, names: tuple[str, ...]
) -> tuple[torch.Tensor, ...]:
    """Image features [N, e] and class features [C, e] by the backbone's own forward passes."""
    clip: Any = backbone.model
    pixels = pixels_of(backbone, images)
    with torch.no_grad():
        return clip.encode_image(pixels), clip.encode_text(
            backbone.tokenizer([f"a photo of a {n}." for n in names])
        )


@pytest.mark.parametrize("name", ["tiny_clip", "tiny_hf"])
def test_loss_gradient_and_logits_are_those_of_the_equations(
    name: str, colors: Path, request: pytest.FixtureRequest
) -> None:
    """One step of plain SGD tells the gradient; new classes are classified too."""
    backbone: Backbone = request.getfixturevalue(name)
    shots, method = shots_of(backbone, read_images(colors)["train"]), CLIPAdapter(ratio=0.3)
    one = configured(
        method, {"epochs": 1, "warmup_epochs": 0, "weight_decay": 0.0, "learning_rate": 0.5}
    )
    fitted = one.fit(backbone, shots)

    f, w = open_clip_features(backbone, shots.images, shots.classes)
    w, y = w / w.norm(dim=1, keepdim=True), torch.tensor(shots.images.labels)
    scale = backbone.model.logit_scale.exp()  # type: ignore[operator]
    start = method.module(backbone, shots.seed)
    w1, w2 = start.down.weight.detach().T, start.up.weight.detach().T
    h1 = (f @ w1).clamp(min=0)
    h2 = (h1 @ w2).clamp(min=0)
    v = 0.3 * h2 + 0.7 * f
    u = v / v.norm(dim=1, keepdim=True)
    scores = scale * u @ w.T
    assert fitted.trained.history[0]["loss"] == pytest.approx(
        float(F.cross_entropy(scores, y)), rel=1e-4
    )

    g_u = scale * (scores.softmax(1) - F.one_hot(y, 4)) @ w / len(y)
    g_v = (g_u - (g_u * u).sum(1, keepdim=True) * u) / v.norm(dim=1, keepdim=True)
    g_2 = 0.3 * g_v * (h2 > 0)
    g_1 = g_2 @ w2.T * (h1 > 0)
    w1, w2 = w1 - 0.5 * f.T @ g_1, w2 - 0.5 * h1.T @ g_2
    names = ("cat", "red car")
    other = open_clip_features(backbone, shots.images, names)[1]
    trained = 0.3 * ((f @ w1).clamp(min=0) @ w2).clamp(min=0) + 0.7 * f
    expected = scale * F.normalize(trained, dim=1) @ F.normalize(other, dim=1).T
    torch.testing.assert_close(logits_of(fitted, shots, names), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(
        expected, scale * F.normalize(v, dim=1) @ F.normalize(other, dim=1).T, atol=1e-3
    )
