"""Prompts with learned context: "X X X X name." whose placeholders X give way to vectors.

Under causal attention, prompts whose context is the same for all classes begin with the same tokens, which are then
computed once; and nothing after the end-of-text token is computed at all. Both are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rmadapter.backbone import Backbone
from rmadapter.errors import UserError
from rmadapter.towers import towers

HOLDER = "X"  # one token in every vocabulary, or the one unknown token


class PromptedText:
    """The text encoder of a backbone on "X ... X name" + suffix, where n_ctx X are the context.

    layout: the packed prompts of C classes, T tokens in all. words: their own embeddings [T, d]. positions: packed rows
    of the context tokens, [n_ctx] if the classes share them, else [C, n_ctx]. share=False keeps them apart in any case,
    for contexts that differ between classes. Raises UserError when context and name do not fit the encoder.
    """

    def __init__(
        self, backbone: Backbone, classes: Sequence[str], n_ctx: int, suffix: str = ".", share: bool = True
    ) -> None:
        _, self.tower = towers(backbone.model)
        device = next(backbone.model.parameters()).device
        holders = " ".join([HOLDER] * n_ctx)
        tokens = backbone.tokenizer([f"{holders} {name}{suffix}".strip() for name in classes]).to(device)
        start = _start(backbone)
        if n_ctx < 1 or start + n_ctx + 2 > tokens.shape[1]:
            raise UserError(
                f"{n_ctx} context tokens: the text encoder of {backbone.name} has room for 1 to "
                f"{tokens.shape[1] - start - 2}"
            )
        self.layout = self.tower.layout(tokens, share)
        with torch.no_grad():
            self.words = self.tower.words(self.layout)
        self.positions = torch.arange(start, start + n_ctx, device=device)
        if not self.layout.prefix:
            lengths = self.tower.real_tokens(tokens)[0]
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
        return self.tower.encode(self.tower.stem(self.layout, self.put(self.words, context)), self.layout, edit)


def _start(backbone: Backbone) -> int:
    """How many tokens the tokenizer puts before a text."""
    one, other = backbone.tokenizer([HOLDER, "photo"])
    return int((one != other).int().argmax())


@torch.no_grad()
def init_words(backbone: Backbone, text: str) -> Tensor:
    """Embeddings [n, d] of the n tokens of a text, without those that the tokenizer puts around it."""
    _, tower = towers(backbone.model)
    tokens = backbone.tokenizer([text, f"{text} {HOLDER}"]).to(next(backbone.model.parameters()).device)
    end = int((tokens[0] != tokens[1]).int().argmax())
    return tower.words(tower.layout(tokens[:1]))[_start(backbone) : end].clone()
