"""The answer for one image, and the columns of a table; exports use both without torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np

from rmadapter.answers.rejection import NONE
from rmadapter.answers.sets import ANSWER, UNSURE, decide
from rmadapter.answers.taxonomy import Place, Taxonomy, level_name
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


Group = TypedDict("Group", {"level": str, "class": str, "probability": float})


@dataclass(frozen=True)
class Levels:
    """What a taxonomy adds to the answer for one image.

    best: the most probable group of each level above the labels, the lowest first. above: the
    groups that hold the most probable label, likewise. Both with their probabilities. common: the
    lowest group that holds the prediction set, if there are both.
    """

    best: tuple[tuple[str, float], ...]
    above: tuple[tuple[Place, float], ...]
    common: Place | None = None

    @classmethod
    def of(cls, tree: Taxonomy, table: np.ndarray, sets: Sequence[Sequence[int]]) -> list[Levels]:
        """Return the levels of each of B images. table: probabilities [B, C]. sets: indices of the
        classes in each prediction set, none without one."""
        found = []
        sums = [tree.sums(table, level) for level in range(tree.depth + 1)]
        for row, (best, members) in enumerate(zip(tree.best(table), sets, strict=True)):
            guess = int(table[row].argmax())
            above = []
            for level in range(1, tree.depth + 1):
                share = sums[level][row, tree.groups(level)[1][guess]]
                above.append((tree.place(guess, level), round(float(share), 6)))
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

    best: labels and probabilities, the most probable first. zero_shot: the untouched backbone's
    label, if requested. unfamiliar: as from `Fitted.unfamiliar`, if requested. labels: of the
    prediction set, the most probable first, if an error is promised. familiar: whether the image
    is of the model's classes at all, if requested. levels: of a taxonomy, if there is one.
    """

    image: Path
    best: tuple[tuple[str, float], ...]
    zero_shot: str = ""
    unfamiliar: float | None = None
    labels: tuple[str, ...] = ()
    familiar: bool | None = None
    levels: Levels | None = None

    def decision(self, unsure: float = 0.0) -> str:
        """Return "none of these" for an image that is not familiar, else "answer" or "unsure", as
        decided by the prediction set or by `unsure`, for both of which a parent may answer; "" if
        none of the three was requested.

        unsure: as for `place`, if requested.
        """
        if self.familiar is False:
            return NONE
        if self.levels and self.levels.common:
            return ANSWER
        if self.labels:
            return decide(len(self.labels))
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

        unsure: probability that it must reach, where there is no prediction set.
        """
        (guess, probability), *_ = self.best
        levels = self.levels or Levels((), ())
        if levels.common or len(self.labels) > 1:
            return levels.common
        if probability >= unsure:
            return Place(guess, 0)
        return next((place for place, share in levels.above if share >= unsure), None)

    def json(self, unsure: float = 0.0) -> dict[str, object]:
        """Return what commands and servers print of the image besides its name. unsure: as for
        `place`."""
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
        if self.levels and (self.labels or unsure) and decision != NONE:
            place = self.place(unsure)
            facts["answer"] = place and {"class": place.name, "level": level_name(place.level)}
        return facts

    def row(self, unsure: float = 0.0) -> Row:
        """Return a row of a table.

        unsure: probability below which the label is "unsure"; the guess is kept.
        """
        (guess, probability), *others = self.best
        decision = self.decision(unsure)
        place = None if decision == NONE else self.place(unsure)
        row: Row = {
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


def best(labels: Sequence[str], probabilities: np.ndarray, top: int) -> list[tuple[str, float]]:
    """Return the `top` labels of one image with their probabilities, the most probable first.

    probabilities: [C].
    """
    order = np.argsort(-probabilities, kind="stable")[:top]
    return [(labels[i], round(float(probabilities[i]), 6)) for i in order]


def columns(
    top: int, sort: bool = False, zero_shot: bool = True, unfamiliar: bool = False,
    error: bool = False, sets: bool = False, familiar: bool = False, unsure: bool = False,
    depth: int = 0,
) -> list[str]:  # fmt: skip
    """Return the columns of a table with `top` answers per image.

    sort: with the image's new place. zero_shot: with the untouched backbone's label. unfamiliar:
    with how unlike the training images the image is. error: with what is wrong with a bad image.
    sets: with the prediction set. familiar: with whether the image is of the model's classes.
    unsure: with a probability that answers must reach; with any of the three, also with the
    decision. depth: of a taxonomy, with the level of the answer, and with the
    best group of each level.
    """
    more = [f"{what}_{place}" for place in range(2, top + 1) for what in ("label", "probability")]
    wanted = (sets, familiar, sets or familiar or unsure, unfamiliar, zero_shot, sort, error)
    groups = [level_name(level) for level in range(1, depth + 1)]
    levels = ["level"] * (depth > 0)
    levels += [f"{what}{group}" for group in groups for what in ("", "probability_")]
    last = [name for name, is_wanted in zip(OPTIONAL, wanted, strict=True) if is_wanted]
    return ["image", "label", "probability", "guess", *more, "unsure", *levels, *last]


def cell(column: str, value: Cell) -> Cell:
    """Return a value that no spreadsheet takes for a formula; an image's path still leads to the
    image."""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str):
        return value
    return inert_path(value) if column == "image" else inert(value)
