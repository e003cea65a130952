"""The answer for one image, as JSON and as a row of a table.

NumPy only, since exports hold this file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np

from rmadapter.answers.rejection import NONE_OF_THESE
from rmadapter.answers.taxonomy import Place, Taxonomy, level_name
from rmadapter.support.files import inert, inert_path

Cell = str | float | bool | None
AnswerRow = dict[str, Cell]
ANSWER, UNSURE = "answer", "unsure"  # decisions, beside NONE_OF_THESE

Group = TypedDict("Group", {"level": str, "class": str, "probability": float})


@dataclass(frozen=True)
class Levels:
    """What a taxonomy adds to the answer for one image.

    Attributes:
        best: The most probable group of each level above the labels, the lowest first, with its
            probability.
        above: The groups that hold the most probable label, likewise.
        common: The lowest group that holds the prediction set, if there are both.
    """

    best: tuple[tuple[str, float], ...]
    above: tuple[tuple[Place, float], ...]
    common: Place | None = None

    @classmethod
    def of(cls, tree: Taxonomy, table: np.ndarray, sets: Sequence[Sequence[int]]) -> list[Levels]:
        """Return the levels of each of B images.

        Args:
            tree: Taxonomy of the labels.
            table: Probabilities [B, C].
            sets: Indices of the classes in each prediction set, none without one.
        """
        levels = range(1, tree.depth + 1)
        sums = {level: tree.sums(table, level) for level in levels}
        found = []
        for row, members in enumerate(sets):
            guess = int(table[row].argmax())
            best, above = [], []
            for level in levels:
                names, which = tree.groups(level)
                shares = sums[level][row].tolist()
                largest = max(shares)
                best.append((names[shares.index(largest)], round(largest, 6)))
                above.append((tree.place(guess, level), round(shares[which[guess]], 6)))
            found.append(cls(tuple(best), tuple(above), tree.common(members) if members else None))
        return found

    def json(self) -> list[Group]:
        """Return the best groups as JSON has them."""
        return [
            {"level": level_name(level), "class": name, "probability": share}
            for level, (name, share) in enumerate(self.best, 1)
        ]


@dataclass(frozen=True)
class Answer:
    """What a model answers for one image.

    Attributes:
        best: Labels and probabilities, the most probable first.
        labels: Labels of the prediction set, the most probable first, if an error is promised.
        familiar: Whether the image is of the model's classes at all, if requested.
        levels: Levels of a taxonomy, if there is one.
        image: Path of the image, if it has one.
        zero_shot: The untouched backbone's label, if requested.
        unfamiliar: As from `Fitted.unfamiliar`, if requested.
    """

    best: tuple[tuple[str, float], ...]
    labels: tuple[str, ...] = ()
    familiar: bool | None = None
    levels: Levels | None = None
    image: Path = Path()
    zero_shot: str = ""
    unfamiliar: float | None = None

    def decision(self, unsure: float = 0.0) -> str:
        """Return "none of these" for an image that is not familiar, else "answer" or "unsure", as
        decided by the prediction set or by `unsure`, for both of which a parent may answer; "" if
        none of the three was requested.

        Args:
            unsure: As for `place`, if requested.
        """
        if self.familiar is False:
            return NONE_OF_THESE
        if self.levels and self.levels.common:
            return ANSWER
        if self.labels:
            return ANSWER if len(self.labels) == 1 else UNSURE
        if unsure:
            return ANSWER if self.place(unsure) else UNSURE
        return ANSWER if self.familiar else ""

    @property
    def parent(self) -> str:
        """Return the parent that answers for a prediction set of several classes, "" if none
        does."""
        common = self.levels.common if self.levels and self.familiar is not False else None
        return common.name if common and common.level else ""

    def place(self, unsure: float = 0.0) -> Place | None:
        """Return the label or the parent that is the answer; None if the image is unsure.

        Args:
            unsure: Probability that it must reach, where there is no prediction set.
        """
        (guess, probability), *_ = self.best
        levels = self.levels or Levels((), ())
        if levels.common or len(self.labels) > 1:
            return levels.common
        if probability >= unsure:
            return Place(guess, 0)
        return next((place for place, share in levels.above if share >= unsure), None)

    def json(self, unsure: float = 0.0) -> dict[str, object]:
        """Return what commands and servers print of the image besides its name.

        Args:
            unsure: As for `place`.
        """
        best = [{"class": label, "probability": share} for label, share in self.best]
        decision = self.decision(unsure)
        facts: dict[str, object] = {"classes": best}
        if self.labels:
            facts["set"] = [*self.labels]
        if self.familiar is not None:
            facts["familiar"] = self.familiar
        if decision:
            facts["decision"] = decision
        if self.levels:
            facts["levels"] = self.levels.json()
        if self.levels and (self.labels or unsure) and decision != NONE_OF_THESE:
            place = self.place(unsure)
            facts["answer"] = place and {"class": place.name, "level": level_name(place.level)}
        return facts

    def row(self, unsure: float = 0.0) -> AnswerRow:
        """Return a row of a table.

        Args:
            unsure: Probability below which the label is "unsure"; the guess is kept.
        """
        (guess, probability), *others = self.best
        decision = self.decision(unsure)
        place = None if decision == NONE_OF_THESE else self.place(unsure)
        row: AnswerRow = {
            "image": str(self.image),
            "label": place.name if place else decision,
            "probability": probability,
            "guess": guess,
        }
        for number, (other, share) in enumerate(others, 2):
            row[f"label_{number}"] = other
            row[f"probability_{number}"] = share
        row["unsure"] = decision == UNSURE
        if self.levels:
            row["level"] = level_name(place.level) if place else None
            for level, (name, share) in enumerate(self.levels.best, 1):
                row[level_name(level)] = name
                row[f"probability_{level_name(level)}"] = share
        if self.labels:
            row["set"] = json.dumps(self.labels, ensure_ascii=False)
        if self.familiar is not None:
            row["familiar"] = self.familiar
        if decision:
            row["decision"] = decision
        row["unfamiliar"] = self.unfamiliar
        row["zero_shot_label"] = self.zero_shot
        return row


def cell(column: str, value: Cell) -> Cell:
    """Return a value that no spreadsheet takes for a formula; an image's path still leads to the
    image."""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str):
        return value
    return inert_path(value) if column == "image" else inert(value)
