"""TDA: Karmanov et al., "Efficient Test-Time Adaptation of Vision-Language Models", CVPR 2024,
arXiv 2403.18293.

Zero-shot CLIP that remembers test images. For each class, two memories hold the most confident
images predicted as it. An image's logits are CLIP's, plus alpha sum exp(-beta (1 - cos)) over the
positive memory, each remembered image counting for its predicted class, minus the same over the
negative memory, each counting for all classes it may belong to. The negative memory takes images of
medium confidence. An image is remembered before it is answered.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.encoders import States
from rmadapter.methods.parts.features import unit
from rmadapter.prompts import cosine_logits, entropy, zero_shot_weights
from rmadapter.settings import Positive, Share, Size
from rmadapter.training.contract import About, Fitted, Known, ToLogits, Traits, Untrained, Uses


class Memory:
    """For each of C predicted classes, at most `size` images: those of the lowest entropy.

    Args:
        weights: Class weights [C, e].
        size: Number of images per class.
    """

    def __init__(self, weights: Tensor, size: int) -> None:
        count, width = weights.shape
        self.keys = weights.new_zeros(count, size, width)
        self.values = weights.new_zeros(count, size, count)
        self.entropies = torch.full((count, size), math.inf)  # infinite for a free slot

    def add(self, place: int, entropy: float, key: Tensor, value: Tensor) -> None:
        """Add an image.

        Args:
            place: Predicted class.
            entropy: Entropy of the prediction.
            key: Unit features [e].
            value: Contribution to each class, [C].
        """
        last = int(self.entropies[place].argmax())
        if entropy < self.entropies[place, last]:
            self.entropies[place, last] = entropy
            self.keys[place, last], self.values[place, last] = key, value

    def logits(self, image: Tensor, beta: float) -> Tensor:
        """Return logits [C] for unit features [e]; a free slot contributes nothing."""
        near = (beta * (self.keys @ image - 1)).exp()
        return near.flatten() @ self.values.flatten(0, 1)


@dataclass(frozen=True)
class TDA(Untrained):
    """Zero-shot that remembers test images in their order.

    Released configurations set alpha (1 to 5) and beta (1 to 8) for each data set; here all use
    those of ImageNet.

    Args:
        alpha: Weight of the positive memory.
        beta: Sharpness of the positive memory.
        size: Images per class in the positive memory.
        negative_alpha: Weight of the negative memory.
        negative_beta: Sharpness of the negative memory.
        negative_size: Images per class in the negative memory.
        lowest: Entropy over log2 C above which the negative memory takes an image.
        highest: Entropy over log2 C below which it does.
        mask: Probability above which a class counts in the negative memory.
    """

    title = "TDA"
    source = (
        "Karmanov et al., CVPR 2024 (arXiv 2403.18293); "
        "tda_runner.py and configs/imagenet.yaml of github.com/kdiAAA/TDA"
    )
    traits = Traits(
        uses=Uses(
            track="test time",
            constants="alpha and beta, the words of the prompts",
            test_time="features of the test images before, in a random order",
            tuned="as published for ImageNet",
        ),
        about=About(
            "nothing",
            "zero-shot that remembers test images in their order",
            "many unlabelled images asked about at once",
        ),
        reads="features",
    )
    alpha: Annotated[float, Field(ge=0)] = 2.0
    beta: Positive = 5.0
    size: Size = 3
    negative_alpha: Annotated[float, Field(ge=0)] = 0.117
    negative_beta: Positive = 1.0
    negative_size: Size = 2
    lowest: Share = 0.2
    highest: Share = 0.5
    mask: Share = 0.03

    def restore(self, backbone: Backbone, known: Known, tensors: Mapping[str, Tensor]) -> Fitted:
        def for_classes(names: Sequence[str]) -> ToLogits:
            return Stream(self, backbone, zero_shot_weights(backbone, names, known.templates))

        return Fitted(self, backbone, known, tensors, for_classes, remembers=True)


class Stream:
    """Answers images one after the other, however they are batched.

    Args:
        method: Method with its settings.
        backbone: Backbone of the fit.
        weights: Class weights [C, e].
    """

    def __init__(self, method: TDA, backbone: Backbone, weights: Tensor) -> None:
        self.method, self.backbone, self.weights = method, backbone, weights
        self.positive = Memory(weights, method.size)
        self.negative = Memory(weights, method.negative_size)

    @torch.no_grad()
    def __call__(self, states: States) -> Tensor:
        """Return logits [B, C] of the states of B images."""
        method, count = self.method, len(self.weights)
        logits = cosine_logits(self.backbone, states.features, self.weights)
        images, shares = unit(states.features), logits.softmax(-1)
        places, entropies = logits.argmax(-1), entropy(logits)
        taken, maybe = F.one_hot(places, count).to(logits), (shares > method.mask).to(logits)
        relative = entropies / max(math.log2(count), 1.0)  # log2 C is 0 for a single class
        rows = []
        listed = zip(places.tolist(), entropies.tolist(), relative.tolist(), strict=True)
        for row, (place, doubt, unsure) in enumerate(listed):
            self.positive.add(place, doubt, images[row], taken[row])
            if method.lowest < unsure < method.highest:
                self.negative.add(place, doubt, images[row], maybe[row])
            more = method.alpha * self.positive.logits(images[row], method.beta)
            less = method.negative_alpha * self.negative.logits(images[row], method.negative_beta)
            rows.append(logits[row] + more - less)
        return torch.stack(rows)
