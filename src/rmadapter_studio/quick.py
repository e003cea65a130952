"""What the labels so far say of every image of a project, in closed form and so at once.

The model is the ridge regression beside zero-shot of methods/ridge.py: classes without images count
by their names alone, and with no label at all it is zero-shot. Each labelled image is judged by a
model that saw neither it nor its near-duplicates G:

    y_G - r_-G(x_G) = (I - H_GG)^-1 (y_G - r(x_G)),  H = X (X'X + penalty I)^-1 X'

r are the regression's outputs, r_-G those without the rows G. (Cook and Weisberg, Residuals and
Influence in Regression, 1982, section 2.2, for one row.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from rmadapter.answers.rejection import Familiarity
from rmadapter.artifacts.predictions import nearest
from rmadapter.backbones import Backbone
from rmadapter.curate.suspects import confident, logit_margin
from rmadapter.data.names import CATCH_ALL, key, prompt_names
from rmadapter.errors import UserError, did_you_mean
from rmadapter.methods.ridge import Ridge, ridge
from rmadapter.metrics import confusions, temperature, wilson
from rmadapter.prompts import cosine_logits, zero_shot_weights
from rmadapter.runs.features import class_means, distances
from rmadapter.task import TEMPLATES
from rmadapter.training.traits import Expected
from rmadapter_studio.order import RANDOM, RULES, Pool, pick

METHOD = Ridge()
SURE = "sure"  # an order: the images with the surest proposals
ORDERS = (*RULES, SURE)
MOST_POOL = 2_000  # images that a rule chooses from; of more, some are drawn


class Encoded(NamedTuple):
    """Images as the backbone sees them. unit: features [N, e]. together: group numbers [N], of
    near-duplicates."""

    names: tuple[str, ...]
    unit: np.ndarray
    together: np.ndarray


class Judged(NamedTuple):
    """right: number of the judged images that are right. low, high: 95 % interval in percent."""

    images: int
    right: int
    low: float
    high: float


class Wrong(NamedTuple):
    """A judged image whose most probable label is another one. row: of the encoded images."""

    row: int
    label: str
    answer: str
    probability: float


@dataclass(frozen=True, eq=False)
class Quick:
    """What is known of the images.

    classes: the labels to choose from. table: calibrated probabilities [N, C], of judged images by
    models that did not see them; [N, 0] with fewer than two classes. labels: [N], the indices of
    the given labels, or -1. judged: [N] bool, the labelled images with another one of their class.
    """

    classes: tuple[str, ...]
    table: np.ndarray
    labels: np.ndarray
    judged: np.ndarray

    def best(self, row: int, count: int = 3) -> list[tuple[str, float]]:
        """Return the most probable labels of an image, with their probabilities."""
        order = np.argsort(-self.table[row], kind="stable")[:count].tolist()
        return [(self.classes[c], float(self.table[row, c])) for c in order]

    def accuracy(self) -> Judged | None:
        """Return how many of the judged images are right; None if there are none."""
        rows = np.flatnonzero(self.judged)
        if not len(rows):
            return None
        right = int((self.table[rows].argmax(1) == self.labels[rows]).sum())
        return Judged(len(rows), right, *wilson(right, len(rows)))

    def of_class(self) -> dict[str, tuple[int, int]]:
        """Return for each class how many of its judged images are right, and their number."""
        answers = self.table.argmax(1) if self.table.shape[1] else self.labels
        counts = {}
        for c, label in enumerate(self.classes):
            rows = np.flatnonzero(self.judged & (self.labels == c))
            counts[label] = int((answers[rows] == c).sum()), len(rows)
        return counts

    def wrong(self) -> list[Wrong]:
        """Return the judged images that are wrong, the most probable answers first."""
        rows = np.flatnonzero(self.judged)
        if not len(rows):
            return []
        answers, best = self.table[rows].argmax(1), self.table[rows].max(1)
        wrong = [i for i in np.argsort(-best, kind="stable") if answers[i] != self.labels[rows[i]]]
        names, labels = self.classes, self.labels
        return [
            Wrong(int(rows[i]), names[labels[rows[i]]], names[answers[i]], float(best[i]))
            for i in wrong
        ]

    def confusions(self) -> list[tuple[str, str, int]]:
        """Return label, answer and the number of judged images, the most frequent first."""
        rows = np.flatnonzero(self.judged)
        if not len(rows):
            return []
        answers = self.table[rows].argmax(1)
        true, said, counts = confusions(self.labels[rows], answers, len(self.classes))
        names = self.classes
        return [
            (names[true[i]], names[said[i]], int(counts[i]))
            for i in np.argsort(-counts, kind="stable")
        ]

    def suspects(self) -> list[tuple[int, str, float]]:
        """Return the judged images whose label looks wrong, the worst first, each with a better
        label and its probability; by the rules of `suspects`."""
        rows = np.flatnonzero(self.judged)
        if not len(rows):
            return []
        table, labels = self.table[rows], self.labels[rows]
        better, margins = confident(table, labels), logit_margin(table, labels)
        wrong = [i for i in np.argsort(-margins) if better[i] not in (-1, labels[i])]
        return [(int(rows[i]), self.classes[better[i]], float(table[i, better[i]])) for i in wrong]


def fit(
    encoded: Encoded, backbone: Backbone, classes: Sequence[str], labels: Mapping[str, str]
) -> Quick:
    """Fit to the labels of the encoded images. classes: all labels. A catch-all class counts only
    once an image has it. Raises UserError for too many classes."""
    given = [labels.get(name, "") for name in encoded.names]
    used = {*given}
    known = tuple(label for label in classes if label in used or key(label) not in CATCH_ALL)
    place = {label: c for c, label in enumerate(known)}
    which = np.array([place.get(label, -1) for label in given], int)
    if len(known) < 2 or not len(given):
        nothing = np.zeros(len(given), bool)
        return Quick(known, np.empty((len(given), 0)), which, nothing)
    prompts = tuple(prompt_names(known).values())
    shot = [c for c in range(len(known)) if c in which]
    rows = np.flatnonzero(which >= 0)
    column = {c: i for i, c in enumerate(shot)}
    targets = np.array([column[int(c)] for c in which[rows]], int)
    x = encoded.unit[rows]
    head = _head(x, targets, len(shot))
    with torch.no_grad():
        # both for all classes, so that no name is encoded again when its class gets an image
        weights = zero_shot_weights(backbone, prompts, (*TEMPLATES, *METHOD.general))
        plain = zero_shot_weights(backbone, prompts, TEMPLATES)
        weights[shot] = plain[shot] + METHOD.head * torch.from_numpy(head).to(plain)
        features = torch.from_numpy(encoded.unit).float().to(backbone.device)
        logits = cosine_logits(backbone, features, weights).cpu().numpy().astype(float)
        scale = float(backbone.logit_scale) * METHOD.head
    judged = np.zeros(len(given), bool)
    if len(rows):
        change = held_out(x, targets, len(shot), encoded.together[rows]) - x @ head.T
        logits[np.ix_(rows, np.array(shot))] += scale * change
        judged[rows] = _others(targets, encoded.together[rows])
    table = _probabilities(logits, which, judged)
    return Quick(known, table, which, judged)


def _head(x: np.ndarray, targets: np.ndarray, classes: int) -> np.ndarray:
    """Return the weights [classes, e] of the regression; zeros for none."""
    if not len(x):
        return np.zeros((0, x.shape[1]))
    wide = torch.from_numpy(x).double()
    return ridge(wide, torch.from_numpy(targets), classes, METHOD.penalty).numpy()


def held_out(
    x: np.ndarray, targets: np.ndarray, classes: int, together: np.ndarray, penalty: float = -1.0
) -> np.ndarray:
    """Return the outputs [M, classes] of the ridge regression for its own rows, each as if fitted
    without the rows of its group.

    x: unit features [M, e]. targets: [M]. together: group numbers [M]. penalty: by default the
    method's.
    """
    x = x.astype(float)
    y = np.eye(classes)[targets] - 1 / classes
    penalty = METHOD.penalty if penalty < 0 else penalty
    smooth = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T).T  # [M, e]
    left = y - smooth @ (x.T @ y)  # residuals of all rows
    result: np.ndarray = np.empty_like(y)
    for rows in _groups_of(np.arange(len(x)), together):
        influence = smooth[rows] @ x[rows].T
        result[rows] = y[rows] - np.linalg.solve(np.eye(len(rows)) - influence, left[rows])
    return result


def _groups_of(rows: np.ndarray, together: np.ndarray) -> list[np.ndarray]:
    """Split rows by their groups. together: group numbers of all rows."""
    order = rows[np.argsort(together[rows], kind="stable")]
    return np.split(order, np.flatnonzero(np.diff(together[order])) + 1)


def _others(targets: np.ndarray, together: np.ndarray) -> np.ndarray:
    """Return whether each row's class has a row of another group: [M]."""
    groups = {(int(c), int(g)) for c, g in zip(targets, together, strict=True)}
    count = np.bincount([c for c, _ in groups], minlength=int(targets.max()) + 1)
    found: np.ndarray = count[targets] > 1
    return found


