"""What the labels so far say of every image of a project, fitted anew at each label."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from rmadapter import Backbone
from rmadapter.answers import RejectionScore
from rmadapter.data import is_catch_all
from rmadapter.runs import Proposals, propose_labels, wilson


@dataclass(frozen=True, eq=False)
class Encoded:
    """Images as the backbone sees them.

    Attributes:
        names: Names of N images.
        features: Features [N, e] of length 1.
        groups: Group numbers [N], of near-duplicates.
    """

    names: tuple[str, ...]
    features: np.ndarray
    groups: np.ndarray

    @cached_property
    def row(self) -> dict[str, int]:
        """The row of each image, by name."""
        return {name: row for row, name in enumerate(self.names)}


class Accuracy(NamedTuple):
    """How many judged images are right, with a 95 % interval in percent (Wilson, 1927)."""

    images: int
    right: int
    low: float
    high: float

    @classmethod
    def of(cls, right: int, images: int) -> Accuracy:
        if not images:
            return cls(0, 0, 0.0, 100.0)
        return cls(images, right, *wilson(right, images))


class Wrong(NamedTuple):
    """A judged image whose most probable label is another one.

    Attributes:
        row: Row of the image.
        label: The given label.
        answer: The most probable one.
        probability: Its probability.
    """

    row: int
    label: str
    answer: str
    probability: float


@dataclass(frozen=True, eq=False)
class Quick:
    """What is known of N images.

    Attributes:
        images: The images.
        classes: The C labels to choose from.
        labels: Indices of the given labels, or -1, [N].
        proposals: Probabilities [N, C], [N, 0] with fewer than two classes, and which images are
            judged.
    """

    images: Encoded
    classes: tuple[str, ...]
    labels: np.ndarray
    proposals: Proposals

    @property
    def table(self) -> np.ndarray:
        """The probabilities of the proposals."""
        return self.proposals.table

    @property
    def proposes(self) -> bool:
        """Whether there are proposals, for which two classes are needed."""
        return bool(self.table.shape[1])

    @cached_property
    def judged(self) -> np.ndarray:
        """The rows of the judged images."""
        return np.flatnonzero(self.proposals.judged)

    @cached_property
    def answers(self) -> np.ndarray:
        """Indices of the most probable classes [N], -1 without proposals."""
        return self.table.argmax(1) if self.proposes else np.full(len(self.labels), -1)

    def best(self, row: int, count: int = 3) -> list[tuple[str, float]]:
        """Return the most probable labels of an image, with their probabilities."""
        order = np.argsort(-self.table[row], kind="stable")[:count].tolist()
        return [(self.classes[c], float(self.table[row, c])) for c in order]

    def accuracy(self, label: str | None = None) -> Accuracy:
        """Return how many of the judged images are right, of all or of those with a label."""
        labels = self.labels[self.judged]
        right = self.answers[self.judged] == labels
        if label is not None:
            right = right[labels == self._index(label)]
        return Accuracy.of(int(right.sum()), len(right))

    def share(self, name: str, label: str) -> float:
        """Return the probability of a label for an image, by name; 1 for what is unknown."""
        row, column = self.images.row.get(name), self._index(label)
        known = row is not None and column >= 0 and self.proposes
        return float(self.table[row, column]) if known else 1.0

    def _index(self, label: str) -> int:
        return self.classes.index(label) if label in self.classes else -1

    def wrong(self) -> list[Wrong]:
        """Return the judged images that are wrong, the most probable answers first."""
        rows = self.judged[self.answers[self.judged] != self.labels[self.judged]]
        names = self.classes
        wrong = [
            Wrong(row, names[self.labels[row]], *self.best(row, 1)[0]) for row in rows.tolist()
        ]
        return sorted(wrong, key=lambda one: -one.probability)

    def confusions(self) -> list[tuple[str, str, list[int]]]:
        """Return label, answer and the rows of the judged images, the most frequent first."""
        rows = defaultdict(list)
        for one in self.wrong():
            rows[one.label, one.answer].append(one.row)
        place = self.classes.index
        pairs = sorted(rows, key=lambda pair: (-len(rows[pair]), place(pair[0]), place(pair[1])))
        return [(label, answer, rows[label, answer]) for label, answer in pairs]

    def suspects(self) -> dict[int, str]:
        """Return a better label for each judged image whose label looks wrong, by row, the worst
        first; by the rules of `suspects`."""
        doubts = self.proposals.doubts(self.labels)
        return {doubt.row: self.classes[doubt.better] for doubt in doubts}

    def beside(self, images: Encoded) -> Quick:
        """Add images, which come after the present ones, without answers: all classes are equally
        probable."""
        more = len(images.names) - len(self.labels)
        classes = self.table.shape[1]
        table = np.concatenate([self.table, np.full((more, classes), 1 / max(classes, 1))])
        judged = np.concatenate([self.proposals.judged, np.zeros(more, bool)])
        labels = np.concatenate([self.labels, np.full(more, -1)])
        return replace(self, images=images, labels=labels, proposals=Proposals(table, judged))


def fit(
    images: Encoded, backbone: Backbone, classes: Sequence[str], labels: Mapping[str, str]
) -> Quick:
    """Fit to the labels of the encoded images.

    Args:
        images: The images.
        backbone: Backbone that encoded them.
        classes: All classes. One for images of none of the others counts only once an image has it.
        labels: Labels of images, by name.

    Raises:
        UserError: Too many classes.
    """
    given = [labels.get(name, "") for name in images.names]
    used = {*given}
    known = tuple(label for label in classes if label in used or not is_catch_all(label))
    place = {label: c for c, label in enumerate(known)}
    which = np.array([place.get(label, -1) for label in given], int)
    if len(known) < 2 or not len(given):
        none = Proposals(np.empty((len(given), 0)), np.zeros(len(given), bool))
        return Quick(images, known, which, none)
    proposals = propose_labels(backbone, images.features, known, which, images.groups)
    return Quick(images, known, which, proposals)


# Images beside others


def neighbours(quick: Quick, row: int, count: int = 5) -> list[tuple[int, float]]:
    """Return the rows of the labelled images nearest to an image, near-duplicates included, with
    the cosines."""
    rows = np.flatnonzero(quick.labels >= 0)
    rows = rows[rows != row]
    cosines = quick.images.features[rows] @ quick.images.features[row]
    nearest = np.argsort(-cosines, kind="stable")[:count]
    return [(int(rows[i]), float(cosines[i])) for i in nearest]


def out_of_distribution(quick: Quick, open_rows: Sequence[int]) -> list[tuple[int, float]]:
    """Order images by their out-of-distribution score (`RejectionScore.scores`), the highest first.

    It is relative to the judged images, each as seen by the others.

    Args:
        quick: The images.
        open_rows: Rows of images without label.

    Returns:
        Rows with their scores; none if no image is judged.
    """
    rows, judged = np.array(open_rows, int), quick.judged
    if not (len(rows) and len(judged)):
        return []
    sums = np.zeros((len(quick.classes), quick.images.features.shape[1]))
    known = np.flatnonzero(quick.labels >= 0)
    np.add.at(sums, quick.labels[known], quick.images.features[known])
    own_distances = _held_out_distances(quick, known, sums)[judged]
    rejection = RejectionScore.of(quick.table[judged], own_distances, "folds")
    far = 1 - np.minimum((quick.images.features[rows] @ _unit(sums).T).max(1), 1)
    scores = rejection.scores(quick.table[rows], far)
    order = np.argsort(-scores, kind="stable").tolist()
    return [(int(rows[i]), float(scores[i])) for i in order]


def _held_out_distances(quick: Quick, known: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Return 1 - the cosine of each labelled image to the nearest class mean, without the images of
    its group: [N]; 0 for images without label.

    Args:
        quick: The images.
        known: Rows of the labelled images.
        sums: Sums [C, e] of their features by class.
    """
    unit, labels = quick.images.features[known].astype(float), quick.labels[known]
    groups = quick.images.groups[known]
    cosines = unit @ _unit(sums).T
    order = np.argsort(groups, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        own, which = np.unique(labels[rows], return_inverse=True)
        others = sums[own]
        np.subtract.at(others, which, unit[rows])
        cosines[np.ix_(rows, own)] = unit[rows] @ _unit(others).T
    far = np.zeros(len(quick.labels))
    far[known] = 1 - np.minimum(cosines.max(1), 1)
    return far


def _unit(sums: np.ndarray) -> np.ndarray:
    """Return rows of length 1; zeros for the sum of no image, which rounding leaves near 0."""
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    rows: np.ndarray = np.where(lengths > 1e-9, sums / np.maximum(lengths, 1e-9), 0.0)
    return rows
