"""Compare runs on one test set by the images that only one of two runs classifies correctly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from rmadapter.artifacts.checkpoint import Saved
from rmadapter.data.names import nfc
from rmadapter.data.read import ImageSet
from rmadapter.errors import UserError
from rmadapter.metrics import paired
from rmadapter.runs.evaluate import evaluate
from rmadapter.runs.lab import Sets
from rmadapter.task import Question
from rmadapter.training.cache import Cache
from rmadapter.training.contract import NotApplicable


@dataclass(frozen=True)
class Line:
    """One run's accuracy in percent.

    difference: to the first run, in points, with the ends of its 95 % interval and McNemar's p
    value; None for the first run itself.
    """

    run: str
    method: str
    accuracy: float
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None

    def row(self) -> list[str]:
        """Return the cells of a table's row."""
        cells = [self.run, self.method, f"{self.accuracy:.1f}"]
        if self.difference is None:
            return [*cells, "", "", ""]
        interval = f"{self.low:+.1f} to {self.high:+.1f}"
        return [*cells, f"{self.difference:+.1f}", interval, f"{self.p:.2g}"]

    def json(self) -> dict[str, object]:
        """Return the fields by name."""
        return asdict(self)


def compare(runs: Sequence[tuple[Path, Saved]], images: ImageSet) -> list[Line]:
    """Return one line per run; each run uses the class names that it was trained with.

    Raises UserError if there are no images, and for a method that cannot score a class of the data.
    """
    if not len(images):
        raise UserError("there are no images to compare on")
    lines: list[Line] = []
    first: np.ndarray | None = None
    for folder, saved in runs:
        labels = [nfc(str(label)) for label in images.written]
        pairs = zip(labels, images.classes, strict=True)
        names = tuple(saved.custom_names.get(label, name) for label, name in pairs)
        cache = Cache(saved.fitted.backbone, hold=False)
        sets: Sets = [(Question("all"), replace(images, classes=names), "test")]
        try:
            [evaluation], _ = evaluate(saved.fitted, sets, cache)
        except NotApplicable as error:
            raise UserError(f"{folder}: {error}") from None
        right = evaluation.probabilities.argmax(1) == evaluation.labels
        comparison = () if first is None else paired(first, right)
        accuracy = 100 * float(right.mean())
        lines.append(Line(str(folder), saved.fitted.method.title, accuracy, *comparison))
        first = right if first is None else first
    return lines
