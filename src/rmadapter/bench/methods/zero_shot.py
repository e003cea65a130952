"""CLIP itself, asked with prompts: Radford et al., "Learning Transferable Visual Models", ICML 2021."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from rmadapter.adapter import class_weights
from rmadapter.backbone import Backbone
from rmadapter.bench.methods.base import Classifier, Training
from rmadapter.model import CHUNK
from rmadapter.towers import States, towers


def text_features(backbone: Backbone, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Normalised class features [C, e] of the untouched text encoder, averaged over templates.

    The last ones are kept, for the next method that asks about the same classes; what is returned is a copy.
    """
    device = next(backbone.model.parameters()).device
    return _text_features(backbone, tuple(names), tuple(templates), device).clone()


@lru_cache(maxsize=16)
@torch.no_grad()
def _text_features(backbone: Backbone, names: tuple[str, ...], templates: tuple[str, ...], device: Any) -> Tensor:
    _, tower = towers(backbone.model)
    tokens = backbone.tokenizer([t.format(name) for t in templates for name in names]).to(device)
    features = torch.cat([tower.frozen(chunk).features for chunk in tokens.split(CHUNK)])
    return class_weights(features.float(), len(templates))


def cosine_logits(backbone: Backbone, features: Tensor, weights: Tensor) -> Tensor:
    """Image features [B, e], normalised here, against class weights [C, e], over CLIP's temperature -> [B, C]."""
    return backbone.model.logit_scale.exp() * torch.nn.functional.normalize(features.float(), dim=-1) @ weights.T  # type: ignore[operator]


@dataclass(frozen=True)
class ZeroShot:
    """The untouched backbone. templates: other prompts than those of the run, averaged; empty for those of the run."""

    title: ClassVar[str] = "zero-shot CLIP"
    source: ClassVar[str] = "Radford et al., ICML 2021 (arXiv 2103.00020)"
    templates: tuple[str, ...] = ()

    def fit(self, backbone: Backbone, train: Training) -> Classifier:
        templates = self.templates or train.templates

        def for_classes(names: Sequence[str]) -> Callable[[States], Tensor]:
            weights = text_features(backbone, names, templates)
            return lambda states: cosine_logits(backbone, states.features, weights)

        return Classifier(for_classes)

    def parameters(self, backbone: Backbone, classes: int = 100, shots: int = 16) -> int:
        return 0


@dataclass(frozen=True)
class ZeroShotEnsemble(ZeroShot):
    """The untouched backbone with the seven templates that CLIP's authors chose for ImageNet, whatever the data."""

    title: ClassVar[str] = "zero-shot CLIP, 7 templates"
    source: ClassVar[str] = (
        "Radford et al., ICML 2021 (arXiv 2103.00020); templates of notebooks/Prompt_Engineering_for_ImageNet.ipynb "
        "in openai/CLIP"
    )
    templates: tuple[str, ...] = (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    )
