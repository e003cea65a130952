"""Files of an export by which errors are promised, strange images are found, and labels have
parents. They may come from a stranger."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from rmadapter.answers.rejection import Familiarity
from rmadapter.answers.sets import Calibration
from rmadapter.answers.taxonomy import Taxonomy
from rmadapter.errors import UserError
from rmadapter.export import FACTS
from rmadapter.export.engines import Outputs
from rmadapter.support.files import read_json

CALIBRATION, FAMILIARITY = "calibration.json", "familiarity.json"
TAXONOMY = "taxonomy.json"
MOST_BYTES = 2**20  # of such a file
MOST_PARENTS = 2**24  # bytes of a taxonomy, whose names may be many
MORE = "more classes than the model has"
T = TypeVar("T")


@dataclass(frozen=True)
class Familiar:
    """What tells images of a model's classes from others.

    classes: how many it was fitted to; those that were added by name follow.
    """

    familiarity: Familiarity
    classes: int

    def __post_init__(self) -> None:
        if self.classes < 1:
            raise ValueError("no classes")

    @classmethod
    def from_json(cls, values: object) -> Familiar:
        """Check what `json` returned. Raises ValueError for anything else."""
        if not isinstance(values, dict) or type(values.get("known")) is not int:
            raise ValueError("no number of classes")
        others = {name: value for name, value in values.items() if name != "known"}
        return cls(Familiarity.from_json(others), values["known"])

    def json(self) -> dict[str, object]:
        """Return the fields as JSON has them."""
        return {**self.familiarity.json(), "known": self.classes}

    def familiar(self, outputs: Outputs, strangest: int) -> list[bool]:
        """Return whether each of B images is of the model's classes. strangest: as from
        `Familiarity.strangest`. Raises UserError if the graph gives no distances."""
        table, distances = outputs.probabilities, outputs.distances
        if distances is None:
            raise UserError("the graph gives no distances of images: export the run again")
        found: np.ndarray = self.familiarity.familiar(table, distances, strangest, self.classes)
        answers: list[bool] = found.tolist()
        return answers


def damaged(place: Path, error: Exception) -> UserError:
    """Return what to raise for a file or folder that cannot be read."""
    reason = " ".join(str(error).split())[:200]
    return UserError(f"{place}: damaged ({type(error).__name__}: {reason})")


def calibration_of(folder: Path, classes: int) -> Calibration | None:
    """Read what a model's probabilities were worth on held-out images, if the folder says so.

    classes: of the model. Raises UserError for a file that `export` did not write.
    """
    found = _read(folder / CALIBRATION, Calibration.from_json)
    if found and found.known > classes:
        raise damaged(folder / CALIBRATION, ValueError(MORE))
    return found


def familiar_of(folder: Path, classes: int) -> Familiar | None:
    """Read what tells images of a model's classes from others, if the folder says so.

    classes: of the model. Raises UserError for a file that `export` did not write.
    """
    found = _read(folder / FAMILIARITY, Familiar.from_json)
    if found and found.classes > classes:
        raise damaged(folder / FAMILIARITY, ValueError(MORE))
    return found


def parents_in(folder: Path, labels: Sequence[str]) -> dict[str, str]:
    """Read which parent labels and parents have, if the folder says so.

    labels: of the model. Raises UserError for a file that `export` did not write.
    """

    def parse(values: object) -> dict[str, str]:
        if not isinstance(values, dict) or not all(isinstance(one, str) for one in values.values()):
            raise ValueError("not a parent for each name")
        Taxonomy.of(values, labels)
        return values

    return _read(folder / TAXONOMY, parse, MOST_PARENTS) or {}


def in_8_bits(folder: Path) -> bool:
    """Return whether a model's weights were put into 8 bits, after its promises were measured.
    Raises UserError for a damaged export.json."""
    file = folder / FACTS
    facts = read_json(file, MOST_BYTES) if file.is_file() else None
    return isinstance(facts, dict) and facts.get("precision") == "int8"


def _read(file: Path, parse: Callable[[object], T], most: int = MOST_BYTES) -> T | None:
    """Read a file if there is one. Raises UserError for one that cannot be parsed."""
    if not os.path.lexists(file):
        return None
    values = read_json(file, most)
    try:
        return parse(values)
    except ValueError as error:
        raise damaged(file, error) from None
