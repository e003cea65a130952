"""ProLIP: Fahes et al., "CLIP's Visual Embedding Projector is a Few-shot Cornucopia", 2024
(https://arxiv.org/abs/2410.05270).

    loss = cross-entropy of cosines(p W, t) over CLIP's temperature + strength / shots |W - W_0|^2

p [B, d] are pooled tokens of the untouched image encoder, t [C, e] untouched class features. Only
the projection W [d, e] is trained; it starts as the backbone's own W_0. |.| is the Frobenius norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmadapter.backbones import Backbone
from rmadapter.encoders import States
from rmadapter.errors import UserError
from rmadapter.prompts import Cosines, cosine_logits, zero_shot_weights
from rmadapter.settings import Positive
from rmadapter.training.cache import Held
from rmadapter.training.contract import (
    ALL_IMAGES,
    PUBLISHED,
    About,
    Batch,
    Fitted,
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


class Projector(Learner):
    """A trainable projection after the image encoder; the backbone's bias, if it has one, stays
    fixed.

    Raises UserError for a backbone without a linear projection.
    """

    reaches = ("image", "text")  # of the text encoder only its features, but one rule serves all

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        self.first = backbone.image.depth
        projection = backbone.image.projection
        if projection is None:
            raise UserError(
                f"ProLIP trains the linear projection after the image encoder, but {backbone.name} "
                f"has none: use another method, such as 'clip-adapter'"
            )
        start, bias = projection
        self.weight = nn.Parameter(start.detach().clone(memory_format=torch.contiguous_format))
        self.bias = None if bias is None else bias.detach()  # not trained

    def pooled(self, states: States) -> Tensor:
        """Return pooled tokens [B, d]."""
        return self.backbone.image.pooled(states.y, states.layout)

    def project(self, pooled: Tensor) -> Tensor:
        """Project [B, d] to features [B, e]."""
        return F.linear(pooled, self.weight.T, self.bias)

    def for_classes(self, names: Sequence[str], known: Known) -> ToLogits:
        weights = zero_shot_weights(self.backbone, names, known.templates)
        return Cosines(self.backbone, lambda states: self.project(self.pooled(states)), weights)


@dataclass(frozen=True)
class ProLIP(ModuleMethod[Projector]):
    """Trains the projection behind the image encoder.

    Every epoch is one step on all shots, using their views in turn; the released code has 300
    views. It trains without validation images, at one setting for all data sets: that of its
    scripts for new classes and new data sets; for few shots of all classes it has others.

    Args:
        strength: Weight of the penalty, divided by the shots of the largest class.
    """

    title = "ProLIP"
    source = (
        "Fahes et al., 2024 (arXiv 2410.05270); configs/experiments/base_to_new_VITB16.yaml of "
        "github.com/astra-vision/ProLIP"
    )
    traits = Traits(
        uses=Uses(tuned=PUBLISHED),
        about=About("features", "the projection behind the image encoder"),
    )
    strength: Positive = 1.0
    recipe: Recipe = Recipe(
        optimizer="adam",
        learning_rate=1e-5,
        weight_decay=0.0,
        eps=1e-4,
        epochs=300,
        batch_size=ALL_IMAGES,
        schedule="step",
        warmup_epochs=0,
    )

    def module(self, backbone: Backbone, seed: int = 1) -> Projector:
        return Projector(backbone)

    def fit(self, backbone: Backbone, shots: Shots) -> Fitted:
        module = self.module(backbone)
        pooled = shots.cache.features(
            shots.images, augmented=True, first=module.first, of=module.pooled
        )
        return self.train(
            module, self.objective(module, shots), shots, source=Held.of_features(pooled)
        )

    def objective(self, module: Projector, shots: Shots) -> Loss:
        weights = zero_shot_weights(module.backbone, shots.classes, shots.templates)
        start, most = module.weight.detach().clone(), int(torch.bincount(shots.labels).max())

        def loss(batch: Batch) -> dict[str, Tensor]:
            logits = cosine_logits(module.backbone, module.project(batch.images.features), weights)
            ce = F.cross_entropy(logits, batch.labels)
            penalty = self.strength / most * (module.weight - start).square().sum()
            return {"loss": ce + penalty, "ce": ce, "penalty": penalty}

        return loss
