"""CLIP itself, with prompts: Radford et al., "Learning Transferable Visual Models", ICML 2021."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.metrics import platt
from rmadapter.prompts import Cosines, cosine_logits, untouched, zero_shot_weights
from rmadapter.task import check_templates
from rmadapter.training.contract import Fitted, Known, Parameters, Shots, ToLogits, Trained

PAPER = "Radford et al., ICML 2021 (arXiv 2103.00020)"
LINE = "line"
# The templates that CLIP's authors chose for ImageNet.
SEVEN = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)


@dataclass(frozen=True)
class ZeroShot:
    """The untouched backbone. templates: averaged in place of those of the run; empty for those of
    the run.

    If images have several labels, two numbers shared by all classes are fitted to the shots: the
    line that turns cosines into probabilities (Platt, 1999). The order of images within a class
    stays the untouched backbone's.
    """

    several: ClassVar[bool] = True
    title: str = "zero-shot CLIP"
    source: str = PAPER
    templates: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.templates:
            check_templates(self.templates)

    def fit(self, backbone: Backbone, shots: Shots) -> Fitted:
        tensors = {LINE: self._line(backbone, shots)} if shots.known.several else {}
        return self.restore(backbone, shots.known, tensors).after(
            Trained(weighed=True)
        )  # nothing else is learnt

    def restore(self, backbone: Backbone, known: Known, tensors: Mapping[str, Tensor]) -> Fitted:
        """If images have several labels and `tensors` has no line, probabilities are the sigmoid of
        plain cosines."""

        def for_classes(names: Sequence[str]) -> ToLogits:
            cosines = self._cosines(backbone, known, names)
            if not known.several:
                return cosines
            slope, offset = tensors[LINE] if LINE in tensors else (1 / backbone.logit_scale, 0.0)
            return lambda states: slope * cosines(states) + offset

        return Fitted(
            self,
            backbone,
            known,
            tensors,
            for_classes,
            parameters=sum(map(torch.numel, tensors.values())),
        )

    def _cosines(self, backbone: Backbone, known: Known, names: Sequence[str]) -> Cosines:
        return Cosines(
            backbone,
            untouched,
            zero_shot_weights(backbone, names, self.templates or known.templates),
        )

    def _line(self, backbone: Backbone, shots: Shots) -> Tensor:
        """Slope and offset, [2]."""
        weights = self._cosines(backbone, shots.known, shots.classes).weights
        scores = cosine_logits(backbone, shots.plain_features(), weights)
        each = torch.ones(len(scores)) if shots.weights is None else shots.weights
        parts = (scores, shots.labels, each[:, None].expand(scores.shape))
        return torch.tensor(
            platt(*(part.flatten().cpu().numpy() for part in parts)), device=shots.device
        )

    def parameters(self, backbone: Backbone, classes: int = 100, shots: int = 16) -> Parameters:
        return Parameters()


ENSEMBLE = ZeroShot(
    "zero-shot CLIP, 7 templates",
    f"{PAPER}; templates of notebooks/Prompt_Engineering_for_ImageNet.ipynb in openai/CLIP, whatever the data",
    SEVEN,
)
