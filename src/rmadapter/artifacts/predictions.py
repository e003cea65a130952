"""A run's answer on every test image, predictions.csv, and the training images nearest to some of
its mistakes, why.json; the page of the run is made of both."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat
from pathlib import Path, PureWindowsPath
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, TypeAdapter, ValidationError
from torch import Tensor

from rmadapter.artifacts.record import Record, Score
from rmadapter.artifacts.run_folder import RunFolder
from rmadapter.data.fewshot import half, read_split
from rmadapter.data.formats.registry import images_root
from rmadapter.data.names import Label, descriptions, order, prompt_name
from rmadapter.data.read import ImageSet, ImageSource
from rmadapter.errors import UserError, first_fault
from rmadapter.support.files import csv_text, inert, read_json, read_text, write_json, write_text
from rmadapter.training.cache import Cache
from rmadapter.training.contract import MAX_EXAMPLES, Fitted

COLUMNS = (
    "set",
    "split",
    "image",
    "true",
    "answer",
    "probability",
    "second",
    "second_probability",
    "zero_shot",
    "zero_shot_probability",
)
ROWS_AT_ONCE = 1024  # of a table of probabilities
MAX_MISTAKES = 6  # of a run
MAX_NEIGHBOURS = 5  # of an image
IMAGES_AT_ONCE = 2048  # images compared at once

Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Answers on N images over C classes.

    Attributes:
        title: Name of the set.
        images: The images.
        probabilities: Those of the method, [N, C].
        zero_shot: Those of the untouched backbone, [N, C]; None without a text encoder.
        beside: Those of other methods, by name.
    """

    title: str
    images: ImageSet
    probabilities: np.ndarray
    zero_shot: np.ndarray | None
    beside: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; the first description of a class that has several."""
        return tuple(descriptions(name)[0] for name in self.images.classes)

    @property
    def labels(self) -> np.ndarray:
        """[N], indices into `classes`."""
        return np.asarray(self.images.labels)


class Guess(NamedTuple):
    """A guess for each of N images.

    Attributes:
        which: Indices into the classes, -1 for none.
        probability: Probabilities from 0 to 1, to 6 digits.
    """

    which: np.ndarray
    probability: np.ndarray


@dataclass(frozen=True, eq=False)
class Predictions:
    """Answers on the N images behind a score.

    Attributes:
        score: The score.
        classes: The C classes as a page names them.
        labels: The same as the user writes them.
        images: Paths below the data.
        sources: The images themselves; None for a path that leads out of the data.
        true: Indices into the classes, [N].
        answer: The adapted model's answers.
        second: Its second choices; none if there is only one class.
        zero_shot: The untouched model's answers; none on a backbone without a text encoder.
    """

    score: Score
    classes: tuple[str, ...]
    labels: tuple[str, ...]
    images: tuple[str, ...]
    sources: tuple[ImageSource | None, ...]
    true: np.ndarray
    answer: Guess
    second: Guess
    zero_shot: Guess

    @classmethod
    def of(cls, score: Score, evaluation: Evaluation) -> Predictions:
        """Take the best classes of an evaluation. Raises ValueError if score and evaluation do not
        match."""
        images, table = evaluation.images, evaluation.probabilities
        labels, untouched = evaluation.labels, evaluation.zero_shot
        zero_shot = Guess(np.full(len(labels), -1), np.full(len(labels), np.nan))
        if untouched is not None:
            zero_shot = _guess(untouched, untouched.argmax(1))
        if {len(labels), len(table), len(zero_shot.which)} != {score.images}:
            raise ValueError(
                f"{len(table)} answers on {len(labels)} images, and a score of {score.images}"
            )
        best = table.argmax(1)
        return cls(
            score=score,
            classes=evaluation.classes,
            labels=tuple(map(str, images.written)),
            images=tuple(images.name(row) for row in range(len(images))),
            sources=images.images,
            true=labels,
            answer=_guess(table, best),
            second=_guess(table, _second_best(table, best)),
            zero_shot=zero_shot,
        )

    @property
    def has_zero_shot(self) -> bool:
        """Whether the untouched model answered."""
        return bool((self.zero_shot.which >= 0).any())

    @property
    def right(self) -> tuple[np.ndarray, np.ndarray]:
        """Whether the untouched model, and whether the adapted one, is right, [N] each."""
        return self.zero_shot.which == self.true, self.answer.which == self.true

    def rows(self) -> Iterable[tuple[str, ...]]:
        """Return rows of cells, in the order of `COLUMNS`."""
        names = [*map(inert, self.labels), ""]
        columns: list[Iterable[str]] = [map(inert, self.images), (names[i] for i in self.true)]
        for guess in (self.answer, self.second, self.zero_shot):
            columns.append([names[i] for i in guess.which])
            columns.append([f"{p:.6f}" if i >= 0 else "" for i, p in zip(*guess, strict=True)])
        return zip(repeat(inert(self.score.name)), repeat(self.score.split), *columns)


def _second_best(table: np.ndarray, best: np.ndarray) -> np.ndarray:
    """Return the second most probable class [N], -1 if there is only one. Works on some rows at a
    time, since the table may nearly fill the memory."""
    if table.shape[1] < 2:
        return np.full(len(table), -1)
    second = np.empty_like(best)
    for start in range(0, len(table), ROWS_AT_ONCE):
        part = table[start : start + ROWS_AT_ONCE].copy()
        np.put_along_axis(part, best[start : start + ROWS_AT_ONCE, None], -1, axis=1)
        second[start : start + ROWS_AT_ONCE] = part.argmax(1)
    return second


def _guess(table: np.ndarray, which: np.ndarray) -> Guess:
    return Guess(which, np.round(table[np.arange(len(table)), which].astype(np.float64), 6))


def predictions_of(record: Record, evaluations: Sequence[Evaluation]) -> list[Predictions]:
    """Return the predictions of each score that has an accuracy.

    Args:
        record: Record of the run.
        evaluations: Evaluations of these scores, in the same order.

    Raises:
        ValueError: They do not match.
    """
    return [
        Predictions.of(score, evaluation)
        for score, evaluation in zip(_answered(record), evaluations, strict=True)
    ]


def _answered(record: Record) -> list[Score]:
    return [score for score in record.scores if score.accuracy is not None]


def write_predictions(path: Path, predictions: Sequence[Predictions]) -> None:
    """Write predictions atomically, as CSV with no cell that a spreadsheet would run; no file if
    nothing was tested."""
    if predictions:
        rows = chain.from_iterable(part.rows() for part in predictions)
        write_text(path, csv_text(COLUMNS, rows))


def read_predictions(folder: Path, record: Record) -> list[Predictions]:
    """Read the predictions of a run; their sources are the paths below the run's data, whether or
    not they still exist.

    Raises UserError if the file is missing, damaged or from another run.
    """
    scores, path = _answered(record), RunFolder(folder).predictions
    if not scores:
        return []
    if not path.is_file():
        raise UserError(f"{path}: missing; `rmadapter fit` makes a run that has it")
    rows: dict[tuple[str, str], list[list[str]]] = defaultdict(list)
    try:
        head, *lines = csv.reader(io.StringIO(read_text(path, "readable CSV")))
        for line in lines:
            name, split, *cells = map(_undo_inert, line)
            rows[name, split].append(cells)
    except (csv.Error, ValueError) as error:
        raise UserError(f"{path}: not readable CSV ({error})") from None
    keys = [(as_read(score.name), str(score.split)) for score in scores]
    sizes = {len(row) + 2 for part in rows.values() for row in part}
    if tuple(head) != COLUMNS or {*keys} != {*rows} or sizes != {len(COLUMNS)}:
        raise UserError(f"{path}: does not match run.json; the folder is damaged or mixed")
    return [_parse(path, record, score, rows[key]) for score, key in zip(scores, keys, strict=True)]


def _undo_inert(cell: str) -> str:
    return cell[1:] if cell[:1] == "'" and inert(cell[1:]) == cell else cell


def as_read(text: object) -> str:
    """Return a label or path as it is read back from the file."""
    return _undo_inert(inert(str(text)))


def _parse(path: Path, record: Record, score: Score, rows: list[list[str]]) -> Predictions:
    """Parse the rows of one score, without their first two cells."""
    if len(rows) != score.images:
        raise UserError(
            f"{path}: {len(rows)} images of {score.title}, but run.json has {score.images}"
        )
    columns = list(zip(*rows, strict=True))
    labels, probabilities = [columns[i] for i in (1, 2, 4, 6)], [columns[i] for i in (3, 5, 7)]
    names = _class_names(path.parent, record, score, {*chain.from_iterable(labels)})
    index = {label: number for number, label in enumerate(names)} | {"": -1}
    try:
        numbers = [np.array([index[cell] for cell in column]) for column in labels]
        shares = [np.array([float(cell or "nan") for cell in column]) for column in probabilities]
    except (KeyError, ValueError) as error:
        raise UserError(f"{path}: {score.title}: not a class or not a number ({error})") from None
    true, *which = numbers
    answer, second, zero_shot = map(Guess, which, shares)
    needed = [Guess(true, answer.probability), answer]
    for guess in needed if score.zero_shot is None else [*needed, zero_shot]:
        if guess.which.min() < 0 or not ((guess.probability >= 0) & (guess.probability <= 1)).all():
            raise UserError(
                f"{path}: {score.title}: an empty cell, or a probability outside 0 to 1"
            )
    root = images_root(score.data or record.task.data, record.crops and not score.data)
    return Predictions(
        score=score,
        classes=tuple(names.values()),
        labels=tuple(names),
        images=columns[0],
        sources=tuple(image_source(root, image) for image in columns[0]),
        true=true,
        answer=answer,
        second=second,
        zero_shot=zero_shot,
    )


def _class_names(folder: Path, record: Record, score: Score, used: set[str]) -> dict[str, str]:
    """Return the names of a score's classes on a page, by label: the classes of the run's draw or,
    if the score has others, those that occur."""
    draw = read_split(RunFolder(folder).split)
    question = next((one for one in record.task.questions if one.name == score.name), None)
    which = question.classes if question else "all"
    of_run = half(ImageSet((), (), draw.classes, written=draw.written), which)
    known = {
        as_read(label): descriptions(name)[0]
        for label, name in zip(of_run.written, of_run.classes, strict=True)
    }
    if len(known) == score.classes and used <= {*known, ""}:
        return known
    return {label: known.get(label, prompt_name(label)) for label in sorted(used - {""}, key=order)}


def image_source(root: Path, image: str) -> Path | None:
    """Return the path of an image, None if it leads out of the data: a foreign run could name any
    image on this machine."""
    path = PureWindowsPath(image)  # which takes both kinds of slashes
    outside = path.anchor or image.startswith("/") or ".." in path.parts
    return None if outside else root / image


# Nearest training images


class Neighbour(NamedTuple):
    """A nearby image.

    Attributes:
        image: Its name, as in split.json.
        source: The image itself; None if its path leads out of the data.
        label: Its label.
        similarity: Cosine of untouched features; 1 means identical.
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
    """A wrong answer.

    Attributes:
        image: Image of the first test set, as in predictions.csv.
        neighbours: Training images near it, nearest first.
    """

    image: str
    neighbours: tuple[Neighbour, ...]