def _probabilities(logits: np.ndarray, labels: np.ndarray, judged: np.ndarray) -> np.ndarray:
    """Return probabilities [N, C], calibrated on the judged images."""
    heat = 1.0
    if judged.any():
        expected, spread = Expected()
        rows = np.flatnonzero(judged)
        heat = temperature(_softmax(logits[rows]), labels[rows], expected=expected, spread=spread)
    return _softmax(logits / heat)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    table: np.ndarray = powers / powers.sum(1, keepdims=True)
    return table


# Images beside others


def neighbours(encoded: Encoded, quick: Quick, row: int, count: int = 5) -> list[tuple[int, float]]:
    """Return the rows of the labelled images nearest to an image, near-duplicates included, with
    the cosines."""
    known = quick.labels >= 0
    known[row] = False
    rows = np.flatnonzero(known)
    if not len(rows):
        return []
    near = nearest(encoded.unit[[row]], encoded.unit[rows], count)
    places, cosines = near.rows[0].tolist(), near.cosines[0].tolist()
    return [(int(rows[i]), cosine) for i, cosine in zip(places, cosines, strict=True)]


def strangest(encoded: Encoded, quick: Quick, open_rows: Sequence[int]) -> list[tuple[int, float]]:
    """Order images by their strangeness (`Familiarity.strangeness`), the strangest first.

    It is relative to the judged images, each as seen by the others. open_rows: of images without
    label. Returns rows with their strangeness; none if no image is judged.
    """
    rows, judged = np.array(open_rows, int), np.flatnonzero(quick.judged)
    if not (len(rows) and len(judged)):
        return []
    own = Familiarity.of(quick.table[judged], _held_out_distances(encoded, quick)[judged], "folds")
    known = np.flatnonzero(quick.labels >= 0)
    shots = torch.from_numpy(encoded.unit[known])
    means = class_means(shots, quick.labels[known].tolist(), len(quick.classes))
    far = distances(torch.from_numpy(encoded.unit[rows]), means).numpy()
    strange = own.strangeness(quick.table[rows], far)
    order = np.argsort(-strange, kind="stable").tolist()
    return [(int(rows[i]), float(strange[i])) for i in order]


