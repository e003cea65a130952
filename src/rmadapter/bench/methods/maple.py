"""MaPLe: Khattak et al., "MaPLe: Multi-modal Prompt Learning", CVPR 2023 (arXiv 2210.03117).

Prompts P_i [n, d_t] enter the first J blocks of the text encoder, and F_i(P_i) [n, d_v], F_i linear, those of the image
encoder (Eq. 5-8 of the paper). The class prompt is "P_1 of a NAME.", where P_1 starts as the words "a photo".
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
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
from rmadapter.towers import States


class CoupledPrompts(nn.Module):
    """Text prompts, and the linear maps that make image prompts of them.

    Blocks are coupled from the bottom, block i with block i, up to `depth` or the top of the shallower encoder.
    """

    def __init__(self, backbone: Backbone, n_ctx: int, depth: int, init: str, seed: int, method: str = "MaPLe") -> None:
        super().__init__()
        self.image, text = prompted_towers(backbone, method)
        self.backbone, depth = backbone, min(depth, self.image.depth, text.depth)
        first, self.rest = first_context(backbone, init, n_ctx, seed)
        deeper = draw((depth - 1) * n_ctx, text.width, seed + 1).split(n_ctx) if depth > 1 else ()
        self.prompts = nn.ParameterList([first, *(prompt.clone() for prompt in deeper)])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            first_map, deeper_map = (nn.Linear(text.width, self.image.width) for _ in range(2))
        # The deeper ones start alike, as the released code has it.
        self.maps = nn.ModuleList([first_map, *(deepcopy(deeper_map) for _ in range(depth - 1))])

    def text(self, names: Sequence[str]) -> PromptedText:
        return prompted_text(self.backbone, names, len(self.prompts[0]), self.rest)

    def forward(self, text: PromptedText, states: States) -> tuple[Tensor, Tensor]:
        """Image features [B, e] and class features [C, e], not normalised."""
        return self.image_features(states), self.class_features(text)

    def class_features(self, text: PromptedText) -> Tensor:
        return encode_text(text, list(self.prompts))

    def image_features(self, states: States) -> Tensor:
        mapped = [layer(prompt) for layer, prompt in zip(self.maps, self.prompts, strict=True)]
        return encode_image(self.image, states.x, mapped)


@dataclass(frozen=True)
class MaPLe:
    """n_ctx: prompts per block. depth: prompted blocks, J. On an encoder with fewer blocks, as many as it has."""

    title: ClassVar[str] = "MaPLe"
    source: ClassVar[str] = (
        "Khattak et al., CVPR 2023 (arXiv 2210.03117); vit_b16_c2_ep5_batch4_2ctx.yaml of "
        "github.com/muzairkhattak/multimodal-prompt-learning"
    )
    n_ctx: int = 2
    depth: int = 9
    init: str = "a photo of a"
    epochs: int = 5
    learning_rate: float = 0.0035
    batch_size: int = 4

    def module(self, backbone: Backbone, seed: int = 1) -> CoupledPrompts:
        return CoupledPrompts(backbone, self.n_ctx, self.depth, self.init, seed)

    def fit(self, backbone: Backbone, train: Training) -> Classifier:
        frozen, labels = train.frozen(1), labels_of(train)
        module = self.module(backbone, train.seed).to(train.device)
        text = module.text(train.images.classes)

        def loss(epoch: int, rows: Tensor) -> Tensor:
            image, classes = module(text, frozen.batch(rows, train.device, epoch))
            return F.cross_entropy(cosine(backbone, image, classes), labels[rows])

        recipe = Recipe(learning_rate=self.learning_rate, epochs=self.epochs, batch_size=self.batch_size)
        done = minimise(module.parameters(), loss, recipe, train)
        return Classifier(by_name(backbone, module, module.text), 1, count(module), done.step_seconds, done.history)

    def parameters(self, backbone: Backbone, classes: int = 100, shots: int = 16) -> int:
        return count(self.module(backbone))
