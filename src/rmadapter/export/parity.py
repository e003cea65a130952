"""Compare the exported model with the fitted one on the same images: their answers must agree."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

import numpy as np

from rmadapter.artifacts.checkpoint import Saved
from rmadapter.artifacts.record import read_record
from rmadapter.artifacts.run_folder import RunFolder
from rmadapter.data.decode import image_error
from rmadapter.data.fewshot import read_split
from rmadapter.data.formats.base import Listing, Row
from rmadapter.data.formats.registry import locate
from rmadapter.data.image_set import relative
from rmadapter.data.names import key
from rmadapter.data.read import ImageSource
from rmadapter.data.transforms import decode_batches
from rmadapter.errors import UserError
from rmadapter.export.engines import Outputs, joined
from rmadapter.export.graph import FittedModel
from rmadapter.export.runtime import BATCH_SIZE, Model
from rmadapter.metrics import accuracy
from rmadapter.support.files import user_path

GENERATED_IMAGES = 64
MAX_TRAINING_IMAGES = 64
MIN_IMAGES = 64  # to compare on, if the run has as many
HEADER = ["images", "n", "same %", "differs", "accuracy", "exported"]
DECISIONS = ["in % of these images", "same", "before", "exported"]
NEW_CLASSES = ("sundial", "quince", "yurt")  # one that the model does not have is added to compare


class DecisionFacts(TypedDict):
    """How decisions change by an export, in percent of the images compared.

    Attributes:
        option: "error" or "turn_away".
        share: Value of the option.
        same: Images with the same set, or that are called none of these by both or neither.
        before: Images whose sets miss the right class, if labels are known, or that are called none
            of these, by the fitted model.
        after: The same by the exported model.
    """

    option: str
    share: float
    same: float
    before: float | None
    after: float | None


@dataclass(frozen=True)
class Limit:
    """How much an exported model may differ.

    Attributes:
        others: Share of other answers.
        difference: Of a probability.
        loss: Points of accuracy lost.
    """

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
class ComparedImages:
    """Images to compare on.

    Attributes:
        title: For tables.
        labels: Indices into the model's labels, empty if unknown.
    """

    title: str
    images: Sequence[ImageSource]
    labels: Sequence[int] = ()


@dataclass(frozen=True)
class Parity:
    """How far an exported model agrees with the fitted one.

    Attributes:
        title: Of the images compared.
        images: Number of images.
        same: Share of equal answers.
        difference: Largest difference of a probability.
        before: Accuracy in percent of the fitted model, if labels are known.
        after: Accuracy of the exported model.
        features: Largest difference of a feature value, if features are exported.
        added: Largest difference of a probability with a class added by name.
        distances: Largest difference of a distance from the class means, if they are exported.
        decisions: How these change, at each of some shares.
    """

    title: str
    images: int
    same: float
    difference: float
    before: float | None = None
    after: float | None = None
    features: float | None = None
    added: float | None = None
    distances: float | None = None
    decisions: tuple[DecisionFacts, ...] = ()

    def fault(self, limit: Limit) -> str:
        """Say what exceeds a limit, or return ""."""
        if not 1 - self.same <= limit.others:  # not `>`, as every comparison with NaN is false
            return f"{100 * (1 - self.same):.1f} % of its answers differ"
        differences = {
            "a probability": self.difference,
            "a feature value": self.features,
            "a distance": self.distances,
            "with one more class a probability": self.added,
        }
        for name, difference in differences.items():
            if difference is not None and not difference <= limit.difference:
                allowed = f"more than the {limit.difference:g} allowed"
                return f"{name} differs by {difference:.1g}, {allowed}"
        if self.before is None or self.after is None or self.before - self.after <= limit.loss:
            return ""
        return (
            f"it loses {self.before - self.after:.1f} points of accuracy ({self.before:.1f} % "
            f"before), more than the {limit.loss} allowed"
        )

    def row(self) -> list[str]:
        """Return a row of `HEADER`."""
        rates = ["-" if rate is None else f"{rate:.1f}" for rate in (self.before, self.after)]
        same, difference = f"{100 * self.same:.1f}", f"{self.difference:.1e}"
        return [self.title, str(self.images), same, difference, *rates]

    def decision_rows(self) -> list[list[str]]:
        """Return a row of `DECISIONS` for each kind of decision and share."""
        texts = {"error": "sets without the right class", "turn_away": "called none of these"}
        rows = []
        for row in self.decisions:
            rates = [row["same"], row["before"], row["after"]]
            cells = ["-" if rate is None else f"{rate:.1f}" for rate in rates]
            rows.append([f"{texts[row['option']]}, at {100 * row['share']:g} %", *cells])
        return rows


def fitted_table(saved: Saved, images: Sequence[ImageSource]) -> np.ndarray:
    """Return probabilities [N, C] as `predict` gives them."""
    batches = saved.fitted.probabilities(images, saved.names)
    return np.concatenate([batch.numpy() for batch in batches])


def exported_outputs(model: Model, images: Sequence[ImageSource]) -> Outputs:
    """Return what an exported model gives for all images."""
    return joined([outputs for _, outputs in model.outputs(images)])


def measure(images: ComparedImages, before: np.ndarray, after: np.ndarray) -> Parity:
    """Compare probabilities [N, C] of the fitted and of the exported model."""
    same = float((before.argmax(-1) == after.argmax(-1)).mean())
    parity = Parity(images.title, len(before), same, float(np.abs(before - after).max()))
    if not len(images.labels):
        return parity
    labels = images.labels
    return replace(parity, before=accuracy(before, labels), after=accuracy(after, labels))


def compare(
    saved: Saved,
    model: Model,
    compared: ComparedImages,
    embeddings: bool = False,
    text: bool = False,
) -> Parity:
    """Compare a fitted and an exported model, with distances if both give them.

    Args:
        saved: The fitted model.
        model: The exported one.
        compared: Images to compare on.
        embeddings: Whether to compare their features, too.
        text: Whether to compare also with a class that is added to the exported model; only with
            embeddings.
    """
    images = compared.images
    after = exported_outputs(model, images)
    before = Outputs(fitted_table(saved, images))
    parity = measure(compared, before.probabilities, after.probabilities)
    if embeddings or after.distances is not None:
        fitted = FittedModel(saved, embeddings=embeddings)
        stream = decode_batches(images, saved.fitted.backbone.preprocess, BATCH_SIZE)
        before = joined([fitted.ask(pixels.numpy()) for _, pixels in stream])
        parity = replace(
            parity,
            features=_difference(before.features, after.features),
            distances=_difference(before.distances, after.distances),
        )
    parity = replace(parity, decisions=(*decisions(saved, before, after, compared.labels),))
    if not text:
        return parity
    known = {key(str(label)) for label in saved.labels}
    name = next(name for name in NEW_CLASSES if name not in known)
    model.add_class(name)
    expected = fitted_table(saved._replace(names=(*saved.names, name)), images)
    found = exported_outputs(model, images).probabilities
    return replace(parity, added=_difference(expected, found))


def decisions(
    saved: Saved, before: Outputs, after: Outputs, labels: Sequence[int]
) -> Iterator[DecisionFacts]:
    """Yield how decisions change at each of 1, 5 and 10 % for which the run has enough images, or
    else at the least share that is possible, all by the limits of the fitted model.

    Args:
        saved: The fitted model.
        before, after: What the fitted and the exported model give for the images.
        labels: Indices of the images' classes, empty if unknown.
    """
    decider = saved.decider()
    calibration, rejection = decider.calibration, decider.rejection
    if calibration:
        for error in calibration.possible() or [calibration.least]:
            promising = decider.at(error=error)
            sets = [promising.sets(each.probabilities) for each in (before, after)]
            same = (sets[0] == sets[1]).all(1)
            missed = [~inside[np.arange(len(labels)), labels] for inside in sets if len(labels)]
            yield _changed("error", error, same, missed)
    if rejection and before.distances is not None and after.distances is not None:
        for share in rejection.possible() or [rejection.least]:
            promising = decider.at(reject_rate=share)
            away = [
                ~promising.familiar(each.probabilities, each.distances) for each in (before, after)
            ]
            yield _changed("turn_away", share, away[0] == away[1], away)


def _changed(
    option: str, share: float, same: np.ndarray, hits: Sequence[np.ndarray]
) -> DecisionFacts:
    """Return how a decision changes.

    Args:
        option: Name of the decision.
        share: Share that is requested with it.
        same: Images on which the fitted and the exported model agree.
        hits: Which images count for the fitted and for the exported model, if known.
    """
    before, after = (100 * float(each.mean()) for each in hits) if hits else (None, None)
    return {
        "option": option,
        "share": share,
        "same": 100 * float(same.mean()),
        "before": before,
        "after": after,
    }


def _difference(before: np.ndarray | None, after: np.ndarray | None) -> float | None:
    """Return the largest difference; None if one of both is missing."""
    return None if before is None or after is None else float(np.abs(before - after).max())


# Images to compare on


def compared_images(
    run: Path, saved: Saved, data: Path | None, outside: bool, most: int
) -> ComparedImages:
    """Choose at most `most` images: of `data` if given, else of the run's own data, if still there,
    else generated ones.

    The test split if there is one, else those that the run did not draw for training or validation;
    of its own data, if these are fewer than `MIN_IMAGES`, also some that it drew.

    Raises:
        UserError: The data has no images of the model's classes.
    """
    if data is not None:
        home = user_path(data)
        drawn = _drawn_names(run) if _is_own(run, home) else None
        return _select(home, locate(data, outside=outside).read(), saved, drawn, most)
    with suppress(UserError):  # moved or changed
        home, source = _open_own(run)
        return _select(home, source, saved, _drawn_names(run), most)
    return ComparedImages("generated", generated_images(GENERATED_IMAGES))


def training_images(run: Path) -> Sequence[ImageSource]:
    """Choose images that the run was trained on, if still there, else generated ones."""
    with suppress(UserError):
        root = _open_own(run)[1].root
        names = sorted(_training_names(run))
        random.Random(0).shuffle(names)
        readable = [
            root / name for name in names[:MAX_TRAINING_IMAGES] if not image_error(root / name)
        ]
        if readable:
            return readable
    return generated_images(GENERATED_IMAGES)


def _is_own(run: Path, data: Path) -> bool:
    with suppress(UserError, OSError):
        return user_path(read_record(RunFolder(run).record).task.data).samefile(data)
    return False


def _open_own(run: Path) -> tuple[Path, Listing]:
    """Open the run's own data. Raises UserError if it is unknown or missing."""
    record = read_record(RunFolder(run).record)
    home = user_path(record.task.data)
    return home, locate(home, record.columns, record.crops, outside=True).read()


