"""HOSO-Adapter: Vorster et al., "Hold-One-Shot-Out (HOSO) for Validation-Free Few-Shot CLIP
Adapters", 2026 (arXiv 2603.04341).

CLIP-Adapter whose ratio is learned: one shot per class is held out, the network learns from the
others, and the ratio from those held out. Neither loss moves what the other trains:

loss = CE(network, fixed ratio; the other shots) + CE(fixed network, ratio; shots held out)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from rmadapter.backbones import Backbone
from rmadapter.methods.clip_adapter import Bottleneck, check_reduction
from rmadapter.prompts import cosine_logits, zero_shot_weights
from rmadapter.settings import Size
from rmadapter.support.machine import seeded
from rmadapter.training.contract import (
    About,
    Batch,
    Fitted,
    Loss,
    ModuleMethod,
    Recipe,
    Shots,
    Traits,
    Uses,
)


class Blend(Bottleneck):
    """CLIP-Adapter's network, whose ratio is the sigmoid of one trained number."""

    def __init__(self, backbone: Backbone, reduction: int, ratio: float) -> None:
        super().__init__(backbone, reduction, ratio)
        self.share = nn.Parameter(torch.tensor(math.log(ratio / (1 - ratio))))

    def forward(self, x: Tensor) -> Tensor:
        return self.blended(x, self.adapted(x), self.share.sigmoid())


@dataclass(frozen=True)
class HOSOAdapter(ModuleMethod[Blend]):
    """CLIP-Adapter whose ratio is learned from one shot of each class.

    The paper's optimiser, rate and epochs are not known to us; these are CLIP-Adapter's.

    Args:
        ratio: Ratio at the start. With one shot per class none is held out, and it stays there.
        reduction: Width of the features over that of the adapter.
    """

    title = "HOSO-Adapter"
    source = (
        "Vorster et al., 2026 (arXiv 2603.04341), from the abstract, as the repository holds no "
        "code; ratio, reduction and recipe of CLIP-Adapter"
    )
    traits = Traits(
        uses=Uses(tuned="one shot of each class, in every fit; the rest as for ImageNet"),
        about=About(
            "features",
            "CLIP-Adapter, with its ratio learned from one shot of each class",
            "cheap training that decides how far to trust the shots",
        ),
        reads="features",
        own_reading="from the abstract, with CLIP-Adapter's recipe, as no code was released",
    )
    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.2
    reduction: Size = 4
    recipe: Recipe = Recipe()

    def module(self, backbone: Backbone, seed: int = 1) -> Blend:
        """Return a new network with PyTorch's initialisation. Raises UserError for a reduction that
        leaves no width."""
        check_reduction(self.reduction, backbone)
        with seeded(seed):
            return Blend(backbone, self.reduction, self.ratio).to(backbone.device)

    def fit(self, backbone: Backbone, shots: Shots) -> Fitted:
        module = self.module(backbone, shots.seed)
        rest = sorted({*range(len(shots.images))} - {*one_of_each(shots)})
        learning = replace(shots, images=shots.images.subset(rest))
        return self.train(module, self.objective(module, shots), learning)

    def objective(self, module: Blend, shots: Shots) -> Loss:
        backbone, held = module.backbone, one_of_each(shots)
        weights = zero_shot_weights(backbone, shots.classes, shots.templates)
        x, labels = shots.plain_features()[held], shots.labels[held]

        def loss(batch: Batch) -> Tensor:
            ratio, seen = module.share.sigmoid(), batch.images.features
            features = module.blended(seen, module.adapted(seen), ratio.detach())
            total = F.cross_entropy(cosine_logits(backbone, features, weights), batch.labels)
            if held:
                with torch.no_grad():
                    adapted = module.adapted(x)
                logits = cosine_logits(backbone, module.blended(x, adapted, ratio), weights)
                total = total + F.cross_entropy(logits, labels)
            return total

        return loss


def one_of_each(shots: Shots) -> list[int]:
    """Return the index of a random shot of each class that has several."""
    labels = shots.labels.cpu()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(shots.seed))
    first = {int(labels[row]): row for row in reversed(order.tolist())}
    counts = torch.bincount(labels)
    return sorted(row for label, row in first.items() if counts[label] > 1)