def _held_out_distances(encoded: Encoded, quick: Quick) -> np.ndarray:
    """Return 1 - the cosine of each labelled image to the nearest class mean, without the images of
    its group: [N]; 0 for images without label."""
    known = np.flatnonzero(quick.labels >= 0)
    unit, labels = encoded.unit[known].astype(float), quick.labels[known]
    sums = np.zeros((len(quick.classes), unit.shape[1]))
    np.add.at(sums, labels, unit)
    cosines = unit @ _unit(sums).T
    for rows in _groups_of(np.arange(len(known)), encoded.together[known]):
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


# Order


class Chosen(NamedTuple):
    """An image to label. row: of the encoded images. score: of the rule, None if drawn at random.
    copies: rows of its near-duplicates that can be labelled with it."""

    row: int
    score: float | None
    copies: tuple[int, ...]


def choose(
    encoded: Encoded, quick: Quick, open_rows: Sequence[int], order: str, n: int, seed: int = 1
) -> list[Chosen]:
    """Choose at most n images to label next, one of each group of near-duplicates.

    Args:
        encoded: All images.
        quick: What the labels say of them.
        open_rows: Rows of images that have no label and were not skipped.
        order: One of `ORDERS`.
        n: Number of images.
        seed: Seed of everything random.

    Raises:
        UserError: An unknown order, or one that needs classes without any.
    """
    if order not in ORDERS:
        raise UserError(f"unknown order {order!r:.80}{did_you_mean(order, ORDERS)}")
    if order == SURE and not quick.table.shape[1]:
        raise UserError("name at least two classes first: this order needs proposals")
    rows = np.array(open_rows, int)
    if not len(rows):
        return []
    if len(rows) > MOST_POOL and order != SURE:
        rows = np.sort(np.random.default_rng(seed).permutation(rows)[:MOST_POOL])
    together = encoded.together[rows]
    if order == SURE:
        picked, scores = _surest(quick.table[rows], together, n)
    else:
        known = encoded.unit[np.flatnonzero(quick.labels >= 0)]
        pool = Pool(encoded.unit[rows], known, seed)
        picked, scores = pick(RULES[order], pool, n, together)
    copies = _copies(encoded.together, open_rows)
    found = []
    for i, score in zip(picked, scores, strict=True):
        row = int(rows[i])
        others = tuple(r for r in copies[int(encoded.together[row])] if r != row)
        found.append(Chosen(row, None if order == RANDOM else float(score), others))
    return found


def _surest(table: np.ndarray, together: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows with the highest probabilities, one of each group, sorted by class."""
    best = table.max(1)
    order = np.argsort(-best, kind="stable")
    firsts = np.unique(together[order], return_index=True)[1]
    rows = order[np.sort(firsts)[:n]]
    rows = rows[np.argsort(table[rows].argmax(1), kind="stable")]
    return rows, best[rows]


def _copies(together: np.ndarray, open_rows: Sequence[int]) -> dict[int, list[int]]:
    copies: dict[int, list[int]] = {}
    for row in open_rows:
        copies.setdefault(int(together[row]), []).append(int(row))
    return copies
