"""CLIP-LoRA: low-rank updates of attention in every block of both encoders. Zanella and Ben Ayed,
CVPRW 2024.

q, k, v = W n + (alpha / sqrt(r)) B A drop(n)        n: tokens after the block's first norm, A: [r,
d], B: [d, r]

The backbone's weights do not change. Views of its blocks add the second term: in training as
written, in answers merged into a copy of the weights, W + (alpha / sqrt(r)) B A. The image encoder
is trained from its first block on, so only the input of that block is frozen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmadapter.backbones import Backbone
from rmadapter.encoders import BlockView, EitherEncoder, Fused, Packed, Projections, States
from rmadapter.errors import UserError
from rmadapter.methods.parts.learners import TextLearner
from rmadapter.prompts import stems
from rmadapter.settings import Share, Size
from rmadapter.support.machine import seeded
from rmadapter.training.contract import (
    PUBLISHED,
    About,
    Loss,
    ModuleMethod,
    Recipe,
    Shots,
    Traits,
    Uses,
)


class LowRank(nn.Module):
    """scale * B A drop(x) for tokens [..., d]; zero at first."""

    def __init__(self, width: int, rank: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width, bias=False)
        nn.init.zeros_(self.up.weight)
        self.scale, self.dropout = scale, dropout

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.up(self.down(F.dropout(x, self.dropout, self.training)))


class UpdatedBlock(BlockView):
    """A block with a LowRank update each for query, key and value."""

    def __init__(self, encoder: EitherEncoder, block: int, updates: nn.ModuleList) -> None:
        super().__init__(encoder, block)
        self.updates = updates

    def query(self, n: Tensor) -> Tensor:
        return super().query(n) + self.updates[0](n)

    def key_value(self, n: Tensor) -> tuple[Tensor, ...]:
        projected = super().key_value(n)
        return tuple(x + update(n) for x, update in zip(projected, self.updates[1:], strict=True))

    def qkv(self, n: Tensor) -> tuple[Tensor, ...]:
        projected = super().qkv(n)
        return tuple(x + update(n) for x, update in zip(projected, self.updates, strict=True))


class MergedBlock(Fused):
    """An updated block without dropout, its updates merged into its weights.

    The weights are read off the block's output for unit vectors, which works for any kind of block.

    Args:
        block: Block to merge.
        unit: Identity matrix [d, d].
    """

    def __init__(self, block: UpdatedBlock, unit: Tensor) -> None:
        self.heads, self.block = block.heads, block
        self.bias = torch.cat(block.qkv(torch.zeros_like(unit[:1])), -1)  # [1, 3d]
        self.weight = torch.cat(block.qkv(unit), -1) - self.bias  # [d, 3d]

    def project(self, n: Tensor, start: int, stop: int) -> Tensor:
        columns = slice(start * n.shape[-1], stop * n.shape[-1])
        return n @ self.weight[:, columns] + self.bias[0, columns]

    def close(self, x: Tensor, attended: Tensor) -> Tensor:
        return self.block.close(x, attended)


class UpdatedCLIP(TextLearner):
    """Both encoders of a backbone with trainable updates; the backbone itself is not modified.

    Raises UserError for encoders whose blocks cannot be taken apart.
    """

    def __init__(
        self, backbone: Backbone, rank: int, scale: float, dropout: float, seed: int
    ) -> None:
        super().__init__(backbone)
        self.dropout = dropout
        sides: tuple[EitherEncoder, ...] = (backbone.image, backbone.text)
        with seeded(seed):
            updates = [self._update(encoder, rank, scale) for encoder in sides]
        self.updates = nn.ModuleList(nn.ModuleList(layers) for layers in updates)
        self.views = [
            [UpdatedBlock(encoder, block, update) for block, update in enumerate(layers, 1)]
            for encoder, layers in zip(sides, updates, strict=True)
        ]
        self.to(backbone.device)

    def _update(self, encoder: EitherEncoder, rank: int, scale: float) -> list[nn.ModuleList]:
        if encoder.opaque:
            kind = type(encoder.blocks[0]).__name__
            raise UserError(
                f"CLIP-LoRA changes query, key and value, but the blocks ({kind}) of backbone "
                f"{self.backbone.name!r} "
                f"cannot be taken apart; use another, such as 'ViT-B-16/openai'"
            )
        return [
            nn.ModuleList(LowRank(encoder.width, rank, scale, self.dropout) for _ in range(3))
            for _ in range(encoder.depth)
        ]

    def encode_text(self, x: Tensor, layout: Packed) -> Tensor:
        return self.backbone.text.encode(x, layout, views=self.views[1])

    @torch.no_grad()
    def merged(self) -> list[MergedBlock]:
        """Return the image encoder's blocks with the updates merged, for answers."""
        like = next(self.parameters())
        unit = torch.eye(self.backbone.image.width, device=like.device, dtype=like.dtype)
        return [MergedBlock(view, unit) for view in self.views[0]]

    def image_features(self, states: States, merged: Sequence[Projections] = ()) -> Tensor:
        """Return features [B, e] from the input of the image encoder's first block, by the blocks
        that `merged` returned, if they are given."""
        views = merged or self.views[0]
        return self.backbone.image.encode(states.x, states.layout, views=views)

    def image_encoder(self) -> Callable[[States], Tensor]:
        return partial(self.image_features, merged=self.merged())


@dataclass(frozen=True)
class CLIPLoRA(ModuleMethod[UpdatedCLIP]):
    """alpha / sqrt(rank) scales an update, as in the released code. Dropout is drawn anew for every
    token of every prompt, so training cannot compute the common beginning of all prompts only once.
    Several templates are averaged; the released code trains with the first.
    """

    title = "CLIP-LoRA"
    source = (
        "Zanella and Ben Ayed, CVPRW 2024 (arXiv 2405.18541); defaults of "
        "github.com/MaxZanella/CLIP-LoRA"
    )
    traits = Traits(
        uses=Uses(tuned=PUBLISHED),
        about=About(
            "encoders",
            "low-rank updates of attention in every block",
            "images far from natural photographs",
        ),
    )
    rank: Size = 2
    alpha: float = 1.0
    dropout: Share = 0.25
    recipe: Recipe = Recipe(
        optimizer="adamw",
        learning_rate=2e-4,
        weight_decay=0.01,
        iterations=500,
        batch_size=32,
        schedule="step",
        warmup_epochs=0,
        final_rate=1e-6,
    )

    def module(self, backbone: Backbone, seed: int = 1) -> UpdatedCLIP:
        if self.rank < 1 or not 0 <= self.dropout < 1:
            raise UserError(
                f"rank={self.rank}, dropout={self.dropout}: give a rank above 0 and a dropout "
                "below 1"
            )
        return UpdatedCLIP(
            backbone, self.rank, self.alpha / math.sqrt(self.rank), self.dropout, seed
        )

    def objective(self, module: UpdatedCLIP, shots: Shots) -> Loss:
        share = self.dropout == 0
        prompts = stems(module.backbone, shots.classes, shots.templates, share)
        return module.cross_entropy(prompts, shots)
