"""TCP: Yao et al., "TCP: Textual-based Class-aware Prompt tuning for Visual-Language Model", CVPR 2024."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmadapter.backbone import Backbone
from rmadapter.bench.methods.coop import Context
from rmadapter.bench.methods.kgcoop import KgCoOp
from rmadapter.bench.methods.loop import Recipe
from rmadapter.bench.methods.prompts import PromptedText
from rmadapter.bench.methods.zero_shot import text_features


class ClassAware(Context):
    """Context vectors of which, before one block, each class gets its own, made from its untouched features.

    Below that block the classes share their context, and so their common beginning is computed once.
    """

    def __init__(self, method: TCP, backbone: Backbone, templates: Sequence[str], seed: int) -> None:
        super().__init__(backbone, method.context, method.tokens, seed)
        self.templates = templates
        n, width = self.ctx.shape
        size = text_features(backbone, ["name"], ["{}"]).shape[1]
        hidden = max(1, size // 4)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.down, self.up = nn.Linear(size, hidden), nn.Linear(hidden, n * width)
        self.layer = method.layer

    def contexts(self, known: Tensor) -> Tensor:
        """Untouched class features [C, e] -> contexts [C, n, d]."""
        hidden = self.down(known)
        return self.up(hidden * torch.sigmoid(1.702 * hidden)).unflatten(-1, tuple(self.ctx.shape))

    def bind(self, names: Sequence[str]) -> Callable[[], Tensor]:
        known = text_features(self.backbone, names, self.templates)
        below = PromptedText(self.backbone, names, len(self.ctx))
        above = PromptedText(self.backbone, names, len(self.ctx), share=False)
        tower, place, prefix = above.tower, above.layout.positions, below.layout.prefix
        tower.first = min(self.layer, 1 + (self.layer - 1) * tower.depth // 12)
        # Where each token of the prompts apart lies among the tokens of the prompts that share their beginning.
        rows = torch.where(place < prefix, place, prefix + (place >= prefix).cumsum(0) - 1)

        def weights() -> Tensor:
            x = tower.stem(below.layout, below.put(below.words, self.ctx))
            for i in range(1, tower.first):
                x = tower.step(i, x, tower.blocks[i - 1].norm(x), below.layout, top=False)
            x = above.put(x.index_select(0, rows), self.contexts(known))
            return F.normalize(tower.encode(x, above.layout), dim=-1)

        return weights


@dataclass(frozen=True)
class TCP(KgCoOp):
    """KgCoOp from noise, with contexts of each class's own from block `layer` of the text encoder on.

    A bottleneck makes them from the untouched class features (templates of the run). layer: counted from 1 in an
    encoder of 12 blocks (8, counted from 0, in the released code); a shallower one takes the same fraction of its
    depth. The authors' prompts differ between data sets; here all are "X X X X name.". They test new classes of
    SUN397 and ImageNet after 25 of the 50 epochs; here all are tested at the end.
    """

    title: ClassVar[str] = "TCP"
    source: ClassVar[str] = (
        "Yao et al., CVPR 2024 (arXiv 2311.18231); vit_b16_ep100_ctxv1, scripts/base2new_train.sh and Adam's eps of "
        "the README of github.com/htyao89/Textual-based_Class-aware_prompt_tuning"
    )
    context: str = ""
    epochs: int = 50
    batch_size: int = 32
    layer: int = 9

    @property
    def recipe(self) -> Recipe:
        return Recipe("adam", self.learning_rate, self.weight_decay, self.epochs, self.batch_size, eps=1e-3)

    def learner(self, backbone: Backbone, templates: Sequence[str], seed: int) -> Any:
        return ClassAware(self, backbone, templates, seed)
