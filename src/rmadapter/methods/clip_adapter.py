"""CLIP-Adapter: a bottleneck after the image encoder, blended with what went in. Gao et al., IJCV
2024."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from rmadapter.backbones import Backbone
from rmadapter.errors import UserError
from rmadapter.prompts import Cosines, cosine_logits, zero_shot_weights
from rmadapter.settings import Share, Size
from rmadapter.support.machine import seeded
from rmadapter.training.contract import (
    About,
    Batch,
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


class Bottleneck(Learner):
    """x -> ratio * relu(relu(x W_1) W_2) + (1 - ratio) * x, on features [..., e] that are not
    normalised."""

    def __init__(self, backbone: Backbone, reduction: int, ratio: float) -> None:
        super().__init__(backbone)
        width = backbone.embedding_size
        self.down = nn.Linear(width, width // reduction, bias=False)
        self.up = nn.Linear(width // reduction, width, bias=False)
        self.ratio = ratio

    def adapted(self, x: Tensor) -> Tensor:
        """Return the output [..., e] of the two layers."""
        return F.relu(self.up(F.relu(self.down(x))))

    def blended(self, x: Tensor, adapted: Tensor, ratio: float | Tensor) -> Tensor:
        """Return features [..., e] of which a ratio is adapted."""
        return ratio * adapted + (1 - ratio) * x

    def forward(self, x: Tensor) -> Tensor:
        return self.blended(x, self.adapted(x), self.ratio)

    def for_classes(self, names: Sequence[str], known: Known) -> ToLogits:
        weights = zero_shot_weights(self.backbone, names, known.templates)
        return Cosines(self.backbone, lambda states: self(states.features), weights)


def check_reduction(reduction: int, backbone: Backbone) -> None:
    """Raise UserError for a reduction that leaves no width."""
    width = backbone.embedding_size
    if not 1 <= reduction <= width:
        raise UserError(
            f"reduction={reduction}: give a number from 1 to {width}, the length of a feature"
        )


@dataclass(frozen=True)
class CLIPAdapter(ModuleMethod[Bottleneck]):
    """Adapts only image features, as the released trainer does. That trainer has no configuration
    of its own and is run with CoOp's command for ImageNet, whose settings these are; the paper
    searches the ratio for every data set."""

    title = "CLIP-Adapter"
    source = (
        "Gao et al., IJCV 2024 (arXiv 2110.04544); ratio and reduction of "
        "github.com/gaopengcuhk/CLIP-Adapter, optimisation of CoOp's vit_b16_ep50"
    )
    traits = Traits(
        uses=Uses(
            constants="the ratio",
            tuned="as published for ImageNet",
            on_test="perhaps the ratio, as in most methods with one (abstract of arXiv 2603.04341)",
        ),
        about=About(
            "features",
            "a small network behind the image encoder",
            "cheap training that keeps new classes working",
        ),
        reads="features",
    )
    ratio: Share = 0.2
    reduction: Size = 4
    recipe: Recipe = Recipe()

    def module(self, backbone: Backbone, seed: int = 1) -> Bottleneck:
        """Return a new adapter with PyTorch's initialisation. Raises UserError for a reduction that
        leaves no width."""
        check_reduction(self.reduction, backbone)
        with seeded(seed):
            return Bottleneck(backbone, self.reduction, self.ratio).to(backbone.device)

    def objective(self, module: Bottleneck, shots: Shots) -> Loss:
        weights = zero_shot_weights(module.backbone, shots.classes, shots.templates)

        def loss(batch: Batch) -> Tensor:
            logits = cosine_logits(module.backbone, module(batch.images.features), weights)
            return F.cross_entropy(logits, batch.labels)

        return loss
