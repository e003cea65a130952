"""Full fine-tuning: every block of the encoders learns, with the norm and projection after them.

The baseline of Luo et al., "Benchmarking Few-shot Transferability of Pre-trained Models with
Improved Evaluation Protocols", 2026 (arXiv 2603.00478), who find it level with more sophisticated
methods. An image is compared with the features of the class prompts, so that a model can also be
asked about classes by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from rmadapter.adapter import SIDES
from rmadapter.backbones import Backbone
from rmadapter.methods.parts.tuned import TunedCLIP
from rmadapter.prompts import cosine_logits, zero_shot_weights
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


@dataclass(frozen=True)
class FullFinetune(ModuleMethod[TunedCLIP]):
    """Fine-tunes all blocks of one encoder or both, by cross-entropy alone.

    What comes before the first block, the embeddings of patches, words and positions, stays as it
    is, so that its output is computed once. The authors train it, too, hold the rate constant, and
    vote among three rates, of which this is the largest.

    Args:
        sides: Whose encoders learn; with "image" the classes keep their zero-shot features.
    """

    title = "full fine-tuning"
    source = (
        "Luo et al., 2026 (arXiv 2603.00478); optimiser, batch, epochs and the largest rate of "
        "github.com/Frankluox/FewTrans"
    )
    traits = Traits(
        uses=Uses(tuned="as published, without its vote among rates"),
        about=About("encoders", "all blocks of both encoders, or of the image encoder"),
        left_out="embeddings before the first block, which stay fixed",
    )
    sides: Literal["both", "image"] = "both"
    recipe: Recipe = Recipe(
        optimizer="adam",
        learning_rate=1e-5,
        weight_decay=0.0,
        epochs=30,
        schedule="step",
        warmup_epochs=0,
    )

    def module(self, backbone: Backbone, seed: int = 1) -> TunedCLIP:
        return TunedCLIP(backbone, sides=SIDES if self.sides == "both" else ("image",))

    def objective(self, module: TunedCLIP, shots: Shots) -> Loss:
        if self.sides == "both":
            return module.cross_entropy(module.prompts(shots.classes, shots.templates), shots)
        weights = zero_shot_weights(module.backbone, shots.classes, shots.templates)

        def loss(batch: Batch) -> Tensor:
            features = module.image_features(batch.images)
            return F.cross_entropy(cosine_logits(module.backbone, features, weights), batch.labels)

        return loss
