"""CLIP-Adapter against its equations, written out with gradients by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rmadapter.backbone import Backbone, load_backbone
from rmadapter.bench.activations import Activations
from rmadapter.bench.methods.base import Classifier, Training, configured
from rmadapter.bench.methods.clip_adapter import CLIPAdapter
from rmadapter.config import Config
from rmadapter.data.images import ImageSet, load_image, read_images
from rmadapter.errors import UserError

CPU = torch.device("cpu")


def shots(backbone: Backbone, images: ImageSet) -> Training:
    return Training(images, None, Activations(backbone, Config.make({"device": "cpu"})), progress=False)


def logits(done: Classifier, train: Training, names: tuple[str, ...] | None = None) -> torch.Tensor:
    states = train.frozen().batch(torch.arange(len(train.images)), CPU)
    return done.for_classes(names or train.images.classes)(states)


def open_clip_features(backbone: Backbone, images: ImageSet, names: tuple[str, ...]) -> tuple[torch.Tensor, ...]:
    """Image features [N, e] and class features [C, e] by the backbone's own forward passes."""
    clip: Any = backbone.model
    pictures = torch.stack([backbone.preprocess(load_image(image)) for image in images.images])
    with torch.no_grad():
        return clip.encode_image(pictures), clip.encode_text(backbone.tokenizer([f"a photo of a {n}." for n in names]))


@pytest.mark.parametrize("name", ["tiny_clip", "tiny_hf"])
def test_loss_gradient_and_logits_are_those_of_the_equations(
    name: str, colors: Path, request: pytest.FixtureRequest
) -> None:
    """One step of plain SGD tells the gradient; new classes are classified too."""
    backbone: Backbone = request.getfixturevalue(name)
    train, method = shots(backbone, read_images(colors)["train"]), CLIPAdapter(ratio=0.3)
    one = configured(method, {"epochs": 1, "warmup_epochs": 0, "weight_decay": 0.0, "learning_rate": 0.5})
    done = one.fit(backbone, train)

    f, w = open_clip_features(backbone, train.images, train.images.classes)
    w, y = w / w.norm(dim=1, keepdim=True), torch.tensor(train.images.labels)
    scale = backbone.model.logit_scale.exp()  # type: ignore[operator]
    start = method.bottleneck(f.shape[1], train.seed)
    w1, w2 = start.down.weight.detach().T, start.up.weight.detach().T
    h1 = (f @ w1).clamp(min=0)
    h2 = (h1 @ w2).clamp(min=0)
    v = 0.3 * h2 + 0.7 * f
    u = v / v.norm(dim=1, keepdim=True)
    scores = scale * u @ w.T
    assert done.history[0]["loss"] == pytest.approx(float(F.cross_entropy(scores, y)), rel=1e-4)

    g_u = scale * (scores.softmax(1) - F.one_hot(y, 4)) @ w / len(y)
    g_v = (g_u - (g_u * u).sum(1, keepdim=True) * u) / v.norm(dim=1, keepdim=True)
    g_2 = 0.3 * g_v * (h2 > 0)
    g_1 = g_2 @ w2.T * (h1 > 0)
    w1, w2 = w1 - 0.5 * f.T @ g_1, w2 - 0.5 * h1.T @ g_2
    names = ("cat", "red car")
    other = open_clip_features(backbone, train.images, names)[1]
    trained = 0.3 * ((f @ w1).clamp(min=0) @ w2).clamp(min=0) + 0.7 * f
    expected = scale * F.normalize(trained, dim=1) @ F.normalize(other, dim=1).T
    torch.testing.assert_close(logits(done, train, names), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, scale * F.normalize(v, dim=1) @ F.normalize(other, dim=1).T, atol=1e-3)


def test_eight_images_are_learnt_by_heart_and_the_backbone_stays(tiny_clip: Backbone) -> None:
    before = {k: v.clone() for k, v in tiny_clip.model.state_dict().items()}
    colors = np.random.default_rng(0).integers(0, 256, (8, 1, 1, 3), np.uint8)
    arrays = colors.repeat(32, 1).repeat(32, 2)
    train = shots(tiny_clip, ImageSet(tuple(arrays), (0, 1, 0, 1, 1, 0, 0, 1), ("cat", "dog")))
    method = CLIPAdapter(learning_rate=0.2, epochs=300)
    done, again = method.fit(tiny_clip, train), method.fit(tiny_clip, train)
    assert (logits(done, train).argmax(1) == torch.tensor(train.images.labels)).all()
    assert torch.equal(logits(done, train), logits(again, train))
    assert all(torch.equal(before[k], v) for k, v in tiny_clip.model.state_dict().items())


def test_parameters() -> None:
    # 1024 x 256 twice, without biases: `Adapter(1024, 4)` of the released code for ResNet-50
    assert sum(p.numel() for p in CLIPAdapter().bottleneck(1024, 0).parameters()) == 2 * 1024 * 256
    assert CLIPAdapter().parameters(load_backbone("ViT-B-16/none")) == 2 * 512 * 128


def test_the_reduction_must_leave_something(tiny_clip: Backbone) -> None:
    with pytest.raises(UserError, match="reduction=41: give a number from 1 to 40"):
        CLIPAdapter(reduction=41).parameters(tiny_clip)
