"""The training images nearest to an image, by the untouched features that a fitted model keeps of
them; why.json holds those of a run's mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, TypeAdapter, ValidationError
from torch import Tensor

from rmadapter.artifacts.predictions import Evaluation, Predictions, as_read, image_source
from rmadapter.data.names import Label
from rmadapter.data.read import ImageSet, ImageSource
from rmadapter.errors import UserError, first_fault
from rmadapter.support.files import read_json, write_json
from rmadapter.training.cache import Cache
from rmadapter.training.contract import MOST_EXAMPLES, Fitted

WRONG = 6  # mistakes of a run
SHOWN = 5  # neighbours of an image
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


def images_of_examples(images: Sequence[Item]) -> Sequence[Item]:
    """Return the training images of a model whose features `Fitted.examples` keeps, in order."""
    return images[:: max(-(-len(images) // MOST_EXAMPLES), 1)]


def nearest(
    features: np.ndarray, examples: np.ndarray | None = None, count: int = SHOWN,
    groups: np.ndarray | None = None,
) -> Nearest:  # fmt: skip
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


def find_mistakes(
    fitted: Fitted, train: ImageSet, evaluations: Sequence[Evaluation],
    predictions: Sequence[Predictions], cache: Cache,
) -> list[Mistake]:  # fmt: skip
    """Return at most WRONG images of the first test set that the model gets wrong, the most
    confident answers first, each with its nearest training images.

    train: the images that the model was fitted to. predictions: of the evaluations. A test image
    that is also a training image, as in cross-validation, is not its own neighbour.
    """
    if not predictions:
        return []
    images, first = evaluations[0].images, predictions[0]
    wrong = np.flatnonzero(first.answer.which != first.true)
    rows = wrong[np.argsort(-first.answer.probability[wrong], kind="stable")][:WRONG].tolist()
    if not rows:
        return []
    known = images_of_examples(range(len(train)))
    near = nearest_examples(fitted, cache.features(images.subset(rows))[0], SHOWN + 1)
    mistakes = []
    for row, places, cosines in zip(rows, near.rows, near.cosines.tolist(), strict=True):
        neighbours = []
        for place, cosine in zip(places, cosines, strict=True):
            i = known[place]
            if train.images[i] is not images.images[row]:
                label = str(train.written[train.labels[i]])
                neighbour = Neighbour(train.name(i), train.images[i], label, round(cosine, 4))
                neighbours.append(neighbour)
        mistakes.append(Mistake(first.images[row], tuple(neighbours[:SHOWN])))
    return mistakes


def write_mistakes(path: Path, mistakes: Sequence[Mistake]) -> None:
    """Write mistakes as JSON, atomically."""
    rows = []
    for image, neighbours in mistakes:
        rows.append({"image": image, "neighbours": [near.json() for near in neighbours]})
    write_json(path, rows)


class _NeighbourRow(BaseModel):
    image: str
    label: str
    similarity: float


class _MistakeRow(BaseModel):
    image: str
    neighbours: list[_NeighbourRow]


def read_mistakes(path: Path, predictions: Predictions, root: Path) -> list[Mistake]:
    """Read the file of `write_mistakes`; a missing one is empty.

    predictions: on the first test set. root: folder of the training images. Raises UserError for a
    file that does not belong to them.
    """
    if not path.is_file():
        return []
    try:
        rows = TypeAdapter(list[_MistakeRow]).validate_python(read_json(path))
    except ValidationError as error:
        place, reason = first_fault(error)
        raise UserError(f"{path}: not the mistakes of a run ({place}: {reason})") from None
    tested, mistakes = {*predictions.images}, []
    for row in rows[:WRONG]:
        image = as_read(row.image)
        if image not in tested:
            raise UserError(
                f"{path}: names an image that predictions.csv does not; the folder is damaged or "
                "mixed"
            )
        neighbours = [
            Neighbour(near.image, image_source(root, near.image), near.label, near.similarity)
            for near in row.neighbours[:SHOWN]
        ]
        mistakes.append(Mistake(image, tuple(neighbours)))
    return mistakes
