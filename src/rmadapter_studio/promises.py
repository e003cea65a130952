"""What the page says of an image beyond its classes, at each share that it offers."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

import numpy as np
from PIL import Image

from rmadapter.answers.answer import Answer, Group, Levels
from rmadapter.answers.sets import CalibrationFacts, chosen, limits_of
from rmadapter.artifacts.checkpoint import Saved
from rmadapter.runs.features import examine, known_images


class Decided(TypedDict):
    """The classes that may be right at a promised error, and what they decide. parent: that answers
    for several of them, "" if none does."""

    error: float
    set: list[str]
    decision: str
    parent: str


class Recognised(TypedDict):
    """Whether an image is of the classes at all, if this share of their images may be turned
    away."""

    share: float
    familiar: bool


class Seen(TypedDict):
    """What is said of an image beyond its classes: at each error and each share that the page
    offers, and at each level of a taxonomy."""

    sets: list[Decided]
    familiar: list[Recognised]
    levels: list[Group]


class Offers(TypedDict):
    """What the page offers for a model: errors and shares, and by which images."""

    calibration: CalibrationFacts | None
    errors: list[float]
    familiarity: CalibrationFacts | None
    shares: list[float]


def offers(saved: Saved) -> Offers:
    """Return what can be promised for a model."""
    calibration, familiarity = saved.calibration, known_images(saved.fitted, saved.names)
    return {
        "calibration": calibration.facts if calibration else None,
        "errors": calibration.possible() if calibration else [],
        "familiarity": familiarity.facts if familiarity else None,
        "shares": familiarity.possible() if familiarity else [],
    }


def look(saved: Saved, image: Image.Image) -> tuple[np.ndarray, Seen]:
    """Return the probabilities [C] of an image, and what else is said of it."""
    table, familiar = _look(saved, image)
    tree = saved.tree
    levels = Levels.of(tree, table[None], [[]])[0].json() if tree else []
    return table, {"sets": _sets(saved, table), "familiar": familiar, "levels": levels}


def _look(saved: Saved, image: Image.Image) -> tuple[np.ndarray, list[Recognised]]:
    """Return the probabilities [C] of an image, and whether it is familiar at each share."""
    familiarity, names = known_images(saved.fitted, saved.names), saved.names
    if familiarity is None:
        return next(saved.fitted.probabilities([image], names))[0].numpy(), []
    table, far = examine(saved.fitted, [image], False, names)
    found: list[Recognised] = []
    for share in familiarity.possible():
        count, known = familiarity.strangest(share), len(saved.fitted.classes)
        own = bool(familiarity.familiar(table, far, count, known)[0])
        found.append({"share": share, "familiar": own})
    return table[0], found


def _sets(saved: Saved, probabilities: np.ndarray) -> list[Decided]:
    """Return the set of an image at each error that the model can promise. probabilities: [C]."""
    calibration, tree = saved.calibration, saved.tree
    sets: list[Decided] = []
    for error in calibration.possible() if calibration else []:
        limits = limits_of(calibration, error, saved.fitted.classes, saved.names)
        members = chosen(probabilities, limits).tolist()
        labels = [str(saved.labels[place]) for place in members]
        levels = Levels.of(tree, probabilities[None], [members])[0] if tree else None
        answer = Answer(Path(), (), labels=tuple(labels), levels=levels)
        decided: Decided = {
            "error": error, "set": labels, "decision": answer.decision(), "parent": answer.parent
        }  # fmt: skip
        sets.append(decided)
    return sets
