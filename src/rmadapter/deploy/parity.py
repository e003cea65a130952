"""The exported model asked about the same images as the fitted one, which it must answer alike."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rmadapter.checkpoint import RECORD, WEIGHTS, Saved
from rmadapter.data.fewshot import read_split
from rmadapter.data.images import ImageSource
from rmadapter.data.names import key
from rmadapter.data.pixels import complaint
from rmadapter.data.scan import scan
from rmadapter.deploy.runtime import Model
from rmadapter.errors import UserError
from rmadapter.files import user_path
from rmadapter.metrics import accuracy
from rmadapter.record import read_record

GENERATED = 64  # images
HEADER = ["images", "n", "same answers in %", "largest difference", "accuracy before", "accuracy exported"]


@dataclass(frozen=True)
class Limit:
    """What an exported model may differ by: share of other answers, probability, points of accuracy."""

    others: float = 1.0
    difference: float = 1.0
    loss: float = 100.0


LIMITS = {
    "fp32": Limit(0.0, 1e-4),
    "fp16": Limit(difference=1e-2),
    "bf16": Limit(difference=1e-2),
    "int8": Limit(loss=0.5),
}


@dataclass(frozen=True)
class Questions:
    """Images to ask about. labels: indices into the model's, or nothing where nobody knows them. title: for tables."""

    title: str
    images: Sequence[ImageSource]
    labels: Sequence[int] = ()


@dataclass(frozen=True)
class Parity:
    """same: share of equal answers. difference: the largest one between two probabilities. before, after: accuracies
    in percent of the fitted and of the exported model, where labels are known."""

    title: str
    images: int
    same: float
    difference: float
    before: float | None = None
    after: float | None = None

    def fault(self, limit: Limit) -> str:
        """What is beyond a limit, or ""."""
        if not 1 - self.same <= limit.others:  # as a comparison with what is not a number fails
            return f"{100 * (1 - self.same):.1f} % of its answers are others"
        if not self.difference <= limit.difference:
            return f"a probability differs by {self.difference:.1g}, and {limit.difference:g} is allowed"
        if self.before is not None and self.after is not None and not self.before - self.after <= limit.loss:
            lost, allowed = self.before - self.after, limit.loss
            return f"it loses {lost:.1f} points of accuracy ({self.before:.1f} % before), and {allowed} is allowed"
        return ""

    def row(self) -> list[str]:
        rates = ["-" if rate is None else f"{rate:.1f}" for rate in (self.before, self.after)]
        return [self.title, str(self.images), f"{100 * self.same:.1f}", f"{self.difference:.1e}", *rates]

    def json(self) -> dict[str, Any]:
        return asdict(self)


def fitted_table(saved: Saved, images: Sequence[ImageSource]) -> np.ndarray:
    """Probabilities [N, C] as `predict` gives them."""
    return np.concatenate([part.numpy() for part in saved.fitted.probabilities(images, saved.names)])


def exported_table(model: Model, images: Sequence[ImageSource]) -> np.ndarray:
    """The same of an exported model."""
    return np.concatenate([table for _, table in model.answers(images)])


def measure(asked: Questions, before: np.ndarray, after: np.ndarray) -> Parity:
    """before, after: [N, C]."""
    same = before.argmax(-1) == after.argmax(-1)
    found = Parity(asked.title, len(before), float(same.mean()), float(np.abs(before - after).max()))
    if not len(asked.labels):
        return found
    return replace(found, before=accuracy(before, asked.labels), after=accuracy(after, asked.labels))


# What to ask about


def questions(run: Path, saved: Saved, data: Path | None, outside: bool, most: int) -> Questions:
    """Images that the run was not trained on, at most so many: of `data`, else of the run's own data where that is
    still there, else generated ones.

    Raises UserError for data that has no image of the model's classes.
    """
    if data is not None:
        return _of(user_path(data), saved, set(), outside, most)
    with suppress(UserError):  # moved, changed, or all of it was trained on
        return _of(_home(run), saved, _drawn(run), True, most)
    return Questions("generated", generated(GENERATED))


def training(run: Path, most: int = 256) -> Sequence[ImageSource]:
    """Images that the run was trained on, at most so many, where they are still there, else generated ones."""
    with suppress(UserError):
        home, names = _home(run), sorted(_drawn(run))
        random.Random(0).shuffle(names)
        root = home.parent if home.is_file() else home
        if found := [root / name for name in names[:most] if not complaint(root / name)]:
            return found
    return generated(GENERATED)


def _home(run: Path) -> Path:
    """Of the run's images. Raises UserError where nothing says it."""
    if not (run / WEIGHTS).is_file():
        raise UserError(f"{run}: not a run of this version")
    return user_path(read_record(run / RECORD).task.data)


def _drawn(run: Path) -> set[str]:
    return {name for name, _, _ in read_split(run / "split.json").train}


def _of(data: Path, saved: Saved, drawn: set[str], outside: bool, most: int) -> Questions:
    if not data.exists():
        raise UserError(f"{data}: neither a folder of class folders nor a CSV file of path,label[,split]")
    there = scan(data, outside)
    root = data.parent if data.is_file() else data
    rows = there.get("test") or [row for part in there.values() for row in part if _name(row.image, root) not in drawn]
    places = {key(str(label)): i for i, label in enumerate(saved.labels)}
    known = [row for row in rows if key(row.label) in places]
    random.Random(0).shuffle(known)
    good = [row for row in known[:most] if not complaint(row.image)]
    if not good:
        raise UserError(f"{data}: holds no readable image of the model's classes that it was not trained on")
    title = f"{'test' if 'test' in there else 'held out'} images of {data.name}"
    return Questions(title, [row.image for row in good], [places[key(row.label)] for row in good])


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def generated(count: int) -> list[np.ndarray]:
    """Blots of colour [H, W, 3] of many shapes, always the same ones."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        rows, columns, grain = rng.integers(2, 9), rng.integers(2, 9), rng.integers(8, 60)
        blots = rng.integers(0, 256, (rows, columns, 3), np.uint8)
        found.append(blots.repeat(grain, 0).repeat(grain, 1))
    return found
