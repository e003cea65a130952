"""DePT: Zhang et al., "DePT: Decoupled Prompt Tuning", CVPR 2024 (arXiv 2309.07439), on MaPLe's
prompts.

What is specific to the trained classes should go into a separate head rather than into the prompts,
which new classes share. The head scales and shifts each channel of a prompted feature, of an image
or of its class's text, and applies a linear layer: W (a * f + b), with separate a and b for images
and text. Prompts and head learn together, from

    (1 - lambda) CE(prompts) + lambda CE(head),

the second term over each image and its class's text. Answers among trained classes mix the logits
of both in the same way; with any other class among them, the prompts answer alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmadapter.backbones import Backbone
from rmadapter.encoders import States
from rmadapter.methods.maple import CoupledPrompts
from rmadapter.methods.parts.learned_prompts import PromptedText
from rmadapter.prompts import Cosines, cosine_logits, linear_logits
from rmadapter.settings import Positive, Share, Size
from rmadapter.support.machine import seeded
from rmadapter.training.contract import (
    PUBLISHED,
    About,
    Batch,
    Fitted,
    Known,
    Learner,
    ModuleMethod,
    Parameters,
    Recipe,
    Shots,
    ToLogits,
    Traits,
    Uses,
    count,
    summed,
)

PROMPTS = "prompts."  # before the names of their parameters


class Channels(nn.Module):
    """Features [B, e], each channel scaled and shifted."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x + self.shift


class Decoupled(Learner):
    """Prompts, and the head for the C classes that they are trained on."""

    first, reaches = CoupledPrompts.first, CoupledPrompts.reaches

    def __init__(self, method: DePT, backbone: Backbone, classes: int, seed: int) -> None:
        super().__init__(backbone)
        self.share = method.share
        self.prompts = CoupledPrompts(
            backbone, method.n_ctx, method.depth, method.init, seed, method.title
        )
        width = backbone.embedding_size
        self.image, self.text = Channels(width), Channels(width)
        with seeded(seed):
            self.head = nn.Linear(width, classes)
        self.to(backbone.device)

    def loss(self, labels: Tensor, states: States, text: PromptedText) -> dict[str, Tensor]:
        """Return the loss and its weighted terms, for labels [B]."""
        f, w = self.prompts.image_features(states), self.prompts.class_features(text)
        own = self.own_logits(torch.cat([self.text(w[labels]), self.image(f)]))
        terms = {
            "ce": (1 - self.share) * F.cross_entropy(self.prompts.logits(f, w), labels),
            "ce_head": self.share * F.cross_entropy(own, labels.repeat(2)),
        }
        return summed(terms)

    def own_logits(self, features: Tensor) -> Tensor:
        """Return the head's logits [B, C]."""
        return linear_logits(features, self.head.weight, self.head.bias)

    def for_classes(self, names: Sequence[str], known: Known) -> ToLogits:
        w = self.prompts.class_weights(names, known)
        if not {*names} <= {*known.classes}:
            return Cosines(self.backbone, self.prompts.image_features, w)
        rows = torch.tensor([known.classes.index(name) for name in names], device=w.device)

        def score(states: States) -> Tensor:
            f = self.prompts.image_features(states)
            own = self.own_logits(self.image(f))[:, rows]
            return (1 - self.share) * cosine_logits(self.backbone, f, w) + self.share * own

        return score


@dataclass(frozen=True)
class DePT(ModuleMethod[Decoupled]):
    """MaPLe with a head for the trained classes.

    Of the prompts in the released code, MaPLe's are the best by the authors' own table. That code
    mixes logits, as done here; the paper writes probabilities.

    Args:
        n_ctx: Prompts per block, as in MaPLe.
        depth: Prompted blocks, as in MaPLe.
        init: Words that the first prompts start from, as in MaPLe.
        share: Weight lambda of the head.
        head_rate: Factor on the learning rate for the head.
    """

    title = "DePT"
    source = (
        "Zhang et al., CVPR 2024 (arXiv 2309.07439); "
        "ExtrasLinearProbeMaPLe/vit_b16_c2_ep10_batch4_2ctx.yaml and "
        "train.py of github.com/Koorye/DePT"
    )
    traits = Traits(
        uses=Uses(tuned=PUBLISHED),
        about=About("encoders", "MaPLe, and a head for the trained classes"),
    )
    n_ctx: Size = 2
    depth: Size = 9
    init: str = "a photo of a"
    share: Share = 0.7
    head_rate: Positive = 6.5
    recipe: Recipe = Recipe(learning_rate=0.0035, epochs=10, batch_size=4)

    def module(self, backbone: Backbone, seed: int = 1, classes: int = 100) -> Decoupled:
        return Decoupled(self, backbone, classes, seed)

    def blank(self, backbone: Backbone, known: Known, tensors: Mapping[str, Tensor]) -> Decoupled:
        return self.module(backbone, classes=len(known.classes))

    def fit(self, backbone: Backbone, shots: Shots) -> Fitted:
        module = self.module(backbone, shots.seed, len(shots.classes))
        text = module.prompts.text(shots.classes)

        def loss(batch: Batch) -> dict[str, Tensor]:
            return module.loss(batch.labels, batch.images, text)

        def times(name: str) -> float:
            return 1.0 if name.startswith(PROMPTS) else self.head_rate

        return self.train(module, loss, shots, times=times)

    def parameters(self, backbone: Backbone, classes: int = 100, shots: int = 16) -> Parameters:
        return Parameters(count(self.module(backbone, classes=classes)))