def _training_names(run: Path) -> set[str]:
    return {name for name, _, _ in read_split(RunFolder(run).split).train}


def _drawn_names(run: Path) -> set[str]:
    """Name the training images, and the validation images, by which methods choose settings."""
    validation = read_split(RunFolder(run).split).val or ()
    return _training_names(run) | {name for name, _, _ in validation}


def _select(
    data: Path, source: Listing, saved: Saved, drawn: set[str] | None, most: int
) -> ComparedImages:
    """Choose at most `most` images of data.

    Args:
        data: Path of the data.
        source: Its images.
        saved: The fitted model.
        drawn: Names of those that the run drew; None for data that is not its own.
        most: Number of images at most.
    """
    root, splits = source.root, source.splits
    every = [*dict.fromkeys(row for part in splits.values() for row in part)]
    rows = splits.get("test", [])
    kind = "test " if rows else "" if drawn is None else "held out "
    if not rows:
        rows = [row for row in every if relative(row.image, root) not in (drawn or ())]
    places = {key(str(label)): i for i, label in enumerate(saved.labels)}
    readable = _some(rows, places, most)
    taken = {relative(row.image, root) for row in readable}
    title = f"{kind}images of {data.name}"
    if drawn and len(readable) < min(MIN_IMAGES, most):
        others = [row for row in every if relative(row.image, root) in drawn - taken]
        seen = _some(others, places, min(MIN_IMAGES, most) - len(readable))
        if seen and readable:
            count = len(readable) + len(seen)
            title = f"images of {data.name}, {len(seen)} of {count} trained on"
        elif seen:
            title = f"training images of {data.name}"
        readable += seen
    if not readable:
        raise UserError(f"{data}: no readable image of the model's classes")
    labels = [places[key(row.label)] for row in readable]
    return ComparedImages(title, [row.image for row in readable], labels)


def _some(rows: Sequence[Row], places: Mapping[str, int], most: int) -> list[Row]:
    """Choose at most `most` readable images of the model's classes, always the same ones."""
    known = [row for row in rows if key(row.label) in places]
    random.Random(0).shuffle(known)
    return [row for row in known[:most] if not image_error(row.image)]


def generated_images(count: int) -> list[np.ndarray]:
    """Generate images [H, W, 3] of coloured blocks, in many shapes, always the same ones."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(count):
        rows, columns, grain = rng.integers(2, 9), rng.integers(2, 9), rng.integers(8, 60)
        blocks = rng.integers(0, 256, (rows, columns, 3), np.uint8)
        images.append(blocks.repeat(grain, 0).repeat(grain, 1))
    return images
