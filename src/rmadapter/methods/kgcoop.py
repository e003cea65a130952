"""KgCoOp: Yao et al., "Visual-Language Prompt Tuning with Knowledge-guided Context Optimization",
CVPR 2023."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from rmadapter.methods.coop import Context, CoOp
from rmadapter.prompts import cosine_logits, zero_shot_weights
from rmadapter.training.contract import (
    PUBLISHED,
    About,
    Batch,
    Loss,
    Recipe,
    Shots,
    Traits,
    Uses,
    summed,
)


@dataclass(frozen=True)
class KgCoOp(CoOp):
    """CoOp with class features held near those of hand-written prompts, here the run's templates.

    The loss is cross-entropy + distance_weight * (1 - mean cosine). The authors' prompts differ
    between data sets.
    """

    title = "KgCoOp"
    source = (
        "Yao et al., CVPR 2023 (arXiv 2303.13283); vit_b16_ep100_ctxv1 and weight 8.0 of "
        "scripts/run.sh of github.com/htyao89/KgCoOp"
    )
    traits = Traits(
        uses=Uses(constants="the words of the prompt", tuned=PUBLISHED),
        about=About(
            "text",
            "CoOp's vectors, held near hand-written prompts",
            "new classes, at a price on trained ones",
        ),
        reads="text",
    )
    distance_weight: float = 8.0
    recipe: Recipe = Recipe(epochs=100, batch_size=128)

    def objective(self, module: Context, shots: Shots) -> Loss:
        weights = module.bind(shots.classes, shots.templates)
        known = zero_shot_weights(module.backbone, shots.classes, shots.templates)

        def loss(batch: Batch) -> dict[str, Tensor]:
            classes = weights()
            logits = cosine_logits(module.backbone, batch.images.features, classes)
            cosine = F.cosine_similarity(classes, known, dim=-1).mean()
            terms = {
                "ce": F.cross_entropy(logits, batch.labels),
                "distance": self.distance_weight * (1 - cosine),
            }
            return summed(terms)

        return loss
