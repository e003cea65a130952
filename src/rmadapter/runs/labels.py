"""Propose labels for images without one, and doubt labels that answers of other models contradict.

Proposals are made in closed form, and so at once. The model is the ridge regression beside
zero-shot of methods/ridge.py: classes without images count by their names alone, and with no label
at all it is zero-shot. Each labelled image is judged by a model that saw neither it nor its
near-duplicates G:

    y_G - r_-G(x_G) = (I - H_GG)^-1 (y_G - r(x_G)),  H = X (X'X + penalty I)^-1 X'

r are the regression's outputs, r_-G those without the rows G. (Cook and Weisberg, Residuals and
Influence in Regression, 1982, section 2.2, for one row.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import softmax

from rmadapter.backbones import Backbone
from rmadapter.data.names import prompt_names
from rmadapter.methods.ridge import Ridge, ridge
from rmadapter.prompts import cosine_logits, zero_shot_weights
from rmadapter.runs.folds import fitted_temperature
from rmadapter.task import TEMPLATES

METHOD = Ridge()


class Doubt(NamedTuple):
    """A label that looks wrong.

    Attributes:
        row: Row of the image.
        better: Index of the class that it confidently belongs to.
        probability: Probability of that class.
        margin: How far its logit is above that of the label.
    """

    row: int
    better: int
    probability: float
    margin: float


def doubted_labels(table: np.ndarray, labels: np.ndarray) -> list[Doubt]:
    """Return the images whose label looks wrong, the worst first.

    Args:
        table: Probabilities [N, C] by models that did not see the image.
        labels: Indices of the given labels, [N].
    """
    better, margins = confident(table, labels), logit_margin(table, labels)
    wrong = [row for row in np.argsort(-margins) if better[row] not in (-1, labels[row])]
    return [
        Doubt(int(row), int(better[row]), float(table[row, better[row]]), float(margins[row]))
        for row in wrong
    ]


class Proposals(NamedTuple):
    """What the labels of some images say of all of them.

    Attributes:
        table: Calibrated probabilities [N, C], of judged images by models that did not see them.
        judged: The labelled images with another one of their class, [N] bool.
    """

    table: np.ndarray
    judged: np.ndarray

    def doubts(self, labels: np.ndarray) -> list[Doubt]:
        """Return the judged images whose label looks wrong, the worst first.

        Args:
            labels: Indices of the given labels, [N].
        """
        rows = np.flatnonzero(self.judged)
        if not len(rows):
            return []
        doubts = doubted_labels(self.table[rows], labels[rows])
        return [doubt._replace(row=int(rows[doubt.row])) for doubt in doubts]


def propose_labels(
    backbone: Backbone,
    features: np.ndarray,
    classes: Sequence[str],
    labels: np.ndarray,
    groups: np.ndarray,
) -> Proposals:
    """Return the probabilities of all classes for images of which some are labelled.

    Args:
        backbone: Backbone that encoded the images, with a text encoder.
        features: Features [N, e] of length 1, as `Gallery` has them.
        classes: The C classes as the user writes them, at least two.
        labels: Indices into the classes [N], -1 for an image without a label.
        groups: Group numbers [N]; images of one group never judge each other.

    Raises:
        UserError: A backbone without a text encoder, equal classes, or too many.
    """
    names = tuple(prompt_names(classes).values())
    rows = np.flatnonzero(labels >= 0)
    shown, targets = np.unique(labels[rows], return_inverse=True)
    known = features[rows].astype(float)
    judged = np.zeros(len(labels), bool)
    change = np.zeros((len(rows), len(shown)))
    with torch.no_grad():
        # both for all classes, so that no name is encoded again when its class gets an image
        weights = zero_shot_weights(backbone, names, (*TEMPLATES, *METHOD.general))
        plain = zero_shot_weights(backbone, names, TEMPLATES)
        if len(rows):
            x, which = torch.from_numpy(known), torch.from_numpy(targets)
            head = ridge(x, which, len(shown), METHOD.penalty)
            weights[shown] = plain[shown] + METHOD.head * head.to(plain)
            outputs = held_out(known, targets, len(shown), groups[rows], METHOD.penalty)
            change = outputs - (x @ head.T).numpy()
            judged[rows] = _have_others(targets, groups[rows])
        images = torch.from_numpy(features).float().to(backbone.device)
        logits = cosine_logits(backbone, images, weights).cpu().numpy().astype(float)
    logits[np.ix_(rows, shown)] += float(backbone.logit_scale) * METHOD.head * change
    heat = 1.0
    if judged.any():
        table = softmax(logits[judged], axis=1)
        heat = fitted_temperature(table, labels[judged], groups[judged])
    return Proposals(softmax(logits / heat, axis=1), judged)


def held_out(
    x: np.ndarray, targets: np.ndarray, classes: int, groups: np.ndarray, penalty: float
) -> np.ndarray:
    """Return the outputs [M, C] of the ridge regression for its own rows, each as if fitted without
    the rows of its group.

    Args:
        x: Features [M, e] of length 1.
        targets: Indices of the classes, [M].
        classes: Number of classes.
        groups: Group numbers, [M].
        penalty: As for `Ridge`.
    """
    y = np.eye(classes)[targets] - 1 / classes
    smooth = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T).T  # [M, e]
    residuals = y - smooth @ (x.T @ y)
    result: np.ndarray = np.empty_like(y)
    order = np.argsort(groups, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        influence = smooth[rows] @ x[rows].T
        result[rows] = y[rows] - np.linalg.solve(np.eye(len(rows)) - influence, residuals[rows])
    return result


def _have_others(targets: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return whether each row's class has a row of another group: [M]."""
    of_groups = np.unique(np.stack([targets, groups]), axis=1)[0]
    others: np.ndarray = np.bincount(of_groups)[targets] > 1
    return others


# Rules for labels: answers [N, C] of models that did not learn from the image


def logit_margin(table: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return how far the logit of the best other class is above that of the label, [N].

    After Pleiss et al., NeurIPS 2020, arXiv 2001.10528, who average over a training.

    Args:
        table: Probabilities [N, C], to which 1e-6 is added.
        labels: Indices of the given labels, [N].
    """
    logits = np.log(table + 1e-6)
    rows = np.arange(len(labels))
    label_logits = logits[rows, labels]
    logits[rows, labels] = -np.inf
    margins: np.ndarray = logits.max(1) - label_logits
    return margins


def confident(table: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the class [N] that each image confidently belongs to, or -1 for none.

    It is the most probable of the classes whose probability reaches its mean over images with that
    label (equation 1 of Northcutt et al., JAIR 70, 2021, arXiv 1911.00068). A label is suspicious
    if this is another class, off the diagonal of the confident joint.

    Args:
        table: As for `logit_margin`.
        labels: As for `logit_margin`.
    """
    classes = table.shape[1]
    counts = np.bincount(labels, minlength=classes)
    of_label = table[np.arange(len(labels)), labels]
    sums = np.bincount(labels, weights=of_label, minlength=classes)
    thresholds = np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)
    # a mean of equal numbers may round up
    above = np.where(table >= thresholds - 1e-9, table, -1.0)
    return np.where(above.max(1) >= 0, above.argmax(1), -1)
