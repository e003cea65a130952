"""CLIP itself, with prompts: Radford et al., "Learning Transferable Visual Models From Natural
Language Supervision", ICML 2021."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.prompts import Cosines, untouched, zero_shot_weights
from rmadapter.task import check_templates
from rmadapter.training.contract import About, Fitted, Known, Traits, Untrained, Uses

PAPER = "Radford et al., ICML 2021 (arXiv 2103.00020)"
# The templates that CLIP's authors chose for ImageNet.
GENERAL_TEMPLATES = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)


@dataclass(frozen=True)
class ZeroShot(Untrained):
    """The untouched backbone.

    Args:
        title: Name in tables.
        source: Paper.
        templates: Templates in place of those of the run, averaged; empty for those of the run.
    """

    title: str = "zero-shot CLIP"
    source: str = PAPER
    templates: tuple[str, ...] = ()
    traits: Traits = Traits(
        uses=Uses(tuned="nothing"),
        about=About(
            "nothing",
            "an image goes to the class with the nearest prompt",
            "tasks without labelled images",
        ),
        reads="features",
    )

    def __post_init__(self) -> None:
        if self.templates:
            check_templates(self.templates)

    def restore(self, backbone: Backbone, known: Known, tensors: Mapping[str, Tensor]) -> Fitted:
        def for_classes(names: Sequence[str]) -> Cosines:
            weights = zero_shot_weights(backbone, names, self.templates or known.templates)
            return Cosines(backbone, untouched, weights)

        return Fitted(self, backbone, known, tensors, for_classes)


ENSEMBLE = ZeroShot(
    "zero-shot CLIP, 7 templates",
    f"{PAPER}; templates of notebooks/Prompt_Engineering_for_ImageNet.ipynb in openai/CLIP, "
    "whatever the data",
    GENERAL_TEMPLATES,
    traits=Traits(
        uses=Uses(extra="7 general templates", tuned="ImageNet, by CLIP's authors"),
        about=About(
            "nothing",
            "zero-shot with seven general templates",
            "tasks without labels or a template of your own",
        ),
        reads="features",
    ),
)
