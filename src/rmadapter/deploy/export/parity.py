"""Compare the exported model with the fitted one on the same images: their answers must agree."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rmadapter.artifacts.checkpoint import Saved
from rmadapter.artifacts.record import read_record
from rmadapter.artifacts.run_folder import RunFolder
from rmadapter.data.decode import image_error
from rmadapter.data.fewshot import read_split
from rmadapter.data.formats.base import Source
from rmadapter.data.formats.registry import open_source
from rmadapter.data.image_set import relative
from rmadapter.data.names import key
from rmadapter.data.read import ImageSource
from rmadapter.data.transforms import decode_batches
from rmadapter.deploy.export.graph import Answers
from rmadapter.deploy.export.runtime import BATCH, Model
from rmadapter.errors import UserError
from rmadapter.metrics import accuracy
from rmadapter.support.files import user_path

GENERATED = 64  # images
HEADER = ["images", "n", "same %", "differs", "accuracy", "exported"]


@dataclass(frozen=True)
class Limit:
    """How much an exported model may differ: share of other answers, probability, points of
    accuracy lost."""

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
    """Images to compare on. labels: indices into the model's labels, empty if unknown. title: for
    tables."""

    title: str
    images: Sequence[ImageSource]
    labels: Sequence[int] = ()


@dataclass(frozen=True)
class Parity:
    """same: share of equal answers. difference: largest difference of a probability. before, after:
    accuracy in percent of the fitted and of the exported model, if labels are known. features:
    largest difference of a feature value, if features are exported. added: largest difference of a
    probability with a class added by name."""

    title: str
    images: int
    same: float
    difference: float
    before: float | None = None
    after: float | None = None
    features: float | None = None
    added: float | None = None

    def fault(self, limit: Limit) -> str:
        """What exceeds a limit, or ""."""
        if not 1 - self.same <= limit.others:  # not `>`, as every comparison with NaN is false
            return f"{100 * (1 - self.same):.1f} % of its answers differ"
        if not self.difference <= limit.difference:
            return f"a probability differs by {self.difference:.1g}, more than the {limit.difference:g} allowed"
        if self.features is not None and not self.features <= limit.difference:
            return f"a feature value differs by {self.features:.1g}, more than the {limit.difference:g} allowed"
        if self.added is not None and not self.added <= limit.difference:
            return (
                f"with one more class a probability differs by {self.added:.1g}, "
                f"more than the {limit.difference:g} allowed"
            )
        if (
            self.before is not None
            and self.after is not None
            and not self.before - self.after <= limit.loss
        ):
            lost, allowed = self.before - self.after, limit.loss
            return f"it loses {lost:.1f} points of accuracy ({self.before:.1f} % before), more than the {allowed} allowed"
        return ""

    def row(self) -> list[str]:
        rates = ["-" if rate is None else f"{rate:.1f}" for rate in (self.before, self.after)]
        return [
            self.title,
            str(self.images),
            f"{100 * self.same:.1f}",
            f"{self.difference:.1e}",
            *rates,
        ]

    def json(self) -> dict[str, Any]:
        return asdict(self)


def fitted_table(saved: Saved, images: Sequence[ImageSource]) -> np.ndarray:
    """Probabilities [N, C] as `predict` gives them."""
    return np.concatenate(
        [part.numpy() for part in saved.fitted.probabilities(images, saved.names)]
    )


@torch.no_grad()
def embedded(saved: Saved, images: Sequence[ImageSource]) -> np.ndarray:
    """Features [N, e] of the fitted model, as `Answers` gives them."""
    module = Answers(saved.fitted, saved.names, embeddings=True)
    stream = decode_batches(images, saved.fitted.backbone.preprocess, BATCH)
    return np.concatenate([module(pixels)[1].cpu().numpy() for _, pixels in stream])


def exported_table(model: Model, images: Sequence[ImageSource]) -> np.ndarray:
    """Probabilities [N, C] of an exported model."""
    return np.concatenate([table for _, table in model.answers(images)])


def measure(asked: Questions, before: np.ndarray, after: np.ndarray) -> Parity:
    """Compare probabilities [N, C] of the fitted and of the exported model."""
    same = before.argmax(-1) == after.argmax(-1)
    found = Parity(
        asked.title, len(before), float(same.mean()), float(np.abs(before - after).max())
    )
    if not len(asked.labels):
        return found
    return replace(
        found, before=accuracy(before, asked.labels), after=accuracy(after, asked.labels)
    )


def compare(
    saved: Saved, model: Model, asked: Questions, embeddings: bool = False, text: bool = False
) -> Parity:
    """Compare a fitted and an exported model. embeddings: their features, too. text, only with
    embeddings: also with a class that is added to the exported model."""
    found = measure(asked, fitted_table(saved, asked.images), exported_table(model, asked.images))
    if not embeddings:
        return found
    found = replace(
        found,
        features=float(np.abs(embedded(saved, asked.images) - model.embed(asked.images)).max()),
    )
    if not text:
        return found
    name = next(
        name
        for name in ("sundial", "quince", "yurt")
        if name not in {key(str(each)) for each in saved.labels}
    )
    model.add_class(name)
    wanted = fitted_table(saved._replace(names=(*saved.names, name)), asked.images)
    return replace(found, added=float(np.abs(wanted - exported_table(model, asked.images)).max()))


# Images to compare on


def questions(run: Path, saved: Saved, data: Path | None, outside: bool, most: int) -> Questions:
    """At most `most` images: of `data` if given, else of the run's own data, if still there, else
    generated ones. The test split if there is one; of its own data, in any case none that the run
    drew for training or validation.

    Raises UserError for data without images of the model's classes.
    """
    if data is not None:
        home = user_path(data)
        return _of(
            home,
            open_source(data, outside),
            saved,
            _seen(run) if _is_own(run, home) else None,
            most,
        )
    with suppress(UserError):  # moved, changed, or all of it was trained on
        return _of(*_opened(run), saved, _seen(run), most)
    return Questions("generated", generated(GENERATED))


def training(run: Path) -> Sequence[ImageSource]:
    """At most 256 images that the run was trained on, if still there, else generated ones."""
    with suppress(UserError):
        root, names = _opened(run)[1].root, sorted(_drawn(run))
        random.Random(0).shuffle(names)
        if found := [root / name for name in names[:256] if not image_error(root / name)]:
            return found
    return generated(GENERATED)


def _is_own(run: Path, data: Path) -> bool:
    with suppress(UserError, OSError):
        return user_path(read_record(RunFolder(run).record).task.data).samefile(data)
    return False


def _opened(run: Path) -> tuple[Path, Source]:
    """The run's own data. Raises UserError if it is unknown or missing."""
    if not RunFolder(run).weights.is_file():
        raise UserError(f"{run}: not a run of this version")
    record = read_record(RunFolder(run).record)
    home = user_path(record.task.data)
    return home, open_source(home, True, record.columns, record.crops)


