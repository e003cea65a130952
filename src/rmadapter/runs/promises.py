"""Promise errors by answers on images that the model did not learn from, and measure what is kept
of such promises."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from rmadapter import metrics
from rmadapter.answers.decider import Decider
from rmadapter.answers.held_out import Origin
from rmadapter.answers.rejection import RejectionScore
from rmadapter.answers.sets import Calibration
from rmadapter.answers.taxonomy import Taxonomy
from rmadapter.artifacts.predictions import Evaluation
from rmadapter.artifacts.value import Promise, Split
from rmadapter.data.read import ImageSet
from rmadapter.runs.evaluate import used_by
from rmadapter.support.terminal import note
from rmadapter.training.contract import Fitted


@dataclass(frozen=True)
class Answered:
    """Answers on N images that the model was not fitted to.

    Attributes:
        table: Probabilities [N, C].
        labels: Indices of the right classes, [N].
        groups: Number of each image's group, [N].
        tree: Taxonomy of the classes, if they have parents, which then answer where a label cannot.
        distances: [N], as in `RejectionScore`; none of a method without features.
    """

    table: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    tree: Taxonomy | None = None
    distances: np.ndarray = field(default_factory=lambda: np.empty(0))

    @classmethod
    def on(cls, images: ImageSet, table: np.ndarray) -> Answered:
        """Return answers on images of known labels, without distances."""
        return cls(table, np.array(images.labels), images.group_numbers, images.taxonomy)

    def calibrate(self, fitted: Fitted, source: Origin, seed: int) -> Fitted:
        """Return a copy of a model that can promise an error by these answers, of which one of each
        group counts; the same model if it remembers images, whose answers depend on those before.

        Args:
            fitted: The model.
            source: Where the images are from.
            seed: Seed of the draw of an image from each group.
        """
        if fitted.remembers:
            return fitted
        familiarity, groups = None, self.groups
        if len(self.distances):
            familiarity = RejectionScore.of(self.table, self.distances, source, groups, seed)
        calibration = Calibration.of(self.table, self.labels, source, groups, seed)
        return replace(fitted, calibration=calibration, familiarity=familiarity)

    def measured(self, calibration: Calibration) -> tuple[Promise, ...]:
        """Measure the promises at each of 1, 5 and 10 % for which a calibration has enough
        images."""
        return self._measured([(np.arange(len(self.labels)), calibration)])

    def cross_measured(
        self, which: np.ndarray, source: Origin, seed: int = 0
    ) -> tuple[Promise, ...]:
        """Measure like `measured`, each part of the images by a calibration on the others.

        Args:
            which: Number of each image's part, [N].
            source: Where the images are from.
            seed: Seed of the draw of an image from each group.
        """
        numbers = np.unique(which)
        if len(numbers) < 2:
            return ()
        parts = []
        for number in numbers:
            own = which == number
            table, labels, groups = self.table[~own], self.labels[~own], self.groups[~own]
            calibration = Calibration.of(table, labels, source, groups, seed)
            parts.append((np.flatnonzero(own), calibration))
        return self._measured(parts)

    def _measured(self, parts: list[tuple[np.ndarray, Calibration]]) -> tuple[Promise, ...]:
        """Measure rows of the images, each with the calibration for them."""
        smallest = min((one for _, one in parts), key=lambda one: one.images)
        return tuple(self._measure(error, parts) for error in smallest.possible())

    def _measure(self, error: float, parts: list[tuple[np.ndarray, Calibration]]) -> Promise:
        table, labels = self.table, self.labels
        inside, classes = np.zeros(table.shape, bool), [*map(str, range(table.shape[1]))]
        for rows, calibration in parts:
            decider = Decider(classes, calibration.known, calibration, error=error)
            inside[rows] = decider.sets(table[rows])
        missed = ~inside[np.arange(len(labels)), labels]
        sizes = inside.sum(1)
        answered = sizes == 1
        low, high = metrics.interval(missed, self.groups)
        levels, wrong = _backed_off(inside, labels, self.tree) if self.tree else ((), None)
        return Promise(
            error=100 * error,
            calibrated=min(calibration.images for _, calibration in parts),
            by_class=all(calibration.by_class(error) for _, calibration in parts),
            missed=100 * float(missed.mean()),
            low=low,
            high=high,
            labels=float(sizes.mean()),
            answered=100 * float(answered.mean()),
            right=100 * float(1 - missed[answered].mean()) if answered.any() else None,
            misses=tuple(_by_class(missed, labels, table.shape[1])),
            levels=levels,
            wrong=wrong,
        )


def kept(folder: Path, fitted: Fitted, evaluation: Evaluation, split: Split) -> tuple[Promise, ...]:
    """Measure the promises of a saved run on images of its classes; none for other classes, and,
    with a note, where images trained or calibrated the model.

    Args:
        folder: Folder of the run.
        fitted: Its model.
        evaluation: Its answers on the images.
        split: Split of the data that they are.
    """
    calibration, images = fitted.calibration, evaluation.images
    if calibration is None or images.classes != fitted.classes:
        return ()
    used = used_by(folder, images)
    if used or split == calibration.source == "held out":
        some = f"{used} of these {len(images)}" if used else "these"
        note(f"no promise is measured, as {some} images trained or calibrated the model")
        return ()
    return Answered.on(images, evaluation.probabilities).measured(calibration)


def _backed_off(
    inside: np.ndarray, labels: np.ndarray, tree: Taxonomy
) -> tuple[tuple[float, ...], float]:
    """Return the share of images in percent that are answered at each level, and of those answered
    wrongly.

    Args:
        inside: Whether each class is in the set of each image, [N, C].
        labels: Indices of the right classes, [N].
        tree: Taxonomy of the classes.
    """
    counts, wrong = [0] * (tree.depth + 1), 0
    for row, label in zip(inside, labels.tolist(), strict=True):
        place = tree.common(np.flatnonzero(row).tolist())
        if place:
            counts[place.level] += 1
            wrong += place not in tree.above(label)
    return tuple(100 * count / len(labels) for count in counts), 100 * wrong / len(labels)


def _by_class(missed: np.ndarray, labels: np.ndarray, classes: int) -> Iterator[float | None]:
    """Yield the share of each class's images, in percent, whose sets miss it; None without any."""
    for number in range(classes):
        own = missed[labels == number]
        yield 100 * float(own.mean()) if len(own) else None
