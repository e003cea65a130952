"""The answer for one image, and the columns of a table; exports use both without torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rmadapter.conformal import ANSWER, UNSURE, decide
from rmadapter.familiar import NONE
from rmadapter.support.files import inert, inert_path

Cell = str | float | bool | None
Row = dict[str, Cell]

OPTIONAL = (
    "set",
    "familiar",
    "decision",
    "unfamiliar",
    "zero_shot_label",
    "sorted_to",
    "error",
)  # the last columns


@dataclass(frozen=True)
class Answer:
    """What a model answers for one image.

    best: labels and probabilities, the most probable first. zero_shot: the untouched backbone's
    label, if requested. unfamiliar: as from `Fitted.unfamiliar`, if requested. labels: of the
    prediction set, the most probable first, if an error is promised. familiar: whether the image
    is of the model's classes at all, if requested.
    """

    image: Path
    best: tuple[tuple[str, float], ...]
    zero_shot: str = ""
    unfamiliar: float | None = None
    labels: tuple[str, ...] = ()
    familiar: bool | None = None

    @property
    def decision(self) -> str:
        """Return what `decision` returns."""
        return decision(self.labels, self.familiar)

    def json(self) -> dict[str, object]:
        """Return what commands and servers print of the image besides its name."""
        best = [{"class": label, "probability": share} for label, share in self.best]
        return {"classes": best, **decided(self.labels, self.familiar)}

    def row(self, unsure: float = 0.0) -> Row:
        """Return a row of a table.

        unsure: probability below which the label is "unsure"; the guess is kept.
        """
        (guess, probability), *others = self.best
        is_unsure = self.decision == UNSURE or (probability < unsure and self.familiar is not False)
        row: Row = {
            "image": str(self.image),
            "label": NONE if self.familiar is False else UNSURE if is_unsure else guess,
            "probability": probability,
            "guess": guess,
        }
        for place, (other, share) in enumerate(others, 2):
            row[f"label_{place}"] = other
            row[f"probability_{place}"] = share
        row["unsure"] = is_unsure
        if self.labels:
            row["set"] = json.dumps(self.labels, ensure_ascii=False)
        if self.familiar is not None:
            row["familiar"] = self.familiar
        if self.decision:
            row["decision"] = self.decision
        row["unfamiliar"] = self.unfamiliar
        row["zero_shot_label"] = self.zero_shot
        return row


def decision(labels: Sequence[str], familiar: bool | None) -> str:
    """Return "none of these" for an image that is not familiar, else what is decided by the
    prediction set; "" if neither was requested.

    labels: of the prediction set, none without one. familiar: as in `Answer`.
    """
    if familiar is False:
        return NONE
    if labels:
        return decide(len(labels))
    return ANSWER if familiar else ""


def decided(labels: Sequence[str], familiar: bool | None) -> dict[str, object]:
    """Return what commands and servers print of a decision; nothing if none was requested. labels,
    familiar: as for `decision`."""
    facts: dict[str, object] = {}
    if labels:
        facts["set"] = [*labels]
    if familiar is not None:
        facts["familiar"] = familiar
    if facts:
        facts["decision"] = decision(labels, familiar)
    return facts


def best(labels: Sequence[str], probabilities: np.ndarray, top: int) -> list[tuple[str, float]]:
    """Return the `top` labels of one image with their probabilities, the most probable first.

    probabilities: [C].
    """
    order = np.argsort(-probabilities, kind="stable")[:top]
    return [(labels[i], round(float(probabilities[i]), 6)) for i in order]


def columns(
    top: int, sort: bool = False, zero_shot: bool = True, unfamiliar: bool = False,
    error: bool = False, sets: bool = False, familiar: bool = False,
) -> list[str]:  # fmt: skip
    """Return the columns of a table with `top` answers per image.

    sort: with the image's new place. zero_shot: with the untouched backbone's label. unfamiliar:
    with how unlike the training images the image is. error: with what is wrong with a bad image.
    sets: with the prediction set. familiar: with whether the image is of the model's classes; with
    either, also with the decision.
    """
    more = [f"{what}_{place}" for place in range(2, top + 1) for what in ("label", "probability")]
    wanted = (sets, familiar, sets or familiar, unfamiliar, zero_shot, sort, error)
    last = [name for name, is_wanted in zip(OPTIONAL, wanted, strict=True) if is_wanted]
    return ["image", "label", "probability", "guess", *more, "unsure", *last]


def cell(column: str, value: Cell) -> Cell:
    """Return a value that no spreadsheet takes for a formula; an image's path still leads to the
    image."""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str):
        return value
    return inert_path(value) if column == "image" else inert(value)
