"""Learned prompts: the context of a text, and deep prompts of both encoders.

A text with learned context is "X X X X name." with vectors in place of the placeholders X. Under
causal attention, prompts that share their context begin with the same tokens, which are computed
only once; tokens after the end of a text are not computed at all. Both are exact.

Deep prompts replace, in the first blocks of an encoder, the prompt tokens output by the block
below. Introduced for images by Jia et al., "Visual Prompt Tuning", ECCV 2022. `prompts` are the
tokens [n, d] that enter blocks 1, 2, ..., one tensor per block; above the last of these, nothing is
replaced.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmadapter.backbones import Backbone
from rmadapter.backbones.known import kept_words
from rmadapter.data.names import descriptions
from rmadapter.encoders import States
from rmadapter.errors import UserError
from rmadapter.methods.parts.learners import CosineLearner
from rmadapter.prompts import check_prompts, cosine_logits, one_at_a_time, token_chunks
from rmadapter.training.contract import Known

_STARTS: WeakKeyDictionary[Backbone, int] = WeakKeyDictionary()
PLACEHOLDER = "X"  # a single token in every vocabulary, if only the unknown one


class PromptedText:
    """The text encoder of a backbone on "X ... X name.", where the n_ctx X are the context.

    Of a name with several descriptions, the first is used.

    Args:
        backbone: Backbone with text blocks.
        classes: Names of C classes.
        n_ctx: Number of context tokens.
        share: Whether prompts keep a common beginning once; False for contexts that differ between
            classes.
        tokens: Tokens [C, L] of these prompts, if they are known, as from `prompt_tokens`.

    Attributes:
        layout: The packed prompts, T tokens in all.
        words: Their own embeddings [T, d].
        positions: Packed rows of the context tokens, [n_ctx] if the classes share them, else [C,
            n_ctx].

    Raises:
        UserError: The tokens and a name do not fit the encoder.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: Sequence[str],
        n_ctx: int,
        share: bool = True,
        tokens: Tensor | None = None,
    ) -> None:
        self.encoder, device = backbone.text, backbone.device
        tokens = prompt_tokens(backbone, classes, n_ctx) if tokens is None else tokens
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
        """Return x [T, d] with the context tokens' rows replaced by context [n_ctx, d], or [C,
        n_ctx, d] per class."""
        assert context.ndim == 2 or self.positions.ndim == 2, (
            "contexts that differ between classes need share=False"
        )
        if self.positions.ndim > context.ndim - 1:
            context = context.expand(len(self.positions), -1, -1)
        return x.index_copy(
            0, self.positions.flatten(), context.reshape(-1, x.shape[-1]).to(x.dtype)
        )

    def encode(
        self, context: Tensor, edit: Callable[[int, Tensor], Tensor] | None = None
    ) -> Tensor:
        """Return class features [C, e], not normalised, of context [n_ctx, d] or [C, n_ctx, d].

        edit(i, x) changes the input of block i, for instance by `put`.
        """
        x = self.encoder.stem(self.layout, self.put(self.words, context))
        return self.encoder.encode(x, self.layout, edit=edit)


def prompt_tokens(backbone: Backbone, names: Sequence[str], n_ctx: int) -> Tensor:
    """Return the tokens [C, L] of "X ... X name.", with n_ctx X. Raises UserError as
    `check_prompts`."""
    check_prompts(len(names))
    holders = " ".join([PLACEHOLDER] * n_ctx)
    called = [descriptions(name)[0] for name in names]
    return backbone.tokenizer([f"{holders} {name}." for name in called]).to(backbone.device)


def encoder_of(backbone: Backbone, names: Sequence[str], n_ctx: int) -> Callable[[Tensor], Tensor]:
    """Return a function: context [n_ctx, d] -> class features [C, e], not normalised, of prompts
    in chunks of `chunk_size`, as `one_at_a_time` encodes them."""
    chunks = token_chunks(backbone, prompt_tokens(backbone, names, n_ctx))
    parts = [PromptedText(backbone, names, n_ctx, tokens=chunk) for chunk in chunks]
    return lambda context: torch.cat(
        one_at_a_time(PromptedText.encode, [(part, context) for part in parts])
    )


def _start(backbone: Backbone) -> int:
    """Count the tokens that the tokenizer puts before a text, once, as an export that is traced
    cannot look at them."""
    if backbone not in _STARTS:
        one, other = backbone.tokenizer([PLACEHOLDER, "photo"])
        _STARTS[backbone] = int((one != other).int().argmax())
    return _STARTS[backbone]


@torch.no_grad()
def init_words(backbone: Backbone, text: str) -> Tensor:
    """Return the embeddings [n, d] of the n tokens of a text, without those that the tokenizer adds
    around it."""

    def make() -> Tensor:
        tokens = backbone.tokenizer([text, f"{text} {PLACEHOLDER}"]).to(backbone.device)
        end = int((tokens[0] != tokens[1]).int().argmax())
        words = backbone.text.words(backbone.text.layout(tokens[:1]))
        return words[_start(backbone) : end].clone()

    return kept_words(backbone, text, make)


