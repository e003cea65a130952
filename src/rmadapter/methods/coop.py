"""CoOp, context optimisation: Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV
2022."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.methods.parts.learned_prompts import (
    ContextLearner,
    bind_context,
    context_vectors,
    train_context,
)
from rmadapter.settings import Size
from rmadapter.training.contract import Fitted, ModuleMethod, Shots
from rmadapter.training.traits import Recipe


class Context(ContextLearner):
    """Context vectors ctx [n, d] in front of every class name."""

    def __init__(self, backbone: Backbone, words: str, tokens: int, seed: int) -> None:
        super().__init__(backbone)
        self.ctx = context_vectors(backbone, words, tokens, seed)

    def bind(self, names: Sequence[str], templates: Sequence[str]) -> Callable[[], Tensor]:
        return bind_context(self.backbone, self.ctx, names)


@dataclass(frozen=True)
class CoOp(ModuleMethod):
    """Trains context vectors, shared by all classes, that replace the words before the class name.

    context: words whose embeddings the vectors start from; if empty, `tokens` vectors start from
    noise with standard deviation 0.02. The released script trains for 200 epochs, on ImageNet for
    50 (`--set coop.epochs=50`).
    """

    title: ClassVar[str] = "CoOp"
    source: ClassVar[str] = (
        "Zhou et al., IJCV 2022 (arXiv 2109.01134); vit_b16_ctxv1 of github.com/KaiyangZhou/CoOp, "
        "the configuration "
        "of its base-to-new script for all data sets but ImageNet, where it trains 50 epochs"
    )
    context: str = "a photo of a"
    tokens: Size = 4
    recipe: Recipe = Recipe(epochs=200)

    def module(self, backbone: Backbone, seed: int = 1) -> Context:
        return Context(backbone, self.context, self.tokens, seed)

    def fit(self, backbone: Backbone, shots: Shots) -> Fitted:
        module = self.module(backbone, shots.seed)
        trained = train_context(module, shots, self.recipe)
        return self.restore(backbone, shots.known, module.state_dict()).after(trained)
