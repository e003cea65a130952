"""CoPrompt: Roy & Etemad, "Consistency-guided Prompt Learning for Vision-Language Models", ICLR
2024.

arXiv 2306.01195. MaPLe's coupled prompts, and an adapter after each encoder: features become (1 -
m) f + m A(f), where the bottleneck A is two linear layers without bias, each followed by ReLU; m is
0.1 for images and 0.2 for text. The loss is cross-entropy plus lambda times the consistency with
the untouched encoders, one minus the cosine for each encoder: images are compared with another
augmented view, if there is one, and a class with one of its generated descriptions, drawn anew in
every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmadapter.backbones import Backbone
from rmadapter.data.texts import read_texts, texts_of_all
from rmadapter.encoders import States
from rmadapter.methods.clip_adapter import check_reduction
from rmadapter.methods.descriptions import without_texts
from rmadapter.methods.maple import CoupledPrompts
from rmadapter.methods.parts.learned_prompts import Prompted, PromptedText
from rmadapter.prompts import text_features, zero_shot_weights
from rmadapter.settings import Share, Size
from rmadapter.support.machine import seeded
from rmadapter.training.contract import (
    About,
    Batch,
    Loss,
    ModuleMethod,
    Recipe,
    Shots,
    Traits,
    Uses,
    summed,
)


class AdaptedPrompts(Prompted):
    """Coupled prompts with an adapter after each encoder.

    Args:
        coupled: Prompts of MaPLe.
        reduction: Width of the features over that of an adapter.
        share: m of each adapter, by encoder.
        seed: Seed of the initialisation.
    """

    def __init__(
        self, coupled: CoupledPrompts, reduction: int, share: dict[str, float], seed: int
    ) -> None:
        super().__init__(coupled.backbone)
        self.coupled, self.share, self.rest = coupled, share, coupled.rest
        size = self.backbone.embedding_size
        with seeded(seed):
            self.adapters = nn.ModuleDict(
                {side: _adapter(size, size // reduction) for side in share}
            )
        self.to(self.backbone.device)

    def into_text(self) -> list[Tensor]:
        return self.coupled.into_text()

    def into_image(self) -> list[Tensor]:
        return self.coupled.into_image()

    def adapt(self, side: str, features: Tensor) -> Tensor:
        m = self.share[side]
        return m * self.adapters[side](features) + (1 - m) * features


def _adapter(size: int, hidden: int) -> nn.Sequential:
    down, up = nn.Linear(size, hidden, bias=False), nn.Linear(hidden, size, bias=False)
    return nn.Sequential(down, nn.ReLU(), up, nn.ReLU())


@dataclass(frozen=True)
class Descriptions:
    """Frozen features [S, e] of all sentences, class by class, and how many [C] each class has."""

    features: Tensor
    counts: Tensor

    def draw(self, generator: torch.Generator) -> Tensor:
        """Return the features of one sentence per class, [C, e], at the same relative position in
        every class's list."""
        start = self.counts.cumsum(0) - self.counts
        place = torch.rand((), generator=generator, dtype=torch.float64).item()
        return self.features[start + (place * self.counts).long()]


@dataclass(frozen=True)
class CoPrompt(ModuleMethod[AdaptedPrompts]):
    """MaPLe with an adapter after each encoder, held near the untouched encoders.

    The released preset sets n_ctx (2 or 4), depth (9 or 12) and consistency (0.1 to 8) for each
    data set; here all use those of ImageNet, from which the paper transfers to every other set.

    Args:
        n_ctx: Prompts per block, as in MaPLe.
        depth: Prompted blocks, as in MaPLe.
        init: Words that the first prompts start from, as in MaPLe.
        consistency: Weight lambda of the consistency.
        image_share: m of the image encoder's adapter.
        text_share: m of the text encoder's adapter.
        reduction: Width of the features over that of an adapter.
        descriptions: JSON file {class name: [sentence, ...]} of the trained classes. Without it,
            the run's class prompts replace the generated sentences, and a note on stderr says so.
    """

    title = "CoPrompt"
    source = (
        "Roy & Etemad, ICLR 2024 (arXiv 2306.01195); configs/trainers/coprompt.yaml and the "
        "ImageNet entry of trainers/constants.py of github.com/ShuvenduRoy/CoPrompt"
    )
    traits = Traits(
        uses=Uses(
            extra="generated descriptions of the trained classes, in a file; without it "
            "the run's prompts",
            files=("descriptions",),
            constants="number and depth of prompts, weight of consistency, epochs",
            tuned="as published for ImageNet",
        ),
        about=About(
            "encoders",
            "MaPLe, held near descriptions of the classes",
            "classes that you have descriptions of",
        ),
    )
    n_ctx: Size = 4
    depth: Size = 12
    init: str = "a photo of a"
    consistency: float = 8.0
    image_share: Share = 0.1
    text_share: Share = 0.2
    reduction: Size = 4
    descriptions: str = ""
    recipe: Recipe = Recipe(learning_rate=0.0035, epochs=8, batch_size=4)

    def module(self, backbone: Backbone, seed: int = 1) -> AdaptedPrompts:
        check_reduction(self.reduction, backbone)
        coupled = CoupledPrompts(backbone, self.n_ctx, self.depth, self.init, seed, "CoPrompt")
        share = {"image": self.image_share, "text": self.text_share}
        return AdaptedPrompts(coupled, self.reduction, share, seed)

    def loss(
        self,
        module: AdaptedPrompts,
        labels: Tensor,
        states: States,
        text: PromptedText,
        frozen: tuple[Tensor, Tensor],
    ) -> dict[str, Tensor]:
        """Return the loss and its weighted terms.

        Args:
            module: Module to train.
            labels: Labels [B].
            states: States of the images.
            text: Prompts of the C classes.
            frozen: Untouched features of images [B, e] and of classes [C, e].
        """
        f, w = module.image_features(states), module.class_features(text)
        terms = {
            "ce": F.cross_entropy(module.logits(f, w), labels),
            "image": self.consistency * (1 - F.cosine_similarity(f, frozen[0], eps=1e-7).mean()),
            "text": self.consistency * (1 - F.cosine_similarity(w, frozen[1], eps=1e-7).mean()),
        }
        return summed(terms)

    def read(
        self, backbone: Backbone, names: Sequence[str], templates: Sequence[str]
    ) -> Descriptions:
        """Read and encode the descriptions. Raises UserError if the file is missing, damaged, or
        lacks a class."""
        if not self.descriptions:
            without_texts("CoPrompt compares classes with the run's own class prompts", "coprompt")
            features = zero_shot_weights(backbone, names, templates)
            return Descriptions(
                features, torch.ones(len(names), dtype=torch.long, device=features.device)
            )
        sentences = texts_of_all(read_texts(self.descriptions), names, self.descriptions)
        features = text_features(backbone, [s for group in sentences for s in group])
        return Descriptions(
            features, torch.tensor([len(group) for group in sentences], device=features.device)
        )

    def objective(self, module: AdaptedPrompts, shots: Shots) -> Loss:
        text, source = module.text(shots.classes), shots.source(1)
        descriptions = self.read(module.backbone, shots.classes, shots.templates)

        def loss(batch: Batch) -> dict[str, Tensor]:
            other = source.batch(batch.rows, batch.epoch + 1) if source.views != 1 else batch.images
            frozen = (other.features, descriptions.draw(batch.generator))
            return self.loss(module, batch.labels, batch.images, text, frozen)

        return loss
