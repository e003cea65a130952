"""What the page says of an image beyond its classes, at each share that it offers."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from PIL import Image

from rmadapter.artifacts import Saved
from rmadapter.runs import examine


class Decided(TypedDict):
    """The classes that may be right at a promised error, and what they decide.

    Attributes:
        error: The error.
        set: The classes.
        decision: What they decide.
        parent: The parent that answers for several of them, "" if none does.
    """

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
    offers, and at each level of a taxonomy, as `Answer.json` has them."""

    sets: list[Decided]
    familiar: list[Recognised]
    levels: object


def look(saved: Saved, image: Image.Image) -> tuple[np.ndarray, Seen]:
    """Return the probabilities [C] of an image, and what else is said of it."""
    table, far = examine(saved.fitted, [image], False, saved.names)
    decider = saved.decider()
    possible = decider.possible()
    [plain] = decider.answer(table)
    sets: list[Decided] = []
    for error in possible["errors"]:
        [answer] = decider.at(error=error).answer(table)
        decision, parent = answer.decision(), answer.parent
        sets.append(
            {"error": error, "set": [*answer.labels], "decision": decision, "parent": parent}
        )
    familiar: list[Recognised] = []
    for share in possible["shares"]:
        [is_familiar] = decider.at(reject_rate=share).familiar(table, far).tolist()
        familiar.append({"share": share, "familiar": is_familiar})
    levels = plain.json().get("levels", [])
    return table[0], {"sets": sets, "familiar": familiar, "levels": levels}
