"""BiCLIP: Mantini and Shah, "BiCLIP: Domain Canonicalization via Structured Geometric
Transformation", 2026 (https://arxiv.org/abs/2603.08942).

    logits = scale * x W t^T

x are unit image features [B, e], t unit class features [C, e], both of untouched encoders. Only W
is trained, an upper triangular matrix [e, e] that starts as the identity, so as zero-shot. x W is
not normalised. The loss is CLIP's symmetric contrastive loss: in a batch, the texts of the other
images are the negatives of an image, and the other images those of a text, even of the same class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmadapter.backbones import Backbone
from rmadapter.prompts import Cosines, cosine_logits, linear_logits, untouched, zero_shot_weights
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


class Bilinear(Learner):
    """The upper triangle of W, row by row, [e (e + 1) / 2]."""

    places: Tensor  # of these numbers in W, [2, e (e + 1) / 2]

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        size = backbone.embedding_size
        self.register_buffer("places", torch.triu_indices(size, size), persistent=False)
        self.upper = nn.Parameter((self.places[0] == self.places[1]).float())

    def classifier(self, weights: Tensor) -> Tensor:
        """Turn class features [C, e] into weights [C, e] for unit image features: t W^T."""
        size = self.backbone.embedding_size
        matrix = self.upper.new_zeros(size, size).index_put(tuple(self.places), self.upper)
        return linear_logits(weights, matrix)

    def for_classes(self, names: Sequence[str], known: Known) -> ToLogits:
        weights = self.classifier(zero_shot_weights(self.backbone, names, known.templates))
        return Cosines(self.backbone, untouched, weights)


@dataclass(frozen=True)
class BiCLIP(ModuleMethod[Bilinear]):
    """Trains a triangular matrix between image and class features.

    The authors have a rate, a weight decay and a number of epochs for each data set; these are
    those of SUN397, the medians over all eleven. The rate is constant while `final_rate` equals it.
    SigLIP is trained with this loss, too; the authors use its own there.
    """

    title = "BiCLIP"
    source = (
        "Mantini and Shah, 2026 (arXiv 2603.08942); configs/clip/sun397.yml of "
        "github.com/QuantitativeImagingLaboratory/BilinearCLIP"
    )
    traits = Traits(
        uses=Uses(
            constants="rate, weight decay and epochs; the batch on ImageNet",
            tuned="as published for SUN397",
            on_test="perhaps the authors' constants, as their code has no validation images",
        ),
        whole_batches=True,  # the other images are negatives
        about=About(
            "features",
            "a triangular matrix between image and class features",
        ),
        reads="features",
        left_out="the loss for SigLIP",
    )
    recipe: Recipe = Recipe(
        optimizer="adamw",
        learning_rate=1e-4,
        weight_decay=0.1,
        epochs=30,
        batch_size=64,
        schedule="step",
        warmup_epochs=0,
        final_rate=1e-4,
        clip_gradient=1.0,
    )

    def module(self, backbone: Backbone, seed: int = 1) -> Bilinear:
        return Bilinear(backbone).to(backbone.device)

    def objective(self, module: Bilinear, shots: Shots) -> Loss:
        weights = zero_shot_weights(module.backbone, shots.classes, shots.templates)

        def loss(batch: Batch) -> Tensor:
            classifier = module.classifier(weights)[batch.labels]
            logits = cosine_logits(module.backbone, batch.images.features, classifier)
            own = torch.arange(len(logits), device=logits.device)
            return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2

        return loss
