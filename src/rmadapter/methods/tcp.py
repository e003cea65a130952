"""TCP: Yao et al., "TCP: Textual-based Class-aware Prompt tuning for Visual-Language Model", CVPR
2024."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmadapter.adapter import quick_gelu
from rmadapter.backbones import Backbone
from rmadapter.errors import UserError
from rmadapter.methods.coop import Context
from rmadapter.methods.kgcoop import KgCoOp
from rmadapter.methods.parts.learned_prompts import PromptedText, prompt_tokens
from rmadapter.prompts import one_at_a_time, token_chunks, zero_shot_weights
from rmadapter.settings import Size
from rmadapter.support.machine import seeded
from rmadapter.training.contract import PUBLISHED, About, Recipe, Traits, Uses


class ClassAware(Context):
    """Context vectors that are replaced, before one block, by vectors of each class, made from its
    untouched features.

    Below that block the classes share their context, so their common beginning is computed once.
    """

    def __init__(self, method: TCP, backbone: Backbone, seed: int) -> None:
        super().__init__(backbone, method.context, method.tokens, seed)
        n, width = self.ctx.shape
        size, depth = backbone.embedding_size, backbone.text.depth
        hidden = max(1, size // 4)
        with seeded(seed):
            self.down, self.up = nn.Linear(size, hidden), nn.Linear(hidden, n * width)
        self.layer = min(method.layer, 1 + (method.layer - 1) * depth // 12)
        if self.layer > depth:
            raise UserError(
                f"tcp.layer={method.layer}: {backbone.name} has no such block; give at most "
                f"{max(depth, 12)}"
            )
        self.to(backbone.device)

    def contexts(self, known: Tensor) -> Tensor:
        """Map untouched class features [C, e] to contexts [C, n, d]."""
        return self.up(quick_gelu(self.down(known))).unflatten(-1, tuple(self.ctx.shape))

    def bind(self, names: Sequence[str], templates: Sequence[str]) -> Callable[[], Tensor]:
        backbone, n = self.backbone, len(self.ctx)
        known = zero_shot_weights(backbone, names, templates)
        chunks = token_chunks(backbone, prompt_tokens(backbone, names, n))
        below = [PromptedText(backbone, names, n, tokens=chunk) for chunk in chunks]
        above = [PromptedText(backbone, names, n, False, chunk) for chunk in chunks]
        rows = [rows_in(*pair) for pair in zip(below, above, strict=True)]
        parts = [*zip(below, above, rows, known.split([*map(len, chunks)]), strict=True)]
        return lambda: F.normalize(torch.cat(one_at_a_time(self._encode, parts)), dim=-1)

    def _encode(
        self, below: PromptedText, above: PromptedText, rows: Tensor, known: Tensor
    ) -> Tensor:
        """Return class features [C, e], not normalised.

        Args:
            below: Prompts that share their beginning.
            above: The same prompts apart.
            rows: As from `rows_in`.
            known: Untouched class features [C, e].
        """
        encoder = above.encoder
        x = encoder.stem(below.layout, below.put(below.words, self.ctx))
        for i in range(1, self.layer):
            x = encoder.step(i, x, encoder.norm(i, x), below.layout)
        x = above.put(x.index_select(0, rows), self.contexts(known))
        return encoder.encode(x, above.layout, self.layer)


def rows_in(below: PromptedText, above: PromptedText) -> Tensor:
    """Return the row of each token of `above`, prompts apart, in `below`, which share their
    beginning."""
    place, prefix = above.layout.positions, below.layout.prefix
    return torch.where(place < prefix, place, prefix + (place >= prefix).cumsum(0) - 1)


@dataclass(frozen=True)
class TCP(KgCoOp):
    """KgCoOp from noise, with a separate context for each class in the upper blocks of the text
    encoder.

    A bottleneck makes these contexts from the untouched class features (templates of the run). The
    authors' prompts differ between data sets; here all are "X X X X name.". They test new classes
    of SUN397 and ImageNet after 25 of the 50 epochs; here all are tested at the end.

    Args:
        context: Words that the context starts from; if empty, it starts from noise.
        tokens: Number of context vectors, without words to start from.
        layer: Block before which the contexts are put, counted from 1 in an encoder of 12 blocks
            (8, counted from 0, in the released code); a shallower one takes the same fraction of
            its depth.
        distance_weight: Weight of the distance from the run's prompts, as in KgCoOp.
    """

    title = "TCP"
    source = (
        "Yao et al., CVPR 2024 (arXiv 2311.18231); vit_b16_ep100_ctxv1, scripts/base2new_train.sh "
        "and Adam's eps of the README of github.com/htyao89/Textual-based_Class-aware_prompt_tuning"
    )
    traits = Traits(
        uses=Uses(constants="the words of the prompt, the epoch tested", tuned=PUBLISHED),
        about=About(
            "text", "KgCoOp's vectors, made from each class's name", "trained and new classes alike"
        ),
        reads="text",
    )
    context: str = ""
    layer: Size = 9
    recipe: Recipe = Recipe(optimizer="adam", eps=1e-3)

    def module(self, backbone: Backbone, seed: int = 1) -> ClassAware:
        return ClassAware(self, backbone, seed)
