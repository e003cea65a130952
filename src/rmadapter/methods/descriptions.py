"""Zero-shot CLIP with texts that a language model wrote about the classes; nothing is learned from
images.

CuPL: Pratt et al., "What does a platypus look like? Generating customized prompts for zero-shot
image classification", ICCV 2023, arXiv 2209.03320. Whole sentences; a class feature is the
normalised mean of their unit features. DCLIP: Menon & Vondrick, "Visual Classification via
Description from Large Language Models", ICLR 2023, arXiv 2210.07183. Descriptors, each in "NAME,
which has DESCRIPTOR"; the score of a class is the mean of its descriptors' scores, so its feature
is the mean of their unit features, not normalised again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.data.names import descriptions
from rmadapter.data.texts import Form, parse_texts, read_texts, texts_of, texts_of_all
from rmadapter.errors import UserError
from rmadapter.methods.parts.features import Places
from rmadapter.prompts import Cosines, filled, text_features, untouched
from rmadapter.support.terminal import note
from rmadapter.training.contract import (
    About,
    Fitted,
    Known,
    Shots,
    ToLogits,
    Trained,
    Traits,
    Untrained,
    Uses,
    shaped,
)

WEIGHTS, TEXTS = "weights", "texts"
# first words of a descriptor
COMPLEMENT_WORDS = ("a", "an", "used")
VERBS = ("has", "often", "typically", "may", "can")


@dataclass(frozen=True)
class Descriptions(Untrained):
    """Zero-shot CLIP with texts about each class.

    The model stores all texts, so the file is not needed afterwards: a class added later uses its
    own texts, or the run's prompts if the file has none for it.

    Args:
        descriptions: JSON file {class name: [text, ...]} with every class it is fitted to.
        form: Kind of the texts.
    """

    title = "zero-shot CLIP, generated texts"
    source = (
        "Pratt et al., ICCV 2023 (arXiv 2209.03320), classify_imagenet.py of "
        "github.com/sarahpratt/CuPL; "
        "form=descriptors: Menon & Vondrick, ICLR 2023 (arXiv 2210.07183), load.py and main.py of "
        "github.com/sachit-menon/classify_by_description_release"
    )
    traits = Traits(
        uses=Uses(
            track="extra data",
            extra="generated texts about each class, in a file",
            files=("descriptions",),
            tuned="nothing",
        ),
        about=About(
            "nothing",
            "zero-shot with texts about each class from a file",
            "classes that you have texts about",
        ),
        reads="features",
    )
    descriptions: str = ""
    form: Form = "sentences"

    def fit(self, backbone: Backbone, shots: Shots) -> Fitted:
        if not self.descriptions:
            raise UserError(
                f"{self.title} needs a file of texts about the classes: --set descriptions=FILE"
            )
        texts = read_texts(self.descriptions)
        listed = zip(
            shots.classes, texts_of_all(texts, shots.classes, self.descriptions), strict=True
        )
        own = [whole_texts(self.form, name, some) for name, some in listed]
        tensors = {WEIGHTS: self._weights(backbone, own), TEXTS: packed(texts).to(backbone.device)}
        # nothing is learnt
        return self.restore(backbone, shots.known, tensors).after(Trained(weighed=True))

    def restore(self, backbone: Backbone, known: Known, tensors: Mapping[str, Tensor]) -> Fitted:
        weights = shaped(tensors, WEIGHTS, len(known.classes), backbone.embedding_size)
        texts = unpacked(tensors[TEXTS])

        def prompts_of(name: str) -> list[str]:
            prompts = [
                filled(template, text)
                for template in known.templates
                for text in descriptions(name)
            ]
            return whole_texts(self.form, name, texts_of(texts, name)) or prompts

        def others(names: list[str]) -> Tensor:
            return self._weights(backbone, [prompts_of(name) for name in names])

        def for_classes(names: Sequence[str]) -> ToLogits:
            places = Places.of(self.title, backbone, known.classes, names)
            every = places.weights(lambda _, rows: weights[rows], others)
            return Cosines(backbone, untouched, every)

        return Fitted(self, backbone, known, tensors, for_classes)

    def _weights(self, backbone: Backbone, groups: Sequence[Sequence[str]]) -> Tensor:
        """Return class weights [C, e] from the texts of each class."""
        features = text_features(backbone, [text for group in groups for text in group])
        return text_weights(self.form, features, groups)


def whole_texts(form: Form, name: str, texts: Sequence[str]) -> list[str]:
    """Return the texts of a class, given its prompt name, as passed to the encoder."""
    if form == "sentences":
        return list(texts)
    return [f"{descriptions(name)[0]}, {clause(text)}" for text in texts]


def text_weights(form: Form, features: Tensor, groups: Sequence[Sequence[object]]) -> Tensor:
    """Return class weights [C, e] from the unit features [S, e] of all texts, class after class."""
    means = group_means(features, [len(group) for group in groups])
    return F.normalize(means, dim=-1) if form == "sentences" else means


def group_means(features: Tensor, counts: list[int]) -> Tensor:
    """Return the mean [C, e] of each group, from the features [S, e] of all texts, group after
    group, and their numbers."""
    return torch.stack([part.mean(0) for part in features.split(counts)])


def packed(texts: Mapping[str, list[str]]) -> Tensor:
    """Encode texts by class as bytes, to be stored in a model's file."""
    return torch.frombuffer(bytearray(json.dumps(texts).encode()), dtype=torch.uint8)


def unpacked(stored: Tensor) -> dict[str, list[str]]:
    """Decode the bytes of `packed`. Raises RuntimeError, as torch does, for the bytes of a damaged
    file."""
    try:
        return parse_texts(json.loads(stored.cpu().numpy().tobytes()), TEXTS)
    except (ValueError, TypeError) as error:
        raise RuntimeError(str(error)) from None


def clause(descriptor: str) -> str:
    """ "four legs" -> "which has four legs", "a beak" -> "which is a beak", "can fly" -> "which can
    fly".

    Compares whole words; the authors' code compares first letters, and so gives "which is antlers".
    """
    first = descriptor.split()[0].lower()
    verb = "is " if first in COMPLEMENT_WORDS else "" if first in VERBS else "has "
    return f"which {verb}{descriptor}"


@cache
def without_texts(does: str, method: str) -> None:
    """Note once per process what a method does instead."""
    note(
        f"without generated descriptions, {does}; name a file of descriptions in "
        f"{method}.descriptions"
    )
