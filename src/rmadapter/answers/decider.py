"""Decide from probabilities and distances what is answered for images: which classes may be right,
whether they are of the model's classes at all, and which parent answers.

Every route from an image to an answer calls this. NumPy only, since exports hold this file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict, TypeVar

import numpy as np

from rmadapter.answers.answer import Answer, Levels
from rmadapter.answers.held_out import HeldOutFacts
from rmadapter.answers.rejection import RejectionScore
from rmadapter.answers.sets import Calibration, in_sets
from rmadapter.answers.taxonomy import Taxonomy
from rmadapter.errors import UserError, damaged
from rmadapter.support.files import read_json, write_json

CALIBRATION, FAMILIARITY = "calibration.json", "familiarity.json"
TAXONOMY = "taxonomy.json"
MAX_BYTES = 2**20  # of such a file
MAX_TAXONOMY_BYTES = 2**24  # names may be many
ROUNDING = 1e-3  # by which a probability may lie outside 0 to 1
MORE_CLASSES = "no classes, or more than the model has"
Parsed = TypeVar("Parsed")


class Possible(TypedDict):
    """Which of 1, 5 and 10 % can be promised as errors and as shares to reject, and by which
    images; and which errors were promised and not kept on the images that judged the model."""

    calibration: HeldOutFacts | None
    errors: list[float]
    broken: list[float]
    familiarity: HeldOutFacts | None
    shares: list[float]


class Decider:
    """What decides about a model's answers.

    Args:
        labels: The C classes to choose from. Those that were added by name are the last.
        known: Number of classes that the model was fitted to.
        calibration: What its probabilities were worth on held-out images, if known.
        rejection: What tells images of other classes, if known.
        tree: Taxonomy of the labels, if they have parents.
        error: Share of images whose prediction sets may miss the right class; None for no sets.
        reject_rate: Share of images of the model's classes that may be called none of these; None
            to call none so.

    Raises:
        UserError: The error or the share cannot be promised.
    """

    def __init__(
        self,
        labels: Sequence[str],
        known: int,
        calibration: Calibration | None = None,
        rejection: RejectionScore | None = None,
        tree: Taxonomy | None = None,
        error: float | None = None,
        reject_rate: float | None = None,
    ) -> None:
        if error is not None and calibration is None:
            raise UserError(
                "no error can be promised, as this model has no answers on images that it was not "
                "fitted to: fit again with --folds 4, or in Python call `calibrate`"
            )
        if reject_rate is not None and rejection is None:
            raise UserError(
                "this model cannot tell that an image is none of its classes, as it has no "
                "features of images that it was not fitted to: fit again with --folds 4, or with "
                "another method"
            )
        self.labels, self.known, self.tree = tuple(labels), known, tree
        self.calibration, self.rejection = calibration, rejection
        self.error, self.reject_rate = error, reject_rate
        self.limits: np.ndarray | None = None
        if calibration and error is not None:
            self.limits = calibration.limits(error, len(labels))
        if rejection and reject_rate is not None:
            rejection.rank(reject_rate)  # raises where the images are too few

    @property
    def names(self) -> tuple[str, ...]:
        """All labels and parents that may be answered."""
        return (*self.labels, *(self.tree.nodes if self.tree else ()))

    def at(self, error: float | None = None, reject_rate: float | None = None) -> Decider:
        """Return one that promises these shares. Raises UserError as the class."""
        parts = self.calibration, self.rejection, self.tree
        return Decider(self.labels, self.known, *parts, error, reject_rate)

    def with_label(self, label: str) -> Decider:
        """Return one for one more class, which was added by name. Raises UserError as
        `Taxonomy.of`."""
        tree = self.tree.with_label(label) if self.tree else None
        parts = self.calibration, self.rejection, tree
        return Decider((*self.labels, label), self.known, *parts, self.error, self.reject_rate)

    def sets(self, probabilities: np.ndarray) -> np.ndarray:
        """Return which classes are in the prediction set of each image, [B, C] bool; none if no
        error is promised.

        Args:
            probabilities: [B, C].

        Raises:
            UserError: As `check_outputs`.
        """
        check_outputs(probabilities)
        if self.limits is None:
            return np.zeros(probabilities.shape, bool)
        return in_sets(probabilities, self.limits)

    def familiar(self, probabilities: np.ndarray, distances: np.ndarray | None) -> np.ndarray:
        """Return whether each image is of the classes that the model was fitted to, or else most
        probably of one that was added by name, [B] bool; all are if none is to be rejected.

        Args:
            probabilities: Table [B, C].
            distances: Distances [B] from the nearest class mean.

        Raises:
            UserError: There are no distances, or as `check_outputs`.
        """
        if self.rejection is None or not self.reject_rate:
            return np.ones(len(probabilities), bool)
        if distances is None:
            raise UserError("the graph gives no distances of images: export the run again")
        check_outputs(probabilities, distances)
        accepted = self.rejection.accepts(probabilities, distances, self.reject_rate)
        familiar: np.ndarray = accepted | (probabilities.argmax(1) >= self.known)
        return familiar

    def answer(
        self, probabilities: np.ndarray, distances: np.ndarray | None = None, top: int = 5
    ) -> list[Answer]:
        """Return the answer for each image, without its path.

        Args:
            probabilities: Table [B, C].
            distances: As for `familiar`.
            top: Number of most probable classes that an answer has.

        Raises:
            UserError: As `familiar`.
        """
        none = [None] * len(probabilities)
        order = np.argsort(-probabilities, axis=1, kind="stable")
        sets = self.sets(probabilities)
        members = [row[own[row]].tolist() for row, own in zip(order, sets, strict=True)]
        levels: Sequence[Levels | None] = none
        if self.tree:
            levels = Levels.of(self.tree, probabilities, members)
        familiar: Sequence[bool | None] = none
        if self.reject_rate:
            familiar = self.familiar(probabilities, distances).tolist()
        return [
            Answer(
                tuple((self.labels[i], round(float(row[i]), 6)) for i in places[:top]),
                labels=tuple(self.labels[i] for i in own),
                familiar=is_familiar,
                levels=groups,
            )
            for row, places, own, is_familiar, groups in zip(
                probabilities, order, members, familiar, levels, strict=True
            )
        ]

    def columns(self, top: int, others: Sequence[str] = (), unsure: bool = False) -> list[str]:
        """Return the columns of a table of its answers, as in `Answer.row`.

        Args:
            top: Number of most probable classes that an answer has.
            others: Names of further columns, which are the last.
            unsure: Whether a probability is given that answers must reach.
        """
        names = ["image", "label", "probability", "guess"]
        for place in range(2, top + 1):
            names += [f"label_{place}", f"probability_{place}"]
        names.append("unsure")
        if self.tree:
            names.append("level")
            for level in self.tree.level_names:
                names += [level, f"probability_{level}"]
        if self.error:
            names.append("set")
        if self.reject_rate:
            names.append("familiar")
        if self.error or self.reject_rate or unsure:
            names.append("decision")
        return [*names, *others]

    def promises(self) -> list[str]:
        """Return sentences that say what is promised, and by which images."""
        texts = []
        if self.calibration and self.error:
            texts.append(self.calibration.promise(self.error))
            texts += self.calibration.details(self.error, len(self.labels))
        if self.rejection and self.reject_rate:
            texts.append(self.rejection.promise(self.reject_rate))
        return texts

    def possible(self) -> Possible:
        """Return what can be promised."""
        calibration, rejection = self.calibration, self.rejection
        errors: list[float] = []
        if calibration:
            errors = [error for error in calibration.possible() if not calibration.doubt(error)]
        return {
            "calibration": calibration.facts if calibration else None,
            "errors": errors,
            "broken": [*calibration.broken] if calibration else [],
            "familiarity": rejection.facts if rejection else None,
            "shares": rejection.possible() if rejection else [],
        }

    def facts(self) -> list[object]:
        """Return all that its answers depend on besides probabilities and distances, as JSON has
        it."""
        limits = None if self.limits is None else self.limits.tolist()
        rejection = self.rejection.json() if self.rejection and self.reject_rate else None
        paths = self.tree.paths if self.tree else None
        return [self.labels, self.known, limits, self.reject_rate, rejection, paths]


def check_outputs(
    probabilities: np.ndarray, distances: np.ndarray | None = None, where: str = ""
) -> None:
    """Raise UserError if a model's numbers are no answers: a probability outside 0 to 1, or NaN,
    which would be the only class of its set; a distance that is not finite.

    Args:
        probabilities: Table [B, C].
        distances: Distances [B], if there are any.
        where: Prefix of the message, which names the model.
    """
    inside = (probabilities >= -ROUNDING) & (probabilities <= 1 + ROUNDING)
    if not inside.all() or not (distances is None or np.isfinite(distances).all()):
        raise UserError(
            f"{where}answers with numbers that are no probabilities, such as NaN: fit or export "
            "the model again"
        )


def write_decider(folder: Path, decider: Decider) -> None:
    """Write the files of an export by which answers are decided."""
    if decider.calibration:
        write_json(folder / CALIBRATION, decider.calibration.json())
    if decider.rejection:
        write_json(folder / FAMILIARITY, {**decider.rejection.json(), "known": decider.known})
    if decider.tree:
        write_json(folder / TAXONOMY, decider.tree.parents)


def read_decider(folder: Path, labels: Sequence[str]) -> Decider:
    """Read what `write_decider` wrote; the files may come from a stranger.

    Args:
        folder: The folder of an export.
        labels: Labels of the model.

    Raises:
        UserError: A file was not written by `write_decider`, or for other labels.
    """
    calibration = _read(folder / CALIBRATION, Calibration.from_json)
    if calibration and calibration.known > len(labels):
        raise damaged(folder / CALIBRATION, ValueError(MORE_CLASSES))
    rejection, known = _read(folder / FAMILIARITY, _rejection) or (None, len(labels))
    if not 0 < known <= len(labels):
        raise damaged(folder / FAMILIARITY, ValueError(MORE_CLASSES))
    if calibration and not rejection:
        known = calibration.known
    tree = _read(
        folder / TAXONOMY,
        lambda values: Taxonomy.if_any(_parents(values), labels),
        MAX_TAXONOMY_BYTES,
    )
    return Decider(labels, known, calibration, rejection, tree)


def _rejection(values: object) -> tuple[RejectionScore, int]:
    """Parse a rejection score, and the number of classes that the model was fitted to."""
    if not isinstance(values, dict) or type(values.get("known")) is not int:
        raise ValueError("no number of classes")
    others = {name: value for name, value in values.items() if name != "known"}
    return RejectionScore.from_json(others), values["known"]


def _parents(values: object) -> dict[str, str]:
    """Parse the parents of a taxonomy."""
    if not isinstance(values, dict) or not all(isinstance(one, str) for one in values.values()):
        raise ValueError("not a parent for each name")
    return values


def _read(file: Path, parse: Callable[[object], Parsed], most: int = MAX_BYTES) -> Parsed | None:
    """Read a file if there is one. Raises UserError for one that cannot be parsed."""
    if not os.path.lexists(file):
        return None
    values = read_json(file, most)
    try:
        return parse(values)
    except ValueError as error:
        raise damaged(file, error) from None
