"""CoOp, context optimisation: Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV
2022."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.methods.parts.learned_prompts import context_vectors, encoder_of, limit_tokens
from rmadapter.methods.parts.learners import CosineLearner
from rmadapter.prompts import cosine_logits
from rmadapter.settings import Size
from rmadapter.training.contract import (
    PUBLISHED,
    About,
    Batch,
    Fitted,
    Known,
    Loss,
    ModuleMethod,
    Recipe,
    Shots,
    Traits,
    Uses,
)


class Context(CosineLearner):
    """Context vectors ctx [n, d] in front of every class name; image features stay untouched."""

    reaches: ClassVar[tuple[str, ...]] = ("text",)

    def __init__(self, backbone: Backbone, words: str, tokens: int, seed: int) -> None:
        super().__init__(backbone)
        self.ctx = context_vectors(backbone, words, tokens, seed)

    def bind(self, names: Sequence[str], templates: Sequence[str]) -> Callable[[], Tensor]:
        """Return a function without arguments that returns the normalised features [C, e] of these
        classes under the current parameters."""
        encode = encoder_of(self.backbone, names, len(self.ctx))
        return lambda: F.normalize(encode(self.ctx), dim=-1)

    def encode_classes(self, names: Sequence[str], known: Known) -> Tensor:
        return self.bind(names, known.templates)()


@dataclass(frozen=True)
class CoOp(ModuleMethod[Context]):
    """Trains context vectors, shared by all classes, that replace the words before the class name.

    The released script trains for 200 epochs, on ImageNet for 50 (`--set coop.epochs=50`).

    Args:
        context: Words whose embeddings the vectors start from; if empty, they start from noise with
            standard deviation 0.02.
        tokens: Number of vectors, without words to start from.
    """

    title = "CoOp"
    source = (
        "Zhou et al., IJCV 2022 (arXiv 2109.01134); vit_b16_ctxv1 of github.com/KaiyangZhou/CoOp, "
        "the configuration "
        "of its base-to-new script for all data sets but ImageNet, where it trains 50 epochs"
    )
    traits = Traits(
        uses=Uses(constants="epochs, on ImageNet", tuned=PUBLISHED),
        about=About(
            "text",
            "word vectors before the class name",
            "trained classes alone; the reference for prompts",
        ),
        reads="text",
    )
    context: str = "a photo of a"
    tokens: Size = 4
    recipe: Recipe = Recipe(epochs=200)

    def module(self, backbone: Backbone, seed: int = 1) -> Context:
        return Context(backbone, self.context, self.tokens, seed)

    def objective(self, module: Context, shots: Shots) -> Loss:
        weights = module.bind(shots.classes, shots.templates)

        def loss(batch: Batch) -> Tensor:
            logits = cosine_logits(module.backbone, batch.images.features, weights())
            return F.cross_entropy(logits, batch.labels)

        return loss


@dataclass(frozen=True)
class CoOpFewShot(CoOp):
    """CoOp as in its few-shot experiments: 16 vectors that start from noise, at most a quarter of
    the text encoder's length, and half of the epochs with two to four shots per class, a quarter
    with one. On ImageNet the authors train for 50 epochs whatever the shots."""

    title = "CoOp, few-shot recipe"
    source = (
        "Zhou et al., IJCV 2022 (arXiv 2109.01134); COOP.md of github.com/KaiyangZhou/CoOp: "
        "M = 16, one context for all classes, the class name at its end"
    )
    traits = Traits(
        uses=Uses(constants="epochs, on ImageNet", tuned=PUBLISHED),
        about=About(
            "text", "16 word vectors from noise before the class name", "CoOp's few-shot tables"
        ),
        reads="text",
    )
    context: str = ""
    tokens: Size = 16

    def module(self, backbone: Backbone, seed: int = 1) -> Context:
        return Context(backbone, self.context, limit_tokens(backbone, self.tokens), seed)

    def fit(self, backbone: Backbone, shots: Shots) -> Fitted:
        most = int(torch.bincount(shots.labels).max())
        share = 0.25 if most == 1 else 0.5 if most <= 4 else 1.0
        epochs = max(1, round(share * self.recipe.epochs))
        module = self.module(backbone, shots.seed)
        recipe = replace(self.recipe, epochs=epochs)
        return self.train(module, self.objective(module, shots), shots, recipe=recipe)
