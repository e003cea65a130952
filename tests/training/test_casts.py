"""In bfloat16, frozen weights are cast once, to the bits that autocast would compute with in every
step; frozen states are held on the device if it has room."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rmadapter.backbones import Backbone, load_backbone
from rmadapter.encoders import Grid
from rmadapter.methods.two_stages import FIRST, Norms
from rmadapter.prompts import class_weights, stems, tokenize
from rmadapter.training.cache import Held
from rmadapter.training.loop import Trainer
from tests.helpers.methods import quick_method
from tests.helpers.passes import NAMES, PHOTO, noise
from tests.helpers.pretend_gpu import plugged_in
from tests.helpers.shots import noisy_colors, shots_of
from tests.helpers.syncs import Storages

BACKBONES = ["tiny_clip", "tiny_siglip", "tiny_eva", "tiny_hf"]


class Casts(TorchDispatchMode):
    """Names of the weights that are cast within the block."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.known: list[tuple[str, Storages]] = []
        for name, weight in weights.items():
            storages = Storages()
            storages.add([weight])
            self.known.append((name, storages))
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name == "aten::_to_copy" and kwargs.get("dtype") == torch.bfloat16:
            self.names += [name for name, storages in self.known if args[0] in storages]
        return func(*args, **(kwargs or {}))


ON_CLIP = ("coop", "maple", "mmrl", "clip-lora", "lweib", "rmadapter", "2sfs")


@pytest.mark.parametrize(
    ("name", "backbone"),
    [*((name, "tiny_clip") for name in ON_CLIP), ("maple", "tiny_hf"), ("rmadapter", "tiny_hf")],
)
def test_no_frozen_weight_is_cast_after_the_first_step(
    name: str, backbone: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen: Backbone = request.getfixturevalue(backbone)
    casts = Casts(frozen.model.state_dict())
    step, steps = Trainer.step, list[int]()

    def watched(trainer: Trainer, *words: Any) -> None:
        steps.append(trainer.trained.step)
        if trainer.trained.step:
            with casts:
                step(trainer, *words)
        else:
            step(trainer, *words)

    monkeypatch.setattr(Trainer, "step", watched)
    quick_method(name).fit(frozen, shots_of(frozen, noisy_colors(2), precision="bf16"))
    assert len(steps) > 2
    assert casts.names == []


@torch.no_grad()
@pytest.mark.parametrize("name", BACKBONES)
def test_features_are_those_of_autocasts_own_casts(
    name: str, request: pytest.FixtureRequest
) -> None:
    """Weights that could be trained are left to autocast."""
    backbone: Backbone = request.getfixturevalue(name)
    image, text = backbone.image, backbone.text
    states = image.frozen(noise(backbone), 1)
    layout = text.layout(tokenize(backbone, NAMES, PHOTO))
    x = text.stem(layout)

    def features() -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            return image.encode(states.x, states.layout), text.encode(x, layout)

    once, again = features(), features()
    weights = [*image.tail, *text.tail]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        own = features()
    finally:
        for weight in weights:
            weight.requires_grad_(False)
    assert once[0].dtype == torch.bfloat16
    for found in (once, again):
        assert all(torch.equal(a, b) for a, b in zip(found, own, strict=True))


@pytest.mark.parametrize("name", BACKBONES)
def test_trained_norms_have_the_gradients_of_autocasts_own_casts(
    name: str, request: pytest.FixtureRequest
) -> None:
    """Bit for bit, between weights that were cast once and between those of the backbone."""
    backbone: Backbone = request.getfixturevalue(name)
    module = Norms(backbone, len(NAMES))
    states = backbone.image.frozen(noise(backbone), FIRST)
    ((x, layout),) = stems(backbone, NAMES, PHOTO)

    def gradients(f: Tensor, w: Tensor) -> list[Tensor]:
        loss = f.float().square().sum() + (w.float() ** 3).sum()
        return list(torch.autograd.grad(loss, list(module.norms.parameters())))

    image, text = module.image, module.text
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(module.image_features(states), module.class_features([(x, layout)], 1))
        f = image.encode(states.x, states.layout, FIRST, views=image.views)
        w = class_weights(text.encode(text.stem(layout), layout, views=text.views), 1)
        own = gradients(f, w)
    assert any(gradient.abs().max() > 0 for gradient in own)
    assert all(torch.equal(a, b) for a, b in zip(found, own, strict=True))


def test_casts_are_those_of_the_device(tiny_clip: Backbone) -> None:
    """Of a backbone that took a step in bfloat16 before it moved."""
    backbone = load_backbone(tiny_clip.name)
    quick_method("rmadapter").fit(backbone, shots_of(backbone, noisy_colors(2), precision="bf16"))
    with plugged_in() as device:
        backbone.to(device)
        shots = shots_of(backbone, noisy_colors(2), precision="bf16", device=device.type)
        fitted = quick_method("rmadapter").fit(backbone, shots)
    assert {tensor.device.type for tensor in fitted.tensors.values()} == {device.type}


def test_states_are_on_the_device_if_it_has_room() -> None:
    """A device without memory stands for a GPU."""
    device = torch.device("meta")
    parts = (torch.zeros(6, 4), torch.zeros(6, 3, 8), torch.zeros(6, 8))
    held = Held(2, Grid(0), device, *parts, views=2)
    assert held.near(held.bytes - 1).x.device.type == "cpu"
    near = held.near(held.bytes)
    assert {part.device for part in (near.features, near.x, near.y)} == {device}
    assert (near.bytes, len(near), near.first) == (held.bytes, len(held), held.first)
    for each in (near, held):
        states = each.batch(torch.tensor([0, 2]), epoch=1)
        assert (states.x.device, states.x.shape) == (device, (2, 3, 8))
