"""MMRL: Guo & Gu, "MMRL: Multi-Modal Representation Learning for Vision-Language Models", CVPR 2025
(arXiv 2503.08497).

Tokens R [K, r] of a space shared by both encoders enter every block from J upwards, through a
separate linear map for each block and encoder, and replace the tokens output by the block below. In
a text they follow the first token; in an image their position does not matter. The class token
gives CLIP's features f_c. The mean of the K tokens above an image's top block gives representation
features f_r, through a trained projection of its own. With class features w and frozen counterparts
f_0, w_0, the loss is

alpha CE(f_c, w) + (1 - alpha) CE(f_r, w) + lambda (1 - cos(f_c, f_0)) + lambda (1 - cos(w, w_0)).

Among trained classes, the logits are alpha times those of f_c plus 1 - alpha times those of f_r;
with any other class among them, those of f_c. Everything below block J is frozen and computed once,
in text too.

MMRL++ (Guo & Gu, arXiv 2505.10088) trains less and lets tokens persist: all maps of an encoder
share W, and each block adds a low-rank product and a bias of its own, W + A_i B_i; the projection
of representation features is CLIP's plus such a product; and the input of every block but J is beta
times the mapped tokens plus 1 - beta times the tokens output by the block below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from rmadapter.adapter import adapted_blocks
from rmadapter.backbones import Backbone
from rmadapter.encoders import Grid, Packed, States, TextEncoder, pack
from rmadapter.errors import UserError
from rmadapter.methods.parts.learned_prompts import check_room, draw
from rmadapter.methods.parts.learners import CosineLearner
from rmadapter.prompts import (
    Cosines,
    class_weights,
    cosine_logits,
    prompts_each,
    token_chunks,
    tokenize,
)
from rmadapter.settings import Share, Size
from rmadapter.support.machine import seeded
from rmadapter.training.contract import (
    PUBLISHED,
    About,
    Batch,
    Known,
    Loss,
    ModuleMethod,
    Recipe,
    Shots,
    ToLogits,
    Traits,
    Uses,
    summed,
)


@dataclass(frozen=True)
class Prompts:
    """Frozen prompts that enter block J, and the places of the K representation tokens among them.

    Args:
        frozen: States of T tokens of C prompts.
        wide: Layout of T' >= T tokens.
        old: Rows [T] of `wide` with the prompts' own tokens.
        new: Its other rows.
        which: Which of the K tokens each of these is.
    """

    frozen: States
    wide: Packed
    old: Tensor
    new: Tensor
    which: Tensor


def widen(encoder: TextEncoder, tokens: Tensor, more: int, first: int) -> Prompts:
    """Make room for representation tokens after the first token of every prompt.

    Args:
        encoder: Text encoder.
        tokens: Tokens [C, L].
        more: Number of representation tokens.
        first: Block J, which the prompts enter.
    """
    lengths, read = encoder.real_tokens(tokens)
    filled = torch.cat([tokens[:, :1].expand(-1, 1 + more), tokens[:, 1:]], 1)
    moved = None if read is None else read + more * (read > 0)
    wide = pack(filled, lengths + more, moved, causal=encoder.causal)
    is_new = (wide.positions >= 1) & (wide.positions <= more)
    new, old = (mask.nonzero()[:, 0] for mask in (is_new, ~is_new))
    return Prompts(encoder.frozen(tokens, first), wide, old, new, wide.positions[new] - 1)


class LowRank(nn.Module):
    """A B [rows, columns], initially zero, and a bias if one is given."""

    def __init__(self, rows: int, columns: int, rank: int, bias: Tensor | None = None) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(rows, rank))
        self.b = nn.Parameter(torch.zeros(rank, columns))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())

    @property
    def weight(self) -> Tensor:
        return self.a @ self.b


class Representations(CosineLearner):
    """R, its maps into both encoders, and the projection of representation features.

    Attributes:
        space: R [K, r].
        maps: Maps by side and block number.
        lowest: Lowest mapped block of each side; in the shallower encoder the blocks are those at
            the same relative height.
        shared: W of each side, in MMRL++.
    """

    reaches = ("image", "text")

    def __init__(self, backbone: Backbone, settings: MMRL, seed: int) -> None:
        super().__init__(backbone)
        check_room(backbone, settings.title)
        self.alpha, self.beta, rank = settings.alpha, settings.beta, settings.rank
        sides = (backbone.image, backbone.text)
        deepest = max(encoder.depth for encoder in sides)
        if not 1 <= settings.first_block <= deepest:
            raise UserError(
                f"mmrl.first_block={settings.first_block}: {backbone.name} has blocks 1 to "
                f"{deepest}"
            )
        self.space = nn.Parameter(draw(settings.tokens, settings.width, seed))
        self.maps, self.shared, self.lowest = nn.ModuleDict(), nn.ParameterDict(), {}
        with seeded(seed):
            for encoder in sides:
                blocks = adapted_blocks(settings.first_block, None, encoder.depth, deepest)
                # all blocks start alike, as in the released code
                one = nn.Linear(settings.width, encoder.width)
                if rank:
                    self.shared[encoder.side] = one.weight
                self.maps[encoder.side] = nn.ModuleDict(
                    {
                        str(i): LowRank(encoder.width, settings.width, rank, one.bias)
                        if rank
                        else deepcopy(one)
                        for i in blocks
                    }
                )
                self.lowest[encoder.side] = blocks[0]
            self._project(settings)
        self.first = self.lowest["image"]
        self.to(backbone.device)

    def _project(self, settings: MMRL) -> None:
        """Make the projection [d, e] of representation features, or its addition to CLIP's."""
        rows, size = self.backbone.image.width, self.backbone.embedding_size
        if not settings.projection_rank:
            start = rows**-0.5 * torch.randn(rows, size)
            self.projection: nn.Parameter | LowRank = nn.Parameter(start)
            return
        if self.backbone.image.projection is None:
            raise UserError(
                f"{settings.title}: {self.backbone.name} has no linear projection of images to add "
                "to"
            )
        self.projection = LowRank(rows, size, settings.projection_rank)

    def tokens(self, side: str, block: int) -> Tensor:
        """Return the tokens [K, d], mapped for one block."""
        mapping = self.maps[side].get_submodule(str(block))
        assert isinstance(mapping, (nn.Linear, LowRank))
        weight = self.shared[side] + mapping.weight if len(self.shared) else mapping.weight
        return F.linear(self.space, weight, mapping.bias)

    def project(self, x: Tensor) -> Tensor:
        """Return representation features [B, e] of [B, d]."""
        if isinstance(self.projection, nn.Parameter):
            return x @ self.projection
        assert self.backbone.image.projection is not None
        weight, bias = self.backbone.image.projection
        projected = x @ (weight + self.projection.weight)
        return projected if bias is None else projected + bias

    def prompts(self, names: Sequence[str], templates: Sequence[str]) -> list[Prompts]:
        """Return the prompts of all classes, template by template, in chunks."""
        text, more, first = self.backbone.text, len(self.space), self.lowest["text"]
        chunks = token_chunks(self.backbone, tokenize(self.backbone, names, templates))
        return [widen(text, chunk, more, first) for chunk in chunks]

    def class_features(self, prompts: Sequence[Prompts], each: int) -> Tensor:
        """Return normalised class features [C, e]."""
        return class_weights(torch.cat([self._text(chunk) for chunk in prompts]), each)

    def _text(self, prompts: Prompts) -> Tensor:
        encoder, layout, x = self.backbone.text, prompts.wide, prompts.frozen.x
        some = encoder.reads_some(layout)
        x = x.new_zeros(len(layout.ids), x.shape[-1]).index_copy(0, prompts.old, x)
        for i in range(self.lowest["text"], encoder.depth + 1):
            mapped = self.tokens("text", i)[prompts.which]
            if i > self.lowest["text"] and self.beta < 1:
                mapped = self.beta * mapped + (1 - self.beta) * x[prompts.new]
            x = x.index_copy(0, prompts.new, mapped.to(x.dtype))
            x = encoder.step(i, x, encoder.norm(i, x), layout, i == encoder.depth and some)
        if not some:
            # an encoder that pools over all tokens only pools over the prompt's own
            x = x[prompts.old]
        return encoder.head(x, prompts.frozen.layout)

    def image_features(self, states: States) -> tuple[Tensor, Tensor]:
        """Return f_c and f_r, [B, e] each, not normalised, of image tokens that enter block J."""
        encoder, x, k = self.backbone.image, states.x, len(self.space)
        layout: Grid = states.layout
        length, partly = x.shape[1], encoder.reads_some(layout)
        wide = replace(layout, last=k)
        for i in range(self.lowest["image"], encoder.depth + 1):
            mapped = self.tokens("image", i).expand(x.shape[0], -1, -1)
            if i > self.lowest["image"] and self.beta < 1:
                mapped = self.beta * mapped + (1 - self.beta) * x[:, length:]
            x = torch.cat([x[:, :length], mapped], 1)
            x = encoder.step(i, x, encoder.norm(i, x), wide, i == encoder.depth and partly)
        return encoder.head(x[:, :-k], layout), self.project(encoder.top_norm(x[:, -k:]).mean(1))

    def encode_classes(self, names: Sequence[str], known: Known) -> Tensor:
        prompts = self.prompts(names, known.templates)
        return self.class_features(prompts, prompts_each(names, known.templates))

    def for_classes(self, names: Sequence[str], known: Known) -> ToLogits:
        w = self.class_weights(names, known)
        alpha = self.alpha if {*names} <= {*known.classes} else 1.0

        if alpha == 1:
            return Cosines(self.backbone, lambda states: self.image_features(states)[0], w)

        def score(states: States) -> Tensor:
            f_c, f_r = self.image_features(states)
            logits_c, logits_r = (cosine_logits(self.backbone, f, w) for f in (f_c, f_r))
            return alpha * logits_c + (1 - alpha) * logits_r

        return score