def _drawn(run: Path) -> set[str]:
    return {name for name, _, _ in read_split(RunFolder(run).split).train}


def _seen(run: Path) -> set[str]:
    """With the validation images, by which methods choose settings."""
    return _drawn(run) | {name for name, _, _ in read_split(RunFolder(run).split).val or ()}


def _of(data: Path, source: Source, saved: Saved, drawn: set[str] | None, most: int) -> Questions:
    """drawn: names of those images that the run drew; None for data that is not its own."""
    root, there = source[:2]
    rows = there.get("test") or [
        row
        for part in there.values()
        for row in part
        if relative(row.image, root) not in (drawn or ())
    ]
    places = {key(str(label)): i for i, label in enumerate(saved.labels)}
    known = [row for row in rows if key(row.label) in places]
    random.Random(0).shuffle(known)
    good = [row for row in known[:most] if not image_error(row.image)]
    if not good:
        but = "" if drawn is None else " that `fit` did not draw"
        raise UserError(f"{data}: no readable image of the model's classes{but}")
    kind = "test " if there.get("test") else "" if drawn is None else "held out "
    title = f"{kind}images of {data.name}"
    return Questions(title, [row.image for row in good], [places[key(row.label)] for row in good])


def generated(count: int) -> list[np.ndarray]:
    """Images [H, W, 3] of coloured blocks, in many shapes, always the same ones."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        rows, columns, grain = rng.integers(2, 9), rng.integers(2, 9), rng.integers(8, 60)
        blots = rng.integers(0, 256, (rows, columns, 3), np.uint8)
        found.append(blots.repeat(grain, 0).repeat(grain, 1))
    return found
