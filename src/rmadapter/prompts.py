"""From class names to logits, for all methods: templates x names -> tokens -> class weights ->
cosine logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Protocol, TypeAlias, TypeVar, runtime_checkable
from weakref import WeakKeyDictionary, ref

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rmadapter.adapter import at_least_float32
from rmadapter.backbones import Backbone
from rmadapter.backbones.known import kept_weights
from rmadapter.data.names import descriptions
from rmadapter.encoders import Packed, States, in_halves, pausing
from rmadapter.errors import UserError

T = TypeVar("T")
Chunks: TypeAlias = "list[tuple[Tensor, Packed]]"  # tokens of prompts and their layouts
# prompts encoded at once; more are encoded in turn, and again for their gradient
CHUNK_PROMPTS = 1024
# about, at once: SigLIP, which reads all 64 of a prompt, takes 320 prompts
MAX_TOKENS = 20 * CHUNK_PROMPTS
MAX_DESCRIPTIONS = 100  # prompts per class and template, where classes have descriptions
MOST_PROMPTS = 100_000  # of all classes: ImageNet with 80 templates has 80,000
_most_prompts = ContextVar("most prompts", default=MOST_PROMPTS)
# Class weights by backbone, which a plain cache would keep alive.
_KEPT: WeakKeyDictionary[Backbone, Callable[..., Tensor]] = WeakKeyDictionary()


@contextmanager
def bounded_text(prompts: int, pause: Callable[[], object]) -> Iterator[None]:
    """Bound what the text encoder does for someone else in this thread.

    Args:
        prompts: Prompts of all classes at most, instead of MOST_PROMPTS.
        pause: Called before each block of the encoder, such as to let another thread use it.
    """
    token = _most_prompts.set(prompts)
    try:
        with pausing(pause):
            yield
    finally:
        _most_prompts.reset(token)


def check_prompts(count: int) -> None:
    """Raise UserError for too many prompts: each passes through the text encoder."""
    most = _most_prompts.get()
    if count > most:
        raise UserError(
            f"{count:,} prompts (classes x templates) are more than {most:,}: use fewer templates "
            "or classes"
        )


def filled(template: str, name: str) -> str:
    """Put a name into a template. `str.format` would also do what a template's text says."""
    return template.replace("{}", name)


def prompts_each(names: Sequence[str], templates: Sequence[str]) -> int:
    """Return the number of prompts of each class: per template, the least common multiple of the
    classes' numbers of descriptions, so that all classes have equally many and each description of
    a class counts equally. Raises UserError above MAX_DESCRIPTIONS, and as `check_prompts`."""
    counts = sorted({len(descriptions(name)) for name in names})
    multiple = math.lcm(*counts)
    if multiple > MAX_DESCRIPTIONS:
        raise UserError(
            f"classes with {', '.join(map(str, counts))} descriptions need {multiple} prompts each "
            f"(the least common multiple), above {MAX_DESCRIPTIONS}: give all classes equally many "
            "descriptions"
        )
    each = len(templates) * multiple
    check_prompts(each * len(names))
    return each


