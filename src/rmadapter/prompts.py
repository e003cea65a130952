"""From class names to logits, once for everybody: templates x names -> tokens -> class weights -> cosine logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rmadapter.adapter import at_least_float32
from rmadapter.backbones import Backbone
from rmadapter.data.names import descriptions
from rmadapter.encoders import States
from rmadapter.errors import UserError

CHUNK = 1024  # prompts encoded at once; more are encoded in turn, and again when their gradient is needed
MOST = 100  # prompts a class that descriptions make of a template


def prompts_each(names: Sequence[str], templates: Sequence[str]) -> int:
    """How many prompts each class gets: of every template as many as the numbers of descriptions all divide, so that
    shapes are the same and each description of a class counts alike. Raises UserError where that is beyond MOST."""
    counts = sorted({len(descriptions(name)) for name in names})
    if (turns := math.lcm(*counts)) > MOST:
        raise UserError(
            f"some classes have {', '.join(map(str, counts))} descriptions, whose least common multiple, {turns}, is "
            f"above {MOST}: give them numbers with a smaller one, such as the same to all"
        )
    return len(templates) * turns


def tokenize(backbone: Backbone, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Tokens [`prompts_each` * C, L] of all prompts, template by template and in it description by description, on the
    backbone's device."""
    if not names:
        raise UserError("no class names given: name at least one class")
    known = [descriptions(name) for name in names]
    turns = range(prompts_each(names, templates) // len(templates))
    texts = [t.format(some[turn % len(some)]) for t in templates for turn in turns for some in known]
    return backbone.tokenizer(texts).to(backbone.device)


def in_chunks(names: Sequence[str], templates: Sequence[str]) -> Iterator[Sequence[str]]:
    """Classes whose prompts, at most CHUNK, or all of a class, are encoded at once: memory does not grow with the
    number of prompts. Raises UserError as `prompts_each`."""
    size = max(CHUNK // prompts_each(names, templates), 1)
    for start in range(0, max(len(names), 1), size):
        yield names[start : start + size]


def frozen_prompts(
    backbone: Backbone, names: Sequence[str], templates: Sequence[str], first: int | None = None
) -> list[States]:
    """What the untouched text encoder makes of all prompts, in chunks of at most CHUNK; first: as `States` has it."""
    return [backbone.text.frozen(chunk, first) for chunk in tokenize(backbone, names, templates).split(CHUNK)]


def class_weights(features: Tensor, each: int = 1) -> Tensor:
    """Text features [each * C, e], in the order of `tokenize`, -> normalised class features [C, e]."""
    weights = F.normalize(at_least_float32(features), dim=-1)
    if each > 1:
        weights = F.normalize(weights.unflatten(0, (each, -1)).mean(0), dim=-1)
    return weights


def learnt_weights(encode: Callable[..., Tensor], chunks: Sequence[tuple[Any, ...]], each: int) -> Tensor:
    """Normalised class features [C, e] of prompts in chunks, encode(*chunk); of several chunks, one at a time is kept
    for the gradient."""
    if len(chunks) == 1:
        return class_weights(encode(*chunks[0]), each)
    return class_weights(torch.cat([checkpoint(encode, *chunk, use_reentrant=False) for chunk in chunks]), each)


def cosine_logits(backbone: Backbone, features: Tensor, weights: Tensor) -> Tensor:
    """Image features [B, e], normalised here, against class weights [C, e], over CLIP's temperature -> [B, C]."""
    return backbone.logit_scale * F.normalize(at_least_float32(features), dim=-1) @ weights.T


def untouched(states: States) -> Tensor:
    """Features [B, e] of the untouched encoder."""
    return states.features


@dataclass(frozen=True)
class Cosines:
    """What scores by `cosine_logits` alone, its parts in reach: features of the states of B images [B, e], and class
    weights [C, e]."""

    backbone: Backbone
    features: Callable[[States], Tensor]
    weights: Tensor

    def __call__(self, states: States) -> Tensor:
        return cosine_logits(self.backbone, self.features(states), self.weights)


def zero_shot_weights(backbone: Backbone, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Class weights [C, e] of the untouched text encoder.

    The last ones are kept, for the next method that asks about the same classes; what is returned is a copy.
    """
    return _zero_shot_weights(backbone, tuple(names), tuple(templates), backbone.device).clone()


@lru_cache(maxsize=16)
def _zero_shot_weights(backbone: Backbone, names: tuple[str, ...], templates: tuple[str, ...], device: Any) -> Tensor:
    parts = [raw_text_features(backbone, some, templates) for some in in_chunks(names, templates)]
    return torch.cat([class_weights(features.flatten(0, 1), len(features)) for features in parts])


def text_features(backbone: Backbone, texts: Sequence[str]) -> Tensor:
    """Unit features [S, e] of whole texts, by the untouched text encoder; what is too long for it is cut."""
    chunks = backbone.tokenizer(list(texts)).to(backbone.device).split(CHUNK)
    return class_weights(torch.cat([backbone.text.frozen(chunk).features for chunk in chunks]))


def raw_text_features(backbone: Backbone, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Features [`prompts_each`, C, e] of the untouched text encoder, not normalised."""
    features = torch.cat([states.features for states in frozen_prompts(backbone, names, templates)])
    return at_least_float32(features).unflatten(0, (-1, len(names)))
