"""PromptSRC: Khattak et al., "Self-regulating Prompts", ICCV 2023 (arXiv 2307.06948).

Independent deep prompts in both encoders. With prompted features f, w, frozen ones f_0 and w_0 (w_0 averaged over many
templates), and the logits of either pair, the loss is

    CE(f, w) + 25 |w - w_0| + 10 |f - f_0| + KL(frozen logits || prompted logits),

where |.| is the mean absolute difference of normalised features, and KL is summed over classes and divided by the
number of logits. The prompts that are used at last are an average over epochs, weighted by a Gaussian of the epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmadapter.backbone import Backbone
from rmadapter.bench.methods.base import Classifier, Training
from rmadapter.bench.methods.deep import (
    by_name,
    cosine,
    count,
    draw,
    encode_image,
    encode_text,
    first_context,
    prompted_text,
    prompted_towers,
)
from rmadapter.bench.methods.loop import Recipe, minimise
from rmadapter.bench.methods.prompts import PromptedText
from rmadapter.bench.methods.shots import labels_of
from rmadapter.errors import UserError
from rmadapter.model import CHUNK
from rmadapter.towers import States

# Our own list; the released code averages 60 templates of CLIP's ImageNet ensemble. Both mix medium, quality and size.
DIVERSE = (
    "a photo of a {}.",
    "a photo of the {}.",
    "a photo of one {}.",
    "a photo of several {}.",
    "a small {} in a large picture.",
    "a {} that fills the picture.",
    "a {} seen from close by.",
    "a {} seen from far away.",
    "a part of a {}.",
    "a blurred photo of a {}.",
    "a sharp photo of a {}.",
    "a photo of a {} in bright light.",
    "a photo of a {} in the dark.",
    "a black and white photo of a {}.",
    "a snapshot of my {}.",
    "a drawing of a {}.",
    "a painting of a {}.",
    "a cartoon of a {}.",
    "a model of a {}.",
    "a {} that is hard to make out.",
)


class IndependentPrompts(nn.Module):
    """Prompts of the text encoder and of the image encoder; an encoder with fewer than `depth` blocks has fewer."""

    def __init__(self, backbone: Backbone, n_text: int, n_image: int, depth: int, init: str, seed: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.tower, text = prompted_towers(backbone, "PromptSRC")
        first, self.rest = first_context(backbone, init, n_text, seed)
        drawn = draw(depth * n_text, text.width, seed + 1).split(n_text)
        self.text = nn.ParameterList([first, *(prompt.clone() for prompt in drawn[1 : text.depth])])
        drawn = draw(depth * n_image, self.tower.width, seed + 2).split(n_image)
        self.image = nn.ParameterList(prompt.clone() for prompt in drawn[: self.tower.depth])

    def prompted(self, names: Sequence[str]) -> PromptedText:
        return prompted_text(self.backbone, names, len(self.text[0]), self.rest)

    def class_features(self, text: PromptedText) -> Tensor:
        """[C, e], not normalised."""
        return encode_text(text, list(self.text))

    def image_features(self, states: States) -> Tensor:
        """[B, e], not normalised."""
        return encode_image(self.tower, states.x, list(self.image))

    @torch.no_grad()
    def frozen_classes(self, names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Features [C, e] of the untouched text encoder, averaged over templates before they are normalised."""
        tower = prompted_towers(self.backbone, "PromptSRC")[1]
        tokens = self.backbone.tokenizer([t.format(name) for t in templates for name in names]).to(self.text[0].device)
        features = torch.cat([tower.frozen(chunk).features for chunk in tokens.split(CHUNK)])
        return F.normalize(features.unflatten(0, (len(templates), -1)).mean(0), dim=-1)


def gaussian(epochs: int, mean: float, std: float) -> Tensor:
    """Weights of epochs 1..n, with sum 1."""
    return torch.softmax(-0.5 * ((torch.arange(1, epochs + 1, dtype=torch.float64) - mean) / std).square(), 0)


@dataclass(frozen=True)
class PromptSRC:
    """n_text, n_image: prompts per block. depth: prompted blocks of each encoder.

    text_weight, image_weight: of the two L1 terms. mean, std: of the Gaussian over epochs, counted from 1. templates:
    of the frozen class features, a list of our own; empty for those of the run.
    """

    title: ClassVar[str] = "PromptSRC"
    source: ClassVar[str] = (
        "Khattak et al., ICCV 2023 (arXiv 2307.06948); vit_b16_c2_ep20_batch4_4+4ctx.yaml of "
        "github.com/muzairkhattak/PromptSRC, with templates of our own"
    )
    n_text: int = 4
    n_image: int = 4
    depth: int = 9
    init: str = "a photo of a"
    text_weight: float = 25.0
    image_weight: float = 10.0
    mean: float = 15.0
    std: float = 1.0
    epochs: int = 20
    learning_rate: float = 0.0025
    batch_size: int = 4
    templates: tuple[str, ...] = DIVERSE

    def __post_init__(self) -> None:
        if isinstance(self.templates, str) or any("{}" not in template for template in self.templates):
            raise UserError('promptsrc.templates: give a list of templates, each with a {}, as "a photo of a {}."')

    def module(self, backbone: Backbone, seed: int = 1) -> IndependentPrompts:
        return IndependentPrompts(backbone, self.n_text, self.n_image, self.depth, self.init, seed)

    def loss(
        self, module: IndependentPrompts, labels: Tensor, states: States, text: PromptedText, w_0: Tensor
    ) -> dict[str, Tensor]:
        """The loss and its terms, each with its weight in it; labels [B], frozen class features w_0 [C, e]."""
        f, w = (F.normalize(x, dim=-1) for x in (module.image_features(states), module.class_features(text)))
        logits, logits_0 = cosine(module.backbone, f, w), cosine(module.backbone, states.features, w_0)
        divergence = F.kl_div(logits.log_softmax(-1), logits_0.log_softmax(-1), reduction="sum", log_target=True)
        terms = {
            "ce": F.cross_entropy(logits, labels),
            "text": self.text_weight * F.l1_loss(w, w_0),
            "image": self.image_weight * F.l1_loss(f, F.normalize(states.features, dim=-1)),
            "logits": divergence / logits.numel(),
        }
        return {"loss": torch.stack(list(terms.values())).sum(), **terms}

    def fit(self, backbone: Backbone, train: Training) -> Classifier:
        frozen, labels = train.frozen(1), labels_of(train)
        module = self.module(backbone, train.seed).to(train.device)
        text = module.prompted(train.images.classes)
        w_0 = module.frozen_classes(train.images.classes, self.templates or train.templates)
        weights = gaussian(self.epochs, self.mean, self.std).tolist()
        average = [torch.zeros_like(parameter) for parameter in module.parameters()]

        def loss(epoch: int, rows: Tensor) -> dict[str, Tensor]:
            return self.loss(module, labels[rows], frozen.batch(rows, train.device, epoch), text, w_0)

        @torch.no_grad()
        def aggregate(epoch: int) -> None:
            for mean, parameter in zip(average, module.parameters(), strict=True):
                mean.add_(parameter, alpha=weights[epoch])

        recipe = Recipe(learning_rate=self.learning_rate, epochs=self.epochs, batch_size=self.batch_size)
        done = minimise(module.parameters(), loss, recipe, train, aggregate)
        for parameter, mean in zip(module.parameters(), average, strict=True):
            parameter.data = mean
        return Classifier(by_name(backbone, module, module.prompted), 1, count(module), done.step_seconds, done.history)

    def parameters(self, backbone: Backbone, classes: int = 100, shots: int = 16) -> int:
        return count(self.module(backbone))
