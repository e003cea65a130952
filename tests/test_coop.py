"""CoOp against a plain forward pass of open_clip's modules, and as a whole on eight images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rmadapter.backbone import Backbone, load_backbone
from rmadapter.bench.activations import Activations
from rmadapter.bench.methods.base import Training
from rmadapter.bench.methods.coop import CoOp
from rmadapter.config import Config
from rmadapter.data.images import ImageSet
from test_prompts import plain_text

CLASSES = ("cat", "a small red car", "dog", "tree house")
NEW = ("blue bird", "house")


def eight(backbone: Backbone, seed: int = 1) -> Training:
    """Two noisy pictures of one colour for each of four classes."""
    colors = np.repeat([(40, 60, 220), (30, 170, 60), (220, 40, 30), (200, 200, 40)], 2, axis=0)
    noise = np.random.default_rng(0).normal(colors[:, None, None], 40, (8, 32, 32, 3))
    pixels = np.clip(noise, 0, 255).astype(np.uint8)
    images = ImageSet.from_lists(list(pixels), [0, 0, 1, 1, 2, 2, 3, 3], CLASSES)
    config = Config.make({"backbone": backbone.name, "device": "cpu"})
    return Training(images, None, Activations(backbone, config), seed, progress=False)


def logits_of(method: Any, backbone: Backbone, train: Training, names: tuple[str, ...] = CLASSES) -> Tensor:
    return method.fit(backbone, train).for_classes(names)(states(train))


def states(train: Training) -> Any:
    return train.frozen().batch(torch.arange(8), train.device)


def close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).norm() < 1e-4 * b.norm())


def same_as_plain(method: Any, backbone: Backbone, plain: Callable[[Any, Training], Tensor], seed: int = 1) -> bool:
    """Loss and every gradient of a few shots at the start; plain(learner, train) -> loss of the rows 5, 0 and 3."""
    train = eight(backbone, seed)
    learner, loss = method.prepare(backbone, train)
    values, gradients = [], []
    for value in (loss(0, torch.tensor([5, 0, 3]))["loss"], plain(learner, train)):
        values.append(value.detach())
        gradients.append(torch.autograd.grad(value, list(learner.parameters())))
    assert all(gradient.norm() > 0 for gradient in gradients[1])
    return close(*values) and all(map(close, *gradients))


def plain_logits(backbone: Backbone, train: Training, classes: Tensor) -> Tensor:
    """Of the pictures 5, 0 and 3, from pixels on."""
    pixels = torch.stack([_picture(backbone, train.images.images[i]) for i in (5, 0, 3)])
    model: Any = backbone.model
    return model.logit_scale.exp() * F.normalize(model.encode_image(pixels), dim=-1) @ F.normalize(classes, dim=-1).T


def _picture(backbone: Backbone, pixels: Any) -> Tensor:
    from PIL import Image

    return backbone.preprocess(Image.fromarray(pixels))


LABELS = torch.tensor([2, 0, 1])  # of the pictures 5, 0 and 3


def leaves_no_trace(method: Any, backbone: Backbone) -> bool:
    """Two fits with one seed agree, another seed does not, and the weights are what they were."""
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    once, again, other = (logits_of(method, backbone, eight(backbone, seed), NEW) for seed in (1, 1, 2))
    same = all(torch.equal(before[name], tensor) for name, tensor in backbone.model.state_dict().items())
    still = all(parameter.grad is None for parameter in backbone.model.parameters())
    return once.shape == (8, 2) and torch.equal(once, again) and not torch.equal(once, other) and same and still


def overfits(method: Any, backbone: Backbone) -> bool:
    train = eight(backbone)
    fitted = method.fit(backbone, train)
    loss = [record.get("ce", record["loss"]) for record in fitted.history]
    found = fitted.for_classes(CLASSES)(states(train)).argmax(-1)
    return loss[-1] < 0.2 * loss[0] and found.tolist() == list(train.images.labels)


@pytest.fixture(scope="module")
def vit_b16() -> Backbone:
    return load_backbone("ViT-B-16/none")


@pytest.mark.parametrize("name", ["tiny_clip", "tiny_hf"])
@pytest.mark.parametrize("context", ["a photo of the", ""])
def test_loss_and_gradient_are_the_plain_ones(name: str, context: str, request: pytest.FixtureRequest) -> None:
    backbone = request.getfixturevalue(name)

    def plain(learner: Any, train: Training) -> Tensor:
        return F.cross_entropy(plain_logits(backbone, train, plain_text(backbone, CLASSES, learner.ctx)), LABELS)

    assert same_as_plain(CoOp(context=context), backbone, plain)


def test_untrained_context_is_the_written_prompt(tiny_clip: Backbone) -> None:
    """No epoch: zero-shot CLIP with "a photo of a"."""
    from rmadapter.bench.methods.zero_shot import ZeroShot

    train = eight(tiny_clip)
    found = logits_of(CoOp(epochs=0), tiny_clip, train, NEW)
    torch.testing.assert_close(found, logits_of(ZeroShot(), tiny_clip, train, NEW), rtol=1e-4, atol=1e-4)


def test_parameters_are_those_of_the_code(vit_b16: Backbone) -> None:
    # The released prompt learner: 4 context tokens of width 512
    assert CoOp().parameters(vit_b16) == 2048


def test_eight_images_are_learned_by_heart(tiny_clip: Backbone) -> None:
    assert overfits(CoOp(epochs=120, learning_rate=0.02), tiny_clip)


@pytest.mark.parametrize("name", ["tiny_clip", "tiny_hf"])
def test_a_fit_leaves_no_trace(name: str, request: pytest.FixtureRequest) -> None:
    assert leaves_no_trace(CoOp(context="", epochs=3), request.getfixturevalue(name))
