"""KgCoOp: Yao et al., "Visual-Language Prompt Tuning with Knowledge-guided Context Optimization", CVPR 2023."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from rmadapter.backbone import Backbone
from rmadapter.bench.methods.base import Training
from rmadapter.bench.methods.coop import CoOp
from rmadapter.bench.methods.zero_shot import text_features


@dataclass(frozen=True)
class KgCoOp(CoOp):
    """CoOp whose class features are held near those of hand-written prompts: the templates of the run.

    The loss is cross-entropy + distance_weight * (1 - mean cosine). The authors' prompts differ between data sets.
    """

    title: ClassVar[str] = "KgCoOp"
    source: ClassVar[str] = (
        "Yao et al., CVPR 2023 (arXiv 2303.13283); vit_b16_ep100_ctxv1 and weight 8.0 of scripts/run.sh of "
        "github.com/htyao89/KgCoOp"
    )
    epochs: int = 100
    batch_size: int = 128
    distance_weight: float = 8.0

    def penalty(self, backbone: Backbone, train: Training) -> Callable[[Tensor], Tensor]:
        known = text_features(backbone, train.images.classes, train.templates)
        return lambda classes: self.distance_weight * (1 - F.cosine_similarity(classes, known, dim=-1).mean())
