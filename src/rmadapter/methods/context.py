"""Prompts with learned context: "X X X X name." whose placeholders X give way to vectors.

Under causal attention, prompts whose context is the same for all classes begin with the same tokens, which are then
computed once; and nothing after the end-of-text token is computed at all. Both are exact.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rmadapter.backbones import Backbone
from rmadapter.data.names import descriptions
from rmadapter.errors import UserError
from rmadapter.method import Known, Learner, Shots, ToLogits, Trained
from rmadapter.prompts import CHUNK, Cosines, cosine_logits, untouched
from rmadapter.train import Batch, Recipe, minimise

HOLDER = "X"  # one token in every vocabulary, or the one unknown token


class PromptedText:
    """The text encoder of a backbone on "X ... X name" + suffix, where n_ctx X are the context; of a name's
    descriptions, the first.

    layout: the packed prompts of C classes, T tokens in all. words: their own embeddings [T, d]. positions: packed rows
    of the context tokens, [n_ctx] if the classes share them, else [C, n_ctx]. share=False keeps them apart in any case,
    for contexts that differ between classes. Raises UserError when context and name do not fit the encoder.
    """

    def __init__(
        self, backbone: Backbone, classes: Sequence[str], n_ctx: int, suffix: str = ".", share: bool = True
    ) -> None:
        self.encoder, device = backbone.text, backbone.device
        holders = " ".join([HOLDER] * n_ctx)
        called = [descriptions(name)[0] for name in classes]
        tokens = backbone.tokenizer([f"{holders} {name}{suffix}".strip() for name in called]).to(device)
        start = _start(backbone)
        if n_ctx < 1 or start + n_ctx + 2 > tokens.shape[1]:
            raise UserError(
                f"{n_ctx} context tokens: the text encoder of {backbone.name} has room for 1 to "
                f"{tokens.shape[1] - start - 2}"
            )
        self.layout = self.encoder.layout(tokens, share)
        with torch.no_grad():
            self.words = self.encoder.words(self.layout)
        self.positions = torch.arange(start, start + n_ctx, device=device)
        if not self.layout.prefix:
            lengths = self.encoder.real_tokens(tokens)[0]
            self.positions = (lengths.cumsum(0) - lengths)[:, None] + self.positions

    def put(self, x: Tensor, context: Tensor) -> Tensor:
        """x [T, d] with the context tokens' rows replaced: by context [n_ctx, d], or [C, n_ctx, d] class by class."""
        assert context.ndim == 2 or self.positions.ndim == 2, "contexts that differ between classes need share=False"
        if self.positions.ndim > context.ndim - 1:
            context = context.expand(len(self.positions), -1, -1)
        return x.index_copy(0, self.positions.flatten(), context.reshape(-1, x.shape[-1]).to(x.dtype))

    def encode(self, context: Tensor, edit: Callable[[int, Tensor], Tensor] | None = None) -> Tensor:
        """Class features [C, e], not normalised, of context [n_ctx, d] or [C, n_ctx, d].

        edit(i, x) changes what enters block i, as by `put`.
        """
        x = self.encoder.stem(self.layout, self.put(self.words, context))
        return self.encoder.encode(x, self.layout, edit=edit)


def encoded(backbone: Backbone, names: Sequence[str], tokens: int) -> Callable[[Tensor], Tensor]:
    """Context [tokens, d] -> class features [C, e], not normalised: prompts in chunks of CHUNK, of which one at a time
    is kept for the gradient."""
    parts = [PromptedText(backbone, names[i : i + CHUNK], tokens) for i in range(0, len(names), CHUNK)]
    if len(parts) == 1:
        return parts[0].encode
    return lambda context: torch.cat([checkpoint(part.encode, context, use_reentrant=False) for part in parts])


@lru_cache(maxsize=16)
def _start(backbone: Backbone) -> int:
    """How many tokens the tokenizer puts before a text."""
    one, other = backbone.tokenizer([HOLDER, "photo"])
    return int((one != other).int().argmax())


@torch.no_grad()
def init_words(backbone: Backbone, text: str) -> Tensor:
    """Embeddings [n, d] of the n tokens of a text, without those that the tokenizer puts around it."""
    tokens = backbone.tokenizer([text, f"{text} {HOLDER}"]).to(backbone.device)
    end = int((tokens[0] != tokens[1]).int().argmax())
    return backbone.text.words(backbone.text.layout(tokens[:1]))[_start(backbone) : end].clone()


def draw(count: int, width: int, seed: int) -> Tensor:
    """Random tokens [count, width] of CoOp's size, standard deviation 0.02."""
    return 0.02 * torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def context_vectors(backbone: Backbone, words: str, tokens: int, seed: int) -> nn.Parameter:
    """Context [n, d] to train: the embeddings of `words`, or `tokens` random vectors where there are none."""
    start = init_words(backbone, words) if words else draw(tokens, backbone.text.width, seed)
    return nn.Parameter(start.to(backbone.device))


def room(backbone: Backbone, tokens: int) -> int:
    """That many context tokens; in a text encoder for fewer than four times as many, a quarter of its own."""
    return min(tokens, backbone.tokenizer([HOLDER]).shape[1] // 4)


class ContextLearner(Learner):
    """A module that gives class features, and leaves those of images as they are."""

    reaches = ("text",)

    @abstractmethod
    def bind(self, names: Sequence[str], templates: Sequence[str]) -> Callable[[], Tensor]:
        """A function without arguments: the normalised features [C, e] of these classes, as the parameters are when it
        is called."""

    def for_classes(self, names: Sequence[str], known: Known) -> ToLogits:
        weights = self.bind(names, known.templates)()
        return Cosines(self.backbone, untouched, weights)


def train_context(
    learner: ContextLearner, shots: Shots, recipe: Recipe, penalty: Callable[[Tensor], Tensor] | None = None
) -> Trained:
    """Cross-entropy of untouched image features against a learner's class features, plus penalty(class features)."""
    weights = learner.bind(shots.classes, shots.templates)

    def loss(batch: Batch) -> dict[str, Tensor]:
        classes = weights()
        ce = F.cross_entropy(cosine_logits(learner.backbone, batch.images.features, classes), batch.labels)
        if penalty is None:
            return {"loss": ce}
        distance = penalty(classes)
        return {"loss": ce + distance, "ce": ce, "distance": distance}

    return minimise(learner, loss, recipe, shots, shots.source())
