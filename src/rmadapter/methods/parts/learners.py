"""Modules that answer by the cosines of image and class features."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from rmadapter.backbones.known import kept_adapted
from rmadapter.encoders import States
from rmadapter.prompts import Cosines, untouched
from rmadapter.training.contract import Known, Learner, ToLogits


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