def images_of_examples(images: Sequence[Item]) -> Sequence[Item]:
    """Return the training images of a model whose features `Fitted.examples` keeps, in order."""
    return images[:: max(-(-len(images) // MAX_EXAMPLES), 1)]


def nearest(
    features: np.ndarray,
    examples: np.ndarray | None = None,
    count: int = MAX_NEIGHBOURS,
    groups: np.ndarray | None = None,
) -> Nearest:
    """Find the examples with the highest cosine to each feature vector; of equal cosines the first
    example comes first.

    Args:
        features: Feature vectors [B, e], of any length.
        examples: Examples [N, e], of unit length; by default the features themselves.
        count: Number of examples for each.
        groups: Numbers [B]; an image is no neighbour of an image with the same number, such as
            itself and its copies.
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    others = unit if examples is None else examples
    count = min(count, len(others))
    rows, cosines = [], []
    for start in range(0, len(unit), IMAGES_AT_ONCE):
        part = unit[start : start + IMAGES_AT_ONCE] @ others.T
        if groups is not None:
            part[groups[start : start + IMAGES_AT_ONCE, None] == groups[None]] = -np.inf
        # topk is many times faster than sorting or NumPy's partition
        best = np.sort(torch.from_numpy(part).topk(count).indices.numpy(), axis=1)
        order = np.argsort(-np.take_along_axis(part, best, 1), axis=1, kind="stable")
        rows.append(np.take_along_axis(best, order, 1))
        cosines.append(np.take_along_axis(part, rows[-1], 1))
    if not rows:
        return Nearest(np.empty((0, count), int), np.empty((0, count)))
    return Nearest(np.concatenate(rows), np.concatenate(cosines))


def nearest_examples(fitted: Fitted, features: Tensor, count: int = MAX_NEIGHBOURS) -> Nearest:
    """Find the training images nearest to features [B, e]; none if the model keeps no examples."""
    if fitted.examples is None:
        return Nearest(np.empty((len(features), 0), int), np.empty((len(features), 0)))
    return nearest(features.float().cpu().numpy(), fitted.examples.float().cpu().numpy(), count)


def find_mistakes(
    fitted: Fitted,
    train: ImageSet,
    evaluations: Sequence[Evaluation],
    predictions: Sequence[Predictions],
    cache: Cache,
) -> list[Mistake]:
    """Return at most MAX_MISTAKES images of the first test set that the model gets wrong, the most
    confident answers first, each with its nearest training images.

    A test image that is also a training image, as in cross-validation, is not its own neighbour.

    Args:
        fitted: The model.
        train: Images that it was fitted to.
        evaluations: Its evaluations.
        predictions: Their predictions.
        cache: Cache of the backbone's features.
    """
    if not predictions:
        return []
    images, first = evaluations[0].images, predictions[0]
    wrong = np.flatnonzero(first.answer.which != first.true)
    rows = wrong[np.argsort(-first.answer.probability[wrong], kind="stable")][
        :MAX_MISTAKES
    ].tolist()
    if not rows:
        return []
    known = images_of_examples(range(len(train)))
    near = nearest_examples(fitted, cache.features(images.subset(rows))[0], MAX_NEIGHBOURS + 1)
    mistakes = []
    for row, places, cosines in zip(rows, near.rows, near.cosines.tolist(), strict=True):
        neighbours = []
        for place, cosine in zip(places, cosines, strict=True):
            i = known[place]
            if train.images[i] is not images.images[row]:
                label = str(train.written[train.labels[i]])
                neighbour = Neighbour(train.name(i), train.images[i], label, round(cosine, 4))
                neighbours.append(neighbour)
        mistakes.append(Mistake(first.images[row], tuple(neighbours[:MAX_NEIGHBOURS])))
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

    Args:
        path: The file.
        predictions: Predictions on the first test set.
        root: Folder of the training images.

    Raises:
        UserError: The file does not belong to them.
    """
    if not path.is_file():
        return []
    try:
        rows = TypeAdapter(list[_MistakeRow]).validate_python(read_json(path))
    except ValidationError as error:
        place, reason = first_fault(error)
        raise UserError(f"{path}: not the mistakes of a run ({place}: {reason})") from None
    tested, mistakes = {*predictions.images}, []
    for row in rows[:MAX_MISTAKES]:
        image = as_read(row.image)
        if image not in tested:
            raise UserError(
                f"{path}: names an image that predictions.csv does not; the folder is damaged or "
                "mixed"
            )
        neighbours = [
            Neighbour(near.image, image_source(root, near.image), near.label, near.similarity)
            for near in row.neighbours[:MAX_NEIGHBOURS]
        ]
        mistakes.append(Mistake(image, tuple(neighbours)))
    return mistakes
