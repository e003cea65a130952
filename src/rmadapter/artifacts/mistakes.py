"""Nearest training images, by the untouched features that a fitted model keeps of them; for the
mistakes of a run they are saved in its why.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, TypeAdapter, ValidationError
from torch import Tensor

from rmadapter.artifacts.predictions import Evaluation, Predictions, source_of, spelled
from rmadapter.data.names import Label
from rmadapter.data.read import ImageSet, ImageSource
from rmadapter.errors import UserError, first_fault
from rmadapter.support.files import read_json, write_json
from rmadapter.training.cache import Cache
from rmadapter.training.contract import MOST_EXAMPLES, Fitted

WHY = "why.json"
WRONG, SHOWN = 6, 5  # mistakes, and neighbours of each
CHUNK = 2048  # images compared at once

Item = TypeVar("Item")


class Neighbour(NamedTuple):
    """A nearby image.

    image: its name, as in split.json. source: the image itself; None if its path leads out of the
    data. similarity: cosine of untouched features; 1 means identical.
    """

    image: str
    source: ImageSource | None
    label: Label
    similarity: float

    def json(self) -> dict[str, str | int | float]:
        return {"image": self.image, "label": self.label, "similarity": self.similarity}


class Nearest(NamedTuple):
    """Rows [B, k] of the nearest images, nearest first, and their cosines [B, k]; -inf for none."""

    rows: np.ndarray
    cosines: np.ndarray


class Mistake(NamedTuple):
    """image: from the first test set, as in predictions.csv. neighbours: nearest first."""

    image: str
    neighbours: tuple[Neighbour, ...]


def kept(images: Sequence[Item]) -> Sequence[Item]:
    """Those of a model's training images whose features `Fitted.examples` keeps, in order."""
    return images[:: max(-(-len(images) // MOST_EXAMPLES), 1)]


def nearest(
    features: np.ndarray,
    examples: np.ndarray | None = None,
    count: int = SHOWN,
    groups: np.ndarray | None = None,
) -> Nearest:
    """Find the examples with the highest cosine to each feature vector.

    features: [B, e], of any length. examples: [N, e], of unit length; by default the features
    themselves. groups: [B] numbers; an image is no neighbour of an image with the same number, such
    as itself and its copies. Of equal cosines the first example comes first.
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    others = unit if examples is None else examples
    count = min(count, len(others))
    rows, cosines = [], []
    for start in range(0, len(unit), CHUNK):
        part = unit[start : start + CHUNK] @ others.T
        if groups is not None:
            part[groups[start : start + CHUNK, None] == groups[None]] = -np.inf
        # topk is many times faster than sorting or NumPy's partition
        best = np.sort(torch.from_numpy(part).topk(count).indices.numpy(), axis=1)
        order = np.argsort(-np.take_along_axis(part, best, 1), axis=1, kind="stable")
        rows.append(np.take_along_axis(best, order, 1))
        cosines.append(np.take_along_axis(part, rows[-1], 1))
    if not rows:
        return Nearest(np.empty((0, count), int), np.empty((0, count)))
    return Nearest(np.concatenate(rows), np.concatenate(cosines))


def nearest_examples(fitted: Fitted, features: Tensor, count: int = SHOWN) -> Nearest:
    """Find the training images nearest to features [B, e]; none if the model keeps no examples."""
    if fitted.examples is None:
        return Nearest(np.empty((len(features), 0), int), np.empty((len(features), 0)))
    return nearest(features.float().cpu().numpy(), fitted.examples.float().cpu().numpy(), count)


def mistakes(
    fitted: Fitted,
    train: ImageSet,
    evaluations: Sequence[Evaluation],
    tested: Sequence[Predictions],
    cache: Cache,
) -> list[Mistake]:
    """At most WRONG images of the first test set that the model gets wrong, the most confident
    answers first, each with its nearest training images.

    train: what the model was fitted to. tested: the answers of the evaluations. A tested image that
    is also a training image, as in cross-validation, is not its own neighbour.
    """
    if not tested:
        return []
    images, found = evaluations[0].images, tested[0]
    wrong = np.flatnonzero(found.answer.which != found.true)
    rows = wrong[np.argsort(-found.answer.probability[wrong], kind="stable")][:WRONG].tolist()
    if not rows:
        return []
    known = kept(range(len(train)))
    result = list[Mistake]()
    near = nearest_examples(fitted, cache.features(images.subset(rows))[0], SHOWN + 1)
    for row, places, cosines in zip(rows, near.rows, near.cosines.tolist(), strict=True):
        others = [(known[place], cosine) for place, cosine in zip(places, cosines, strict=True)]
        others = [pair for pair in others if train.images[pair[0]] is not images.images[row]]
        neighbours = tuple(
            Neighbour(
                train.name(i),
                train.images[i],
                str(train.written[train.labels[i]]),
                round(cosine, 4),
            )
            for i, cosine in others[:SHOWN]
        )
        result.append(Mistake(found.images[row], neighbours))
    return result


def write_mistakes(path: Path, found: Sequence[Mistake]) -> None:
    """As JSON, atomically."""
    rows = [
        {"image": one.image, "neighbours": [near.json() for near in one.neighbours]}
        for one in found
    ]
    write_json(path, rows)


class _Near(BaseModel):
    image: str
    label: str
    similarity: float


class _Wrong(BaseModel):
    image: str
    neighbours: list[_Near]


def read_mistakes(path: Path, found: Predictions, root: Path) -> list[Mistake]:
    """Read what `write_mistakes` wrote; empty if there is no file, as in runs of earlier versions.

    found: the answers on the first test set. root: folder of the training images. Raises UserError
    for a file that does not belong to them.
    """
    if not path.is_file():
        return []
    try:
        rows = TypeAdapter(list[_Wrong]).validate_python(read_json(path))
    except ValidationError as error:
        place, reason = first_fault(error)
        raise UserError(f"{path}: not the mistakes of a run ({place}: {reason})") from None
    there, result = {*found.images}, list[Mistake]()
    for row in rows[:WRONG]:
        if spelled(row.image) not in there:
            raise UserError(
                f"{path}: names an image that predictions.csv does not; the folder is damaged or mixed"
            )
        near = (
            Neighbour(n.image, source_of(root, n.image), n.label, n.similarity)
            for n in row.neighbours[:SHOWN]
        )
        result.append(Mistake(spelled(row.image), tuple(near)))
    return result
