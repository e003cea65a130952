"""KgCoOp: Yao et al., "Visual-Language Prompt Tuning with Knowledge-guided Context Optimization",
CVPR 2023."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.methods.coop import Context
from rmadapter.methods.parts.learned_prompts import context_loss
from rmadapter.prompts import zero_shot_weights
from rmadapter.settings import Size
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


def knowledge(backbone: Backbone, shots: Shots, weight: float) -> Callable[[Tensor], Tensor]:
    """Return weight * (1 - mean cosine) of class features [C, e] and those of the run's own
    prompts."""
    known = zero_shot_weights(backbone, shots.classes, shots.templates)
    return lambda classes: weight * (1 - F.cosine_similarity(classes, known, dim=-1).mean())


@dataclass(frozen=True)
class KgCoOp(ModuleMethod[Context]):
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
    context: str = "a photo of a"
    tokens: Size = 4
    distance_weight: float = 8.0
    recipe: Recipe = Recipe(epochs=100, batch_size=128)

    def module(self, backbone: Backbone, seed: int = 1) -> Context:
        return Context(backbone, self.context, self.tokens, seed)

    def objective(self, module: Context, shots: Shots) -> Loss:
        return context_loss(module, shots, knowledge(module.backbone, shots, self.distance_weight))