Rank = Annotated[int, Field(ge=0, le=4096)]  # 0 for a whole matrix


@dataclass(frozen=True)
class MMRL(ModuleMethod[Representations]):
    """Tokens of a space that both encoders share.

    The released presets set `regularisation` (and in MMRL `width` on EuroSAT, in MMRL++ `beta`) for
    each data set, from 0.01 to 7; here all use that of the general file. Logits are over the
    backbone's own temperature, 1/100 in OpenAI's CLIP, the constant in the released code.

    Args:
        title: Name in tables.
        source: Paper, and where the settings are from.
        tokens: Number K of representation tokens.
        width: Width r of their space.
        first_block: Lowest mapped block J, counted in the deeper encoder.
        alpha: Weight alpha of the class token's logits.
        regularisation: Weight lambda of the pull to untouched features.
        rank: Rank of A_i B_i; 0 for separate maps.
        projection_rank: Rank of the addition to CLIP's projection; 0 for a projection of its own.
        beta: Share of the mapped tokens in a block's input; 1 discards the tokens output by the
            block below.
    """

    title: str = "MMRL"
    source: str = (
        "Guo & Gu, CVPR 2025 (arXiv 2503.08497); configs/trainers/MMRL/vit_b16.yaml of "
        "github.com/yunncheng/MMRL"
    )
    tokens: Size = 5
    width: Size = 512
    first_block: Size = 6
    alpha: float = 0.7
    regularisation: float = 1.0
    rank: Rank = 0
    projection_rank: Rank = 0
    beta: Share = 1.0
    recipe: Recipe = Recipe(optimizer="adamw", learning_rate=0.001, epochs=10, batch_size=4)
    traits: Traits = Traits(
        uses=Uses(
            constants="weight of regularisation, width on EuroSAT, epochs on ImageNet",
            tuned=PUBLISHED,
        ),
        about=About(
            "blocks",
            "tokens that both encoders share",
            "trained classes first, but new ones must work",
        ),
    )

    def module(self, backbone: Backbone, seed: int = 1) -> Representations:
        return Representations(backbone, self, seed)

    def objective(self, module: Representations, shots: Shots) -> Loss:
        backbone, each = module.backbone, prompts_each(shots.classes, shots.templates)
        prompts = module.prompts(shots.classes, shots.templates)
        w_0 = class_weights(torch.cat([chunk.frozen.features for chunk in prompts]), each)

        def loss(batch: Batch) -> dict[str, Tensor]:
            f_c, f_r = module.image_features(batch.images)
            w = module.class_features(prompts, each)
            ce, ce_r = (
                F.cross_entropy(cosine_logits(backbone, f, w), batch.labels) for f in (f_c, f_r)
            )
            f_0 = batch.images.features
            terms = {
                "ce": self.alpha * ce,
                "ce_representation": (1 - self.alpha) * ce_r,
                "image": self.regularisation * (1 - F.cosine_similarity(f_c, f_0).mean()),
                "text": self.regularisation * (1 - F.cosine_similarity(w, w_0).mean()),
            }
            return summed(terms)

        return loss


MMRL_PLUS_PLUS = MMRL(
    "MMRL++",
    "Guo & Gu, arXiv 2505.10088; configs/trainers/MMRLpp/vit_b16.yaml of github.com/yunncheng/MMRL",
    rank=4,
    projection_rank=64,
    beta=0.9,
    traits=Traits(
        uses=Uses(
            constants="weight of regularisation, beta, epochs on ImageNet",
            tuned=PUBLISHED,
        ),
        about=About("blocks", "MMRL with shared and low-rank maps"),
    ),
)
