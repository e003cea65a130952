"""CoCoOp: Zhou et al., "Conditional Prompt Learning for Vision-Language Models", CVPR 2022."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmadapter.adapter import at_least_float32
from rmadapter.backbones import Backbone
from rmadapter.methods.parts.learned_prompts import context_vectors, encoder_of
from rmadapter.prompts import cosine_logits
from rmadapter.settings import Size
from rmadapter.support.machine import seeded
from rmadapter.training.contract import (
    PUBLISHED,
    About,
    Known,
    Learner,
    Loss,
    ModuleMethod,
    Recipe,
    Shots,
    ToLogits,
    Traits,
    Uses,
)


class Conditional(Learner):
    """Context vectors, all shifted by one vector per image, which a bottleneck ("meta-net") makes
    of its features."""

    reaches = ("text",)

    def __init__(self, backbone: Backbone, words: str, tokens: int, seed: int) -> None:
        super().__init__(backbone)
        self.ctx = context_vectors(backbone, words, tokens, seed)
        size = backbone.embedding_size
        hidden = max(1, size // 16)
        with seeded(seed):
            self.down, self.up = nn.Linear(size, hidden), nn.Linear(hidden, self.ctx.shape[1])
        self.to(backbone.device)

    def score(self, names: Sequence[str]) -> Callable[[Tensor], Tensor]:
        """Return a function from image features [B, e] to logits [B, C]. It encodes the C prompts
        of one image at a time."""
        encode = encoder_of(self.backbone, names, len(self.ctx))

        def logits(features: Tensor) -> Tensor:
            shifts = self.up(F.relu(self.down(F.normalize(at_least_float32(features), dim=-1))))
            rows = []
            for one, shift in zip(features.split(1), shifts, strict=True):
                classes = F.normalize(encode(self.ctx + shift), dim=-1)
                rows.append(cosine_logits(self.backbone, one, classes))
            return torch.cat(rows)

        return logits

    def for_classes(self, names: Sequence[str], known: Known) -> ToLogits:
        score = self.score(names)
        return lambda states: score(states.features)


@dataclass(frozen=True)
class CoCoOp(ModuleMethod[Conditional]):
    """CoOp whose context depends on the image.

    No class feature serves two images: C prompts are encoded for each image, in training and in
    use. They are encoded one image at a time, to bound the memory. Only the C prompts of one image
    share their beginning.
    """

    title = "CoCoOp"
    source = (
        "Zhou et al., CVPR 2022 (arXiv 2203.05557); vit_b16_c4_ep10_batch1_ctxv1 of "
        "github.com/KaiyangZhou/CoOp"
    )
    traits = Traits(
        uses=Uses(tuned=PUBLISHED),
        about=About(
            "text",
            "CoOp's vectors, shifted for each image",
            "studies of prompts that follow the image",
        ),
        reads="text",
    )
    context: str = "a photo of a"
    tokens: Size = 4
    recipe: Recipe = Recipe(epochs=10, batch_size=1)

    def module(self, backbone: Backbone, seed: int = 1) -> Conditional:
        return Conditional(backbone, self.context, self.tokens, seed)

    def objective(self, module: Conditional, shots: Shots) -> Loss:
        score = module.score(shots.classes)
        return lambda batch: F.cross_entropy(score(batch.images.features), batch.labels)
