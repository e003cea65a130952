"""CoCoOp: Zhou et al., "Conditional Prompt Learning for Vision-Language Models", CVPR 2022."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmadapter.backbone import Backbone
from rmadapter.bench.methods.base import Training
from rmadapter.bench.methods.coop import Context, CoOp
from rmadapter.bench.methods.prompts import PromptedText
from rmadapter.bench.methods.zero_shot import cosine_logits, text_features


class Conditional(Context):
    """Context vectors to which each image adds one vector, made from its features by a bottleneck ("meta-net")."""

    def __init__(self, backbone: Backbone, words: str, tokens: int, seed: int) -> None:
        super().__init__(backbone, words, tokens, seed)
        size = text_features(backbone, ["name"], ["{}"]).shape[1]
        hidden = max(1, size // 16)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.down, self.up = nn.Linear(size, hidden), nn.Linear(hidden, self.ctx.shape[1])

    def score(self, names: Sequence[str]) -> Callable[[Tensor], Tensor]:
        """What gives the logits [B, C] of image features [B, e]. The C prompts of one image are encoded at a time."""
        prompts = PromptedText(self.backbone, names, len(self.ctx))

        def logits(features: Tensor) -> Tensor:
            shifts = self.up(F.relu(self.down(F.normalize(features.float(), dim=-1))))
            rows = []
            for one, shift in zip(features.split(1), shifts, strict=True):
                classes = F.normalize(prompts.encode(self.ctx + shift), dim=-1)
                rows.append(cosine_logits(self.backbone, one, classes))
            return torch.cat(rows)

        return logits


@dataclass(frozen=True)
class CoCoOp(CoOp):
    """CoOp whose context depends on the image.

    So no class feature serves two images: C prompts are encoded for each image, in training and in use, one image at a
    time, which bounds the memory by C prompts. Only the C prompts of one image share what they begin with.
    """

    title: ClassVar[str] = "CoCoOp"
    source: ClassVar[str] = (
        "Zhou et al., CVPR 2022 (arXiv 2203.05557); vit_b16_c4_ep10_batch1_ctxv1 of github.com/KaiyangZhou/CoOp"
    )
    epochs: int = 10
    batch_size: int = 1

    def learner(self, backbone: Backbone, templates: Sequence[str], seed: int) -> Any:
        return Conditional(backbone, self.context, self.tokens, seed)

    def prepare(self, backbone: Backbone, train: Training) -> tuple[Any, Callable[[int, Tensor], dict[str, Tensor]]]:
        frozen = train.frozen()
        labels = torch.tensor(train.images.labels, device=train.device)
        learner = self.learner(backbone, train.templates, train.seed).to(train.device)
        score = learner.score(train.images.classes)

        def loss(epoch: int, rows: Tensor) -> dict[str, Tensor]:
            features = frozen.batch(rows, train.device, view=epoch).features
            return {"loss": F.cross_entropy(score(features), labels[rows])}

        return learner, loss
