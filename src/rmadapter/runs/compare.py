"""Runs on one test set, image by image: they differ by the images that only one of them classifies
correctly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rmadapter.artifacts.checkpoint import Saved
from rmadapter.data.names import nfc
from rmadapter.data.read import ImageSet
from rmadapter.errors import UserError
from rmadapter.metrics import paired
from rmadapter.runs.evaluate import evaluate
from rmadapter.task import Question
from rmadapter.training.cache import Cache
from rmadapter.training.contract import NotApplicable


@dataclass(frozen=True)
class Line:
    """Rates in percent. difference: to the first run, with the ends of its 95 % interval and
    McNemar's p value; None for the first run itself."""

    run: str
    method: str
    accuracy: float
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None

    def row(self) -> list[str]:
        cells = [self.run, self.method, f"{self.accuracy:.1f}"]
        if self.difference is None:
            return [*cells, "", "", ""]
        return [
            *cells,
            f"{self.difference:+.1f}",
            f"{self.low:+.1f} to {self.high:+.1f}",
            f"{self.p:.2g}",
        ]

    def json(self) -> dict[str, Any]:
        return asdict(self)


def compare(runs: Sequence[tuple[Path, Saved]], images: ImageSet) -> list[Line]:
    """One line per run; each uses the class names that it was trained with. Raises UserError if
    there are no images, and for a method that cannot answer for a class of the data."""
    if not len(images):
        raise UserError("there are no images to compare on")
    lines: list[Line] = []
    first: np.ndarray | None = None
    for folder, saved in runs:
        names = (
            saved.custom_names.get(nfc(str(label)), name)
            for label, name in zip(images.written, images.classes, strict=True)
        )
        asked, cache = (
            replace(images, classes=tuple(names)),
            Cache(saved.fitted.backbone, hold=False),
        )
        try:
            [found], _ = evaluate(saved.fitted, [(Question("all"), asked, "test")], cache)
        except NotApplicable as error:
            raise UserError(f"{folder}: {error}") from None
        right = found.probabilities.argmax(1) == found.labels
        more = () if first is None else paired(first, right)
        lines.append(Line(str(folder), saved.fitted.method.title, 100 * float(right.mean()), *more))
        first = right if first is None else first
    return lines
