"""From class names to logits, once for everybody: templates x names -> tokens -> class weights -> cosine logits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rmadapter.adapter import at_least_float32
from rmadapter.backbones import Backbone
from rmadapter.encoders import States
from rmadapter.errors import UserError

CHUNK = 1024  # prompts encoded at once; more are encoded in turn, and again when their gradient is needed


def tokenize(backbone: Backbone, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Tokens [templates * C, L] of all prompts, template by template, on the backbone's device."""
    if not names:
        raise UserError("no class names given: name at least one class")
    return backbone.tokenizer([t.format(name) for t in templates for name in names]).to(backbone.device)


def frozen_prompts(
    backbone: Backbone, names: Sequence[str], templates: Sequence[str], first: int | None = None
) -> list[States]:
    """What the untouched text encoder makes of all prompts, in chunks of at most CHUNK; first: as `States` has it."""
    return [backbone.text.frozen(chunk, first) for chunk in tokenize(backbone, names, templates).split(CHUNK)]


def class_weights(features: Tensor, templates: int = 1) -> Tensor:
    """Text features [templates * C, e], template by template, -> normalised class features [C, e]."""
    weights = F.normalize(at_least_float32(features), dim=-1)
    if templates > 1:
        weights = F.normalize(weights.unflatten(0, (templates, -1)).mean(0), dim=-1)
    return weights


def cosine_logits(backbone: Backbone, features: Tensor, weights: Tensor) -> Tensor:
    """Image features [B, e], normalised here, against class weights [C, e], over CLIP's temperature -> [B, C]."""
    return backbone.logit_scale * F.normalize(at_least_float32(features), dim=-1) @ weights.T


def zero_shot_weights(backbone: Backbone, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Class weights [C, e] of the untouched text encoder.

    The last ones are kept, for the next method that asks about the same classes; what is returned is a copy.
    """
    return _zero_shot_weights(backbone, tuple(names), tuple(templates), backbone.device).clone()


@lru_cache(maxsize=16)
def _zero_shot_weights(backbone: Backbone, names: tuple[str, ...], templates: tuple[str, ...], device: Any) -> Tensor:
    return class_weights(raw_text_features(backbone, names, templates).flatten(0, 1), len(templates))


def raw_text_features(backbone: Backbone, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Features [templates, C, e] of the untouched text encoder, not normalised."""
    features = torch.cat([states.features for states in frozen_prompts(backbone, names, templates)])
    return at_least_float32(features).unflatten(0, (len(templates), -1))
