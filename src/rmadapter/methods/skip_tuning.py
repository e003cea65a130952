"""Skip Tuning: Wu et al., "Skip Tuning: Pre-trained Vision-Language Models are Effective and
Efficient Adapters Themselves", CVPR 2025 (arXiv 2412.11509).

Fine-tunes CLIP itself, but skips what matters little. Layer-wise skipping: the output of the lower
blocks of both encoders is computed once, and only the blocks above learn. Class-wise skipping: an
image is compared with its own class, with those that untouched CLIP finds most similar, and with a
few of the others; classes that no image of a batch needs are not encoded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.encoders import Packed, send
from rmadapter.errors import UserError
from rmadapter.methods.parts.tuned import TunedCLIP
from rmadapter.prompts import (
    Chunks,
    chunk_size,
    cosine_logits,
    frozen_prompts,
    prompts_each,
    tokenize,
    zero_shot_weights,
)
from rmadapter.settings import Positive, Share
from rmadapter.training.contract import (
    About,
    Batch,
    Loss,
    ModuleMethod,
    Recipe,
    Shots,
    Traits,
    Uses,
)


class Prompts:
    """Input of block `first` of the text encoder, [P, S, d] for P prompts. It is computed once; a
    step selects the prompts of some classes."""

    def __init__(
        self, backbone: Backbone, names: Sequence[str], templates: Sequence[str], first: int
    ) -> None:
        self.encoder, self.classes = backbone.text, len(names)
        self.each = prompts_each(names, templates)
        self.tokens = tokenize(backbone, names, templates)
        self.size = chunk_size(backbone, self.tokens)
        grids = [
            states.layout.apart(states.x)
            for states in frozen_prompts(backbone, names, templates, first)
        ]
        longest = max(grid.shape[1] for grid in grids)
        self.x = torch.cat([F.pad(grid, (0, 0, 0, longest - grid.shape[1])) for grid in grids])

    @torch.compiler.disable  # as the classes change with every step
    def of(self, classes: Tensor) -> Chunks:
        """Select classes [K] -> packed tokens [T, d] and their layout, in chunks of
        `chunk_size`."""
        turns = torch.arange(self.each, device=classes.device) * self.classes
        rows = (turns[:, None] + classes).flatten()
        return [self._packed(some) for some in rows.split(self.size)]

    def _packed(self, rows: Tensor) -> tuple[Tensor, Packed]:
        layout = self.encoder.layout(self.tokens[rows])
        # the first has the shared beginning
        prompt = F.pad(layout.slots // layout.grid[1], (layout.prefix, 0))
        return self.x[rows[prompt], layout.positions], layout


def choose_classes(
    similar: Tensor, labels: Tensor, ratio: float, decay: float, generator: torch.Generator
) -> Tensor:
    """Return which of C classes each of B images is compared with, [B, C]: its own and the most
    similar others, ratio * C in all, rounded up, and the k-th after these with probability
    exp(-decay k).

    Args:
        similar: Untouched logits [B, C].
        labels: Labels [B].
        ratio: Share of the classes that are always compared.
        decay: Decay of the probability of the others.
        generator: Generator of the draw.
    """
    own_first = similar.scatter(1, labels[:, None], math.inf)
    ranks = own_first.argsort(1, descending=True).argsort(1)  # from 0
    behind = ranks + 1 - math.ceil(ratio * similar.shape[1])
    drawn = torch.rand(similar.shape, generator=generator)
    return send(drawn, similar.device) < torch.exp(-decay * behind)


@dataclass(frozen=True)
class SkipTuning(ModuleMethod[TunedCLIP]):
    """Fine-tunes the upper blocks themselves, on the classes that matter to an image.

    Decay, optimiser and rates are ours: docs/reference/methods.md lists what the paper leaves open.

    Args:
        skipped: Share of each encoder's blocks that stays fixed, 9 of 12.
        ratio: As in `choose_classes`; 1 skips no class.
        decay: As in `choose_classes`.
    """

    title = "Skip Tuning"
    source = (
        "Wu et al., CVPR 2025 (arXiv 2412.11509); what it leaves open is listed in "
        "docs/reference/methods.md"
    )
    traits = Traits(
        uses=Uses(tuned="as published where that is known to us, the rest by nothing"),
        about=About("blocks", "the upper blocks themselves"),
        own_reading="from the abstract and notes on the paper, with optimiser, rate, epochs "
        "and weight decay of this project",
    )
    skipped: Share = 0.75
    ratio: Annotated[float, Field(gt=0, le=1)] = 0.05
    decay: Positive = 0.3
    recipe: Recipe = Recipe(
        optimizer="adamw",
        learning_rate=1e-5,
        weight_decay=0.01,
        epochs=20,
        schedule="step",
    )

    def module(self, backbone: Backbone, seed: int = 1) -> TunedCLIP:
        if self.skipped == 1:
            raise UserError(
                "skipped=1 leaves no block to train: give a smaller share, such as 0.75"
            )
        return TunedCLIP(backbone, self.skipped)

    def objective(self, module: TunedCLIP, shots: Shots) -> Loss:
        backbone = module.backbone
        prompts = Prompts(backbone, shots.classes, shots.templates, module.first_text)
        known = zero_shot_weights(backbone, shots.classes, shots.templates)

        def loss(batch: Batch) -> dict[str, Tensor]:
            similar = cosine_logits(backbone, batch.images.features, known)
            keep = choose_classes(similar, batch.labels, self.ratio, self.decay, batch.generator)
            classes = keep.any(0).nonzero()[:, 0]
            weights = module.class_features(prompts.of(classes), prompts.each)
            logits = cosine_logits(backbone, module.image_features(batch.images), weights)
            logits = logits.masked_fill(~keep[:, classes], -math.inf)
            ce = F.cross_entropy(logits, torch.searchsorted(classes, batch.labels))
            return {"loss": ce, "classes": keep.sum(1).float().mean()}

        return loss
