"""CLIP-Adapter: a bottleneck after the image encoder, blended with what went in. Gao et al., IJCV 2024."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmadapter.backbone import Backbone
from rmadapter.bench.methods.base import Classifier, Training
from rmadapter.bench.methods.loop import Recipe, minimise
from rmadapter.bench.methods.shots import embedding_size, labels_of, shot_features
from rmadapter.bench.methods.zero_shot import cosine_logits, text_features
from rmadapter.errors import UserError
from rmadapter.towers import States


class Bottleneck(nn.Module):
    """x -> ratio * relu(relu(x W_1) W_2) + (1 - ratio) * x, on features [..., e] that are not normalised."""

    def __init__(self, width: int, reduction: int, ratio: float) -> None:
        super().__init__()
        self.down = nn.Linear(width, width // reduction, bias=False)
        self.up = nn.Linear(width // reduction, width, bias=False)
        self.ratio = ratio

    def forward(self, x: Tensor) -> Tensor:
        return self.ratio * F.relu(self.up(F.relu(self.down(x)))) + (1 - self.ratio) * x


@dataclass(frozen=True)
class CLIPAdapter:
    """The released trainer adapts image features alone. It has no configuration of its own but is run with CoOp's
    command for ImageNet, whose settings these are; the paper searches the ratio for every data set."""

    title: ClassVar[str] = "CLIP-Adapter"
    source: ClassVar[str] = (
        "Gao et al., IJCV 2024 (arXiv 2110.04544); ratio and reduction of github.com/gaopengcuhk/CLIP-Adapter, "
        "optimisation of CoOp's vit_b16_ep50"
    )
    ratio: float = 0.2
    reduction: int = 4
    learning_rate: float = 0.002
    epochs: int = 50
    batch_size: int = 32
    weight_decay: float = 5e-4
    warmup_epochs: int = 1

    def bottleneck(self, width: int, seed: int) -> Bottleneck:
        """A new one, as PyTorch initialises linear layers. Raises UserError when nothing is left of the width."""
        if not 1 <= self.reduction <= width:
            raise UserError(f"reduction={self.reduction}: give a number from 1 to {width}, the length of a feature")
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return Bottleneck(width, self.reduction, self.ratio)

    def fit(self, backbone: Backbone, train: Training) -> Classifier:
        views, labels = shot_features(train), labels_of(train)
        weights = text_features(backbone, train.images.classes, train.templates)
        adapter = self.bottleneck(views.shape[-1], train.seed).to(train.device)

        def loss(epoch: int, rows: Tensor) -> Tensor:
            x = views[epoch % len(views), rows]
            return F.cross_entropy(cosine_logits(backbone, adapter(x), weights), labels[rows])

        recipe = Recipe(
            learning_rate=self.learning_rate,
            epochs=self.epochs,
            batch_size=self.batch_size,
            weight_decay=self.weight_decay,
            warmup_epochs=self.warmup_epochs,
        )
        done = minimise(adapter.parameters(), loss, recipe, train)
        adapter.requires_grad_(False)

        def for_classes(names: Sequence[str]) -> Callable[[States], Tensor]:
            found = text_features(backbone, names, train.templates)
            return lambda states: cosine_logits(backbone, adapter(states.features), found)

        count = sum(p.numel() for p in adapter.parameters())
        return Classifier(for_classes, parameters=count, step_seconds=done.step_seconds, history=done.history)

    def parameters(self, backbone: Backbone, classes: int = 100, shots: int = 16) -> int:
        return sum(p.numel() for p in self.bottleneck(embedding_size(backbone), 0).parameters())
