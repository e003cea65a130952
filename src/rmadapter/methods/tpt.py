"""TPT: Shu et al., "Test-Time Prompt Tuning for Zero-Shot Generalization in Vision-Language
Models", NeurIPS 2022, arXiv 2209.07511.

Zero-shot CLIP whose prompt takes one step for each image. The image and random crops of it are
classified by the prompt; of these views, the share with the lowest entropy counts. The context
vectors take a step down the entropy of the mean of their probabilities, answer the image, and are
reset. No label and no other image is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.encoders import States
from rmadapter.methods.parts.learned_prompts import encoder_of, init_words
from rmadapter.prompts import cosine_logits, entropy
from rmadapter.settings import Positive, Share
from rmadapter.training.contract import (
    PUBLISHED,
    About,
    Fitted,
    Known,
    Parameters,
    ToLogits,
    Traits,
    Untrained,
    Uses,
)


@dataclass(frozen=True)
class TPT(Untrained):
    """Zero-shot whose prompt takes a step for each image, by crops of it.

    Each image costs `views` passes of the image encoder, and one backward and one forward pass of
    the text encoder on all classes.

    Args:
        views: Views of an image, itself included.
        share: Share of the views that count.
        learning_rate: Learning rate of AdamW, with torch's other settings.
        context: Words before the class name, whose embeddings the vectors start from.
    """

    title = "TPT"
    source = (
        "Shu et al., NeurIPS 2022 (arXiv 2209.07511); tpt_classification.py and "
        "scripts/test_tpt.sh of github.com/azshue/TPT, with the crops of ImageNet and its variants"
    )
    traits = Traits(
        uses=Uses(
            track="test time",
            test_time="none: the prompt takes a step by crops of each image alone, and forgets it",
            tuned=PUBLISHED,
        ),
        about=About(
            "nothing",
            "zero-shot whose prompt takes a step for each image, by 64 crops of it",
            "studies of single images: each takes 64 passes of the image encoder",
        ),
        reads="text",
        left_out="AugMix of the crops, on sets other than ImageNet and its variants",
    )
    views: Annotated[int, Field(ge=2, le=4096)] = 64
    share: Share = 0.1
    learning_rate: Positive = 5e-3
    context: Annotated[str, Field(min_length=1)] = "a photo of a"

    @property
    def test_views(self) -> int:
        return self.views - 1

    def restore(self, backbone: Backbone, known: Known, tensors: Mapping[str, Tensor]) -> Fitted:
        backbone.with_blocks("text")

        def for_classes(names: Sequence[str]) -> ToLogits:
            return Tuned(self, backbone, names)

        return Fitted(self, backbone, known, tensors, for_classes)

    def parameters(self, backbone: Backbone, classes: int = 100, shots: int = 16) -> Parameters:
        backbone.with_blocks("text")
        return super().parameters(backbone, classes, shots)


class Tuned:
    """Answers each image by a prompt of its own.

    Args:
        method: Method with its settings.
        backbone: Backbone of the fit.
        names: Names of the C classes.
    """

    def __init__(self, method: TPT, backbone: Backbone, names: Sequence[str]) -> None:
        self.method, self.backbone = method, backbone
        self.start = init_words(backbone, method.context).requires_grad_()
        self._encode = encoder_of(backbone, names, len(self.start))

    def weights(self, context: Tensor) -> Tensor:
        """Return class weights [C, e] of context vectors [n, d]."""
        return F.normalize(self._encode(context), dim=-1)

    @cached_property
    def first(self) -> Tensor:
        """Class weights of the start, with the graph of their gradient: that of all images."""
        with torch.enable_grad():
            return self.weights(self.start)

    def __call__(self, states: States) -> Tensor:
        """Return logits [B, C] of the states of B images with their views."""
        images = zip(states.features, states.views, strict=True)
        return torch.cat([self.logits(image, views) for image, views in images])

    def logits(self, image: Tensor, views: Tensor) -> Tensor:
        """Return logits [1, C] of an image's features [e], after a step by those of its views,
        [V, e]."""
        method, seen = self.method, torch.cat([image[None], views])
        with torch.enable_grad():
            logits = cosine_logits(self.backbone, seen, self.first)
            loss = entropy_of_mean(surest(logits, method.share))
            (gradient,) = torch.autograd.grad(loss, self.start, retain_graph=True)
        context = self.start.detach().clone()
        context.grad = gradient
        torch.optim.AdamW([context], method.learning_rate).step()
        with torch.no_grad():
            return cosine_logits(self.backbone, image[None], self.weights(context))


def surest(logits: Tensor, share: float) -> Tensor:
    """Return those of the logits [V, C] of views that have the lowest entropy; at least one."""
    return logits[entropy(logits).argsort()[: max(1, int(share * len(logits)))]]


def entropy_of_mean(logits: Tensor) -> Tensor:
    """Return the entropy of the mean probabilities of views, from their logits [V, C]."""
    mean = logits.log_softmax(-1).logsumexp(0) - math.log(len(logits))
    return -(mean.exp() * mean).sum()