def draw(count: int, width: int, seed: int) -> Tensor:
    """Draw random tokens [count, width] with CoOp's standard deviation of 0.02."""
    return 0.02 * torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def context_vectors(backbone: Backbone, words: str, tokens: int, seed: int) -> nn.Parameter:
    """Return a context [n, d] to train: the embeddings of `words`, or `tokens` random vectors if
    `words` is empty."""
    start = init_words(backbone, words) if words else draw(tokens, backbone.text.width, seed)
    return nn.Parameter(start.to(backbone.device))


def limit_tokens(backbone: Backbone, tokens: int) -> int:
    """Return `tokens`, but at most a quarter of the text encoder's length."""
    return min(tokens, backbone.text_length // 4)


# ---- deep prompts ----


def check_room(backbone: Backbone, method: str) -> None:
    """Raise UserError if the image encoder cannot take additional tokens."""
    if backbone.image.opaque:
        raise UserError(
            f"{method} adds tokens to an image's own, but the blocks of {backbone.name} only take "
            f"those of its patches; choose another method or a plain ViT"
        )


def first_context(backbone: Backbone, init: str, n_ctx: int, seed: int) -> tuple[Tensor, str]:
    """Return the initial context, from the first n_ctx words of `init`, and the remaining words,
    which stay fixed.

    The context is random and no words remain if `init` has fewer words, or one of them takes
    several tokens.
    """
    words = init.split()
    if len(words) >= n_ctx:
        vectors = init_words(backbone, " ".join(words[:n_ctx]))
        if len(vectors) == n_ctx:
            return vectors, " ".join(words[n_ctx:])
    return draw(n_ctx, backbone.text.width, seed), ""


def encode_text(text: PromptedText, prompts: Sequence[Tensor]) -> Tensor:
    """Return class features [C, e], not normalised."""

    def edit(i: int, x: Tensor) -> Tensor:
        return text.put(x, prompts[i - 1]) if 1 < i <= len(prompts) else x

    return text.encode(prompts[0], edit)


def encode_image(backbone: Backbone, states: States, prompts: Sequence[Tensor]) -> Tensor:
    """Return features [B, e], not normalised, of tokens [B, L, d] that enter block 1, followed by
    prompts [n, d].

    The first prompts pass through the encoder's norm before block 1, as the image's tokens already
    have. An encoder that pools over all tokens also pools over the prompts.
    """
    encoder, length = backbone.image, states.x.shape[1]

    def append(x: Tensor, prompt: Tensor) -> Tensor:
        return torch.cat([x[:, :length], prompt.to(x.dtype).expand(x.shape[0], -1, -1)], 1)

    def edit(i: int, x: Tensor) -> Tensor:
        return append(x, prompts[i - 1]) if 1 < i <= len(prompts) else x

    return encoder.encode(append(states.x, encoder.pre_norm(prompts[0])), states.layout, edit=edit)


class Prompted(CosineLearner):
    """A module of prompts for both encoders. rest: fixed words between the text prompts and a class
    name. Features are not normalised."""

    first = 1
    reaches = ("image", "text")
    rest = ""

    @abstractmethod
    def into_text(self) -> list[Tensor]:
        """Return prompts [n, d] that enter blocks 1, 2, ... of the text encoder."""

    @abstractmethod
    def into_image(self) -> list[Tensor]:
        """Return prompts [n, d] that enter blocks 1, 2, ... of the image encoder."""

    def adapt(self, side: str, features: Tensor) -> Tensor:
        """Transform the features of one encoder; most methods leave them unchanged."""
        return features

    def text(self, names: Sequence[str]) -> PromptedText:
        """Return the text encoder on "X ... X rest name.", where the X are the prompts."""
        return PromptedText(
            self.backbone,
            [f"{self.rest} {name}".strip() for name in names],
            len(self.into_text()[0]),
        )

    def class_features(self, text: PromptedText) -> Tensor:
        """Return class features [C, e]."""
        return self.adapt("text", encode_text(text, self.into_text()))

    def image_features(self, states: States) -> Tensor:
        """Return image features [B, e]."""
        return self.adapt("image", encode_image(self.backbone, states, self.into_image()))

    def logits(self, image: Tensor, classes: Tensor) -> Tensor:
        """Compare features [B, e] and [C, e], normalised here, -> [B, C]."""
        return cosine_logits(self.backbone, image, F.normalize(classes, dim=-1))

    def encode_classes(self, names: Sequence[str], known: Known) -> Tensor:
        return F.normalize(self.class_features(self.text(names)), dim=-1)

    def image_encoder(self) -> Callable[[States], Tensor]:
        return self.image_features
