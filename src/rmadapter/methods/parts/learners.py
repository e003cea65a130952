"""Modules that answer by the cosines of image and class features."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from rmadapter.adapter import SIDES
from rmadapter.backbones.known import kept_adapted
from rmadapter.encoders import Packed, States
from rmadapter.prompts import (
    Chunks,
    Cosines,
    cosine_logits,
    learnt_weights,
    prompts_each,
    stems,
    untouched,
)
from rmadapter.training.contract import Batch, Known, Learner, Loss, Shots, ToLogits


class CosineLearner(Learner):
    """A module that learns class features, and perhaps image features, which answers compare."""

    @abstractmethod
    def encode_classes(self, names: Sequence[str], known: Known) -> Tensor:
        """Return normalised features [C, e] of classes under the current parameters."""

    def image_encoder(self) -> Callable[[States], Tensor]:
        """Return the function from states to image features [B, e]; by default the untouched
        ones."""
        return untouched

    def class_weights(self, names: Sequence[str], known: Known) -> Tensor:
        """Return what `encode_classes` does, or what was kept of a saved model."""
        make = partial(self.encode_classes, names, known)
        return kept_adapted(self.backbone, names, known.templates, known.saved, make)

    def for_classes(self, names: Sequence[str], known: Known) -> ToLogits:
        return Cosines(self.backbone, self.image_encoder(), self.class_weights(names, known))


class TextLearner(CosineLearner):
    """A module that learns inside both encoders, and runs that of text on the prompts of
    classes."""

    first = 1
    reaches = SIDES

    @abstractmethod
    def image_features(self, states: States) -> Tensor:
        """Return image features [B, e], not normalised."""

    def image_encoder(self) -> Callable[[States], Tensor]:
        return self.image_features

    @abstractmethod
    def encode_text(self, x: Tensor, layout: Packed) -> Tensor:
        """Return features [P, e] of the tokens of P prompts, as `prompts` returns them."""

    def prompts(self, names: Sequence[str], templates: Sequence[str]) -> Chunks:
        """Return the frozen input [T, d] of the first block that learns, and its layout, in chunks;
        by default of the first block."""
        return stems(self.backbone, names, templates)

    def class_features(self, prompts: Chunks, each: int) -> Tensor:
        """Return normalised class features [C, e].

        Args:
            prompts: Prompts of C classes, as `prompts` returns them.
            each: Number of prompts of each class.
        """
        return learnt_weights(self.encode_text, prompts, each)

    def encode_classes(self, names: Sequence[str], known: Known) -> Tensor:
        prompts = self.prompts(names, known.templates)
        return self.class_features(prompts, prompts_each(names, known.templates))

    def cross_entropy(self, prompts: Chunks, shots: Shots) -> Loss:
        """Return the cross-entropy of a batch of shots, with the prompts of their classes."""
        each = prompts_each(shots.classes, shots.templates)

        def loss(batch: Batch) -> Tensor:
            features = self.image_features(batch.images)
            logits = cosine_logits(self.backbone, features, self.class_features(prompts, each))
            return F.cross_entropy(logits, batch.labels)

        return loss