def tokenize(backbone: Backbone, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Return the tokens [`prompts_each` * C, L] of all prompts, by template, then description, then
    class, on the backbone's device."""
    backbone.with_text()
    if not names:
        raise UserError("no class names: name at least one class")
    known = [descriptions(name) for name in names]
    texts = []
    turns = prompts_each(names, templates) // len(templates)
    for template in templates:
        for turn in range(turns):
            texts += [filled(template, one[turn % len(one)]) for one in known]
    return backbone.tokenizer(texts).to(backbone.device)


def in_chunks(names: Sequence[str], templates: Sequence[str]) -> Iterator[Sequence[str]]:
    """Split the classes so that at most CHUNK_PROMPTS prompts, or all of one class, are encoded at
    once: memory does not grow with the number of prompts. Raises UserError as `prompts_each` does.
    """
    size = max(CHUNK_PROMPTS // prompts_each(names, templates), 1)
    for start in range(0, max(len(names), 1), size):
        yield names[start : start + size]


def chunk_size(backbone: Backbone, tokens: Tensor) -> int:
    """Return how many prompts, of which these are the tokens [C, L], are encoded at once: at most
    CHUNK_PROMPTS, and about MAX_TOKENS tokens that the encoder reads. A traced graph reads padding,
    too."""
    traced = torch.compiler.is_compiling()
    read = tokens.numel() if traced else int(backbone.text.real_tokens(tokens)[0].sum())
    return max(min(CHUNK_PROMPTS, MAX_TOKENS * len(tokens) // read), 1)


def token_chunks(backbone: Backbone, tokens: Tensor) -> tuple[Tensor, ...]:
    """Split the tokens [C, L] of prompts into chunks of `chunk_size`."""
    return tokens.split(chunk_size(backbone, tokens))


def frozen_prompts(
    backbone: Backbone, names: Sequence[str], templates: Sequence[str], first: int | None = None
) -> list[States]:
    """Run the untouched text encoder on all prompts, in chunks.

    Args:
        backbone: Backbone with the encoder.
        names, templates: Names of the classes, and templates of their prompts.
        first: As in `States`.
    """
    return frozen_chunks(backbone, tokenize(backbone, names, templates), first)


def frozen_chunks(backbone: Backbone, tokens: Tensor, first: int | None = None) -> list[States]:
    """Run the untouched text encoder on prompts, in chunks, which are smaller where the memory of a
    GPU ends.

    Args:
        backbone: Backbone with the encoder.
        tokens: Tokens [C, L] of the prompts.
        first: As in `States`.
    """
    encode = partial(backbone.text.frozen, first=first)
    return [part for chunk in token_chunks(backbone, tokens) for part in in_halves(encode, chunk)]


@torch.no_grad()
def stems(
    backbone: Backbone, names: Sequence[str], templates: Sequence[str], share: bool = True
) -> Chunks:
    """Return what enters the first block of the text encoder for all prompts, and its layout, in
    chunks.

    Args:
        backbone: Backbone with a text encoder.
        names: Names of C classes.
        templates: Prompt templates.
        share: Whether a common beginning is kept once.
    """
    chunks = token_chunks(backbone, tokenize(backbone, names, templates))
    layouts = [backbone.text.layout(chunk, share) for chunk in chunks]
    return [(backbone.text.stem(layout), layout) for layout in layouts]


def class_weights(features: Tensor, each: int = 1) -> Tensor:
    """Average text features [each * C, e], ordered as by `tokenize`, to normalised class features
    [C, e]."""
    weights = F.normalize(at_least_float32(features), dim=-1)
    if each > 1:
        weights = F.normalize(torch.unflatten(weights, 0, (each, -1)).mean(0), dim=-1)
    return weights


def learnt_weights(
    encode: Callable[..., Tensor], chunks: Sequence[tuple[object, ...]], each: int
) -> Tensor:
    """Return normalised class features [C, e] of prompts in chunks, by encode(*chunk)."""
    return class_weights(torch.cat(one_at_a_time(encode, chunks)), each)


def one_at_a_time(encode: Callable[..., T], chunks: Sequence[tuple[object, ...]]) -> list[T]:
    """Return encode(*chunk) of each chunk. Several chunks are encoded again for the gradient, so
    that only one at a time holds activations."""
    if len(chunks) == 1:
        return [encode(*chunks[0])]
    return [checkpoint(encode, *chunk, use_reentrant=False) for chunk in chunks]


def cosine_logits(backbone: Backbone, features: Tensor, weights: Tensor) -> Tensor:
    """Return logits [B, C]: cosines of image features [B, e], normalised here, and class weights
    [C, e], times the logit scale.

    In float32 at least, in autocast too: bfloat16 would round logits of 64 to 128 to halves.
    """
    with torch.autocast(features.device.type, enabled=False):
        unit = F.normalize(at_least_float32(features), dim=-1)
        return backbone.logit_scale * unit @ at_least_float32(weights).T


def linear_logits(features: Tensor, weights: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return logits [B, C] of features [B, e], weights [C, e] and bias [C], in float32 at least, as
    `cosine_logits`."""
    with torch.autocast(features.device.type, enabled=False):
        return F.linear(at_least_float32(features), at_least_float32(weights), bias)


def entropy(logits: Tensor) -> Tensor:
    """Return the entropies [N], in nats, of the softmax of logits [N, C]."""
    return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)


def untouched(states: States) -> Tensor:
    """Return the features [B, e] of the untouched encoder."""
    return states.features


@runtime_checkable
class OfFeatures(Protocol):
    """A scorer of image features, which others may read, too."""

    @property
    def features(self) -> Callable[[States], Tensor]:
        """Return the function from states of B images to features [B, e]."""

    def logits(self, features: Tensor) -> Tensor:
        """Return logits [B, C] of features [B, e]."""

    def __call__(self, states: States) -> Tensor:
        """Return logits [B, C] of states of B images."""


@dataclass(frozen=True)
class Cosines:
    """A scorer of `cosine_logits` that exposes its parts.

    Attributes:
        backbone: As for `cosine_logits`.
        features: As in `OfFeatures`.
        weights: Weights of the classes, [C, e].
    """

    backbone: Backbone
    features: Callable[[States], Tensor]
    weights: Tensor

    def logits(self, features: Tensor) -> Tensor:
        return cosine_logits(self.backbone, features, self.weights)

    def __call__(self, states: States) -> Tensor:
        return self.logits(self.features(states))


def zero_shot_weights(backbone: Backbone, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Return class weights [C, e] of the untouched text encoder.

    The last results are kept as long as the backbone is, for the next method with the same classes;
    each call returns a copy.
    """
    if backbone not in _KEPT:
        _KEPT[backbone] = lru_cache(maxsize=16)(partial(_zero_shot_weights, ref(backbone)))
    return _KEPT[backbone](tuple(names), tuple(templates), backbone.device).clone()


def _zero_shot_weights(
    home: ref[Backbone], names: tuple[str, ...], templates: tuple[str, ...], device: torch.device
) -> Tensor:
    backbone = home()
    assert backbone is not None

    def make() -> Tensor:
        chunks = in_chunks(names, templates)
        parts = [raw_text_features(backbone, part, templates) for part in chunks]
        weights = [class_weights(features.flatten(0, 1), len(features)) for features in parts]
        return torch.cat(weights)

    # Without the caller's autocast, since later callers without one get the same weights.
    with torch.autocast(device.type, enabled=False):
        return kept_weights(backbone, names, templates, make)


def prior_weights(backbone: Backbone, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Return class weights [C, e] that a classifier of the shots adds to: those of
    `zero_shot_weights`, or zeros on a backbone without a text encoder."""
    if backbone.has_text:
        return zero_shot_weights(backbone, names, templates)
    return torch.zeros(len(names), backbone.embedding_size, device=backbone.device)


def text_features(backbone: Backbone, texts: Sequence[str]) -> Tensor:
    """Return unit features [S, e] of whole texts from the untouched text encoder; texts too long
    for it are cut. Raises UserError as `check_prompts`."""
    check_prompts(len(texts))
    backbone.with_text("a text about a class")
    chunks = frozen_chunks(backbone, backbone.tokenizer(list(texts)).to(backbone.device))
    return class_weights(torch.cat([states.features for states in chunks]))


def raw_text_features(backbone: Backbone, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Return features [`prompts_each`, C, e] of the untouched text encoder, not normalised."""
    features = torch.cat([states.features for states in frozen_prompts(backbone, names, templates)])
    return torch.unflatten(at_least_float32(features), 0, (-1, len(names)))
