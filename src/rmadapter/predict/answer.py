"""The answer for one image, and the columns of a table of answers; exports use both without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

UNSURE = "unsure"
LAST = (
    "unfamiliar",
    "zero_shot_label",
    "sorted_to",
    "error",
)  # optional columns of a file of answers


@dataclass(frozen=True)
class Answer:
    """best: labels and probabilities, the most probable first. zero_shot: the untouched backbone's
    label, if requested. unfamiliar: as from `Fitted.unfamiliar`, if requested."""

    image: Path
    best: tuple[tuple[str, float], ...]
    zero_shot: str = ""
    unfamiliar: float | None = None

    def row(self, unsure: float = 0.0) -> dict[str, Any]:
        """A row of a table. unsure: probability below which the label is "unsure"; the guess is
        kept."""
        (guess, probability), *others = self.best
        doubt = probability < unsure
        row = {
            "image": str(self.image),
            "label": UNSURE if doubt else guess,
            "probability": probability,
            "guess": guess,
        }
        for place, (label, share) in enumerate(others, 2):
            row |= {f"label_{place}": label, f"probability_{place}": share}
        return {
            **row,
            "unsure": doubt,
            "unfamiliar": self.unfamiliar,
            "zero_shot_label": self.zero_shot,
        }


def best(labels: Sequence[str], probabilities: np.ndarray, top: int) -> list[tuple[str, float]]:
    """The `top` labels and probabilities of one image, the most probable first. probabilities: [C]."""
    order = np.argsort(-probabilities, kind="stable")[:top]
    return [(labels[i], round(float(probabilities[i]), 6)) for i in order]


def columns(
    top: int,
    sort: bool = False,
    zero_shot: bool = True,
    unfamiliar: bool = False,
    error: bool = False,
) -> list[str]:
    """Columns of a file with `top` answers per image. sort: with the image's new place. zero_shot:
    with the untouched answer. unfamiliar: with how unlike the training images it is. error: with
    what is wrong with a bad image."""
    more = [f"{what}_{place}" for place in range(2, top + 1) for what in ("label", "probability")]
    last = [
        name
        for name, there in zip(LAST, (unfamiliar, zero_shot, sort, error), strict=True)
        if there
    ]
    return ["image", "label", "probability", "guess", *more, "unsure", *last]
