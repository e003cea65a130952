"""Shots for tests of methods, without a data set on disk, and what a method trains."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from rmadapter.backbones import Backbone
from rmadapter.data.read import ImageSet, load_image
from rmadapter.encoders import Grid, States
from rmadapter.methods import load_method
from rmadapter.settings import Machine, configured
from rmadapter.training.cache import Cache, Source
from rmadapter.training.contract import Fitted, Known, Shots, Trained
from rmadapter.training.loop import Batch, Loss
from rmadapter.training.traits import Recipe
from tests.helpers.images import COLORS as FOLDER_COLORS

COLORS = {name.replace("_", " "): color for name, color in FOLDER_COLORS.items()}
TASK = ("augmentation", "views")
TEXTS = str(Path(__file__).with_name("texts.json"))
# half of the epochs of the few-shot recipe are trained with four shots
REQUIRED_SETTINGS: dict[str, dict[str, Any]] = {
    "zero-shot-descriptions": {"descriptions": TEXTS}, "coop-few-shot": {"epochs": 4},
}  # fmt: skip
CPU = {"device": "cpu"}
TRAINING = ("rmadapter.methods.", "rmadapter.training.contract")  # modules that call `minimise`
# Weights that make every term of the loss count on a model of random weights.
LARGE_WEIGHTS: dict[str, Any] = {
    "lambda_image_rec": 1, "lambda_text_rec": 1, "lambda_image_con": 20, "lambda_text_con": 50,
    "consistency_unit": "feature",
}  # fmt: skip


def grouped_noise(labels: str, groups: Sequence[str], seed: int = 0) -> ImageSet:
    """Draw images of noise, all different."""
    rng = np.random.default_rng(seed)
    images = [Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)) for _ in labels]
    return ImageSet.from_lists(images, [*labels], groups=groups)


def noisy_colors(
    count: int = 4, seed: int = 0, size: int = 32, names: tuple[str, ...] = tuple(COLORS)
) -> ImageSet:
    """Draw `count` noisy images of each colour."""
    rng = np.random.default_rng(seed)
    arrays, labels = [], []
    for name in names:
        for _ in range(count):
            noise = rng.normal(0, 40, (size, size, 3))
            arrays.append(np.clip(np.array(COLORS[name]) + noise, 0, 255).astype(np.uint8))
            labels.append(name)
    return ImageSet.from_lists(arrays, labels)


def noise_images(
    count: int, classes: tuple[str, ...] = ("cat", "dog"), seed: int = 0, *, size: int = 32,
    grain: int = 1,
) -> ImageSet:  # fmt: skip
    """Draw images of noise in squares of `grain` pixels, class after class in turn."""
    shape = (count, size // grain, size // grain, 3)
    arrays = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    arrays = arrays.repeat(grain, 1).repeat(grain, 2)
    return ImageSet(tuple(arrays), tuple(i % len(classes) for i in range(count)), classes)


def shots_of(backbone: Backbone, images: ImageSet | None = None, **settings: Any) -> Shots:
    """Make shots on the CPU. settings: fields of Shots, of Machine, and augmentation and views."""
    images = noisy_colors() if images is None else images
    views = {name: settings.pop(name) for name in TASK if name in settings}
    own = {name: settings.pop(name) for name in list(settings) if name in vars(Machine())}
    machine = configured(Machine(), {**CPU, **own})
    cache = Cache(backbone, machine, **views, seed=settings.get("seed", 1), progress=False)
    return Shots(images, cache, progress=False, **settings)


def pixels_of(backbone: Backbone, images: ImageSet, rows: Sequence[int] | None = None) -> Tensor:
    """Return pixels [B, 3, H, W] of some images, or of all, by the backbone's transform."""
    chosen = range(len(images)) if rows is None else rows
    return torch.stack([backbone.preprocess(load_image(images.images[i])) for i in chosen])


@torch.no_grad()
def own_features(
    backbone: Backbone, images: ImageSet, names: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Return unit features of images [N, e] and of prompts [C, e] in float64, by the backbone's own
    forward passes."""
    clip: Any = backbone.model
    tokens = backbone.tokenizer([f"a photo of a {name}." for name in names])
    image, text = clip.encode_image(pixels_of(backbone, images)), clip.encode_text(tokens)
    return unit_rows(image.double().numpy()), unit_rows(text.double().numpy())


def unit_rows(x: np.ndarray) -> np.ndarray:
    """Return rows [..., e] of unit length."""
    found: np.ndarray = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return found


def logits_of(fitted: Fitted, shots: Shots, names: tuple[str, ...] | None = None) -> Tensor:
    """Return logits [N, C] of the shots, without augmentation."""
    states = shots.cache.source(shots.images, fitted.first).batch(torch.arange(len(shots.images)))
    return fitted.score(names)(states)


def accuracy_of(fitted: Fitted, images: ImageSet, names: tuple[str, ...] | None = None) -> float:
    """Return the accuracy between 0 and 1."""
    table = torch.cat(list(fitted.probabilities(images.images, names or images.classes)))
    return float((table.argmax(1) == torch.tensor(images.labels)).float().mean())


def states_of(features: Tensor) -> States:
    """Return the states of images with these features [B, e]."""
    return States(None, Grid(None), features)


def near_prompts(
    backbone: Backbone, names: tuple[str, ...], count: int = 60
) -> tuple[Tensor, Tensor]:
    """Return class weights [C, e], and features [N, e] between them, some sure and some not."""
    found: Any = load_method("zero-shot").restore(backbone, Known(names), {}).for_classes(names)
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(count, len(names), generator=generator).mul(3).softmax(-1) @ found.weights
    return found.weights, mixed + 0.002 * torch.randn(mixed.shape, generator=generator)


@dataclass(frozen=True)
class Untrained:
    """A method before its first step, and what it passes to `minimise`."""

    fitted: Fitted
    module: Any
    loss: Loss
    recipe: Recipe
    shots: Shots
    source: Source

    def terms(
        self, rows: Sequence[int], epoch: int = 0, images: States | None = None
    ) -> Mapping[str, Tensor]:
        """Return loss terms of some shots. images: states instead of the source's."""
        chosen = torch.tensor(rows)
        states = self.source.batch(chosen, epoch) if images is None else images
        generator = torch.Generator().manual_seed(self.shots.seed)
        loss = self.loss(Batch(epoch, chosen, self.shots.labels[chosen], states, generator))
        return loss if isinstance(loss, dict) else {"loss": loss}


def untrained(method: Any, backbone: Backbone, shots: Shots) -> Untrained:
    """Fit a method with a `minimise` that takes no step.

    backbone: may be in float64 while that of the shots is not; then pass the states to `terms`.
    """
    seen: list[tuple[Any, ...]] = []

    def minimise(module: nn.Module, *words: Any, **_: Any) -> Trained:
        seen.append((module, *words))
        return Trained()

    with pytest.MonkeyPatch.context() as patch:
        for name, file in list(sys.modules.items()):
            if name.startswith(TRAINING) and hasattr(file, "minimise"):
                patch.setattr(file, "minimise", minimise)
        fitted = method.fit(backbone, shots)
    ((module, loss, recipe, given, source, *_),) = seen
    return Untrained(fitted, module, loss, recipe, given, source)


def gradients(module: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Return the gradient of the loss for every trainable tensor, by name."""
    named = dict(module.named_parameters())
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def write_tiny_images(root: Path, *paths: str) -> Path:
    """Write tiny images, each of its own color."""
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 9, 9)).save(root / path)
    return root
