"""Proposals of labels: against the method that they are and refits without the judged images; and
the rules that doubt labels, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rmadapter.backbones import Backbone
from rmadapter.encoders import Grid, States
from rmadapter.methods.ridge import HEAD, Ridge, ridge
from rmadapter.methods.zero_shot import GENERAL_TEMPLATES
from rmadapter.prompts import cosine_logits, zero_shot_weights
from rmadapter.runs.labels import (
    Proposals,
    confident,
    doubted_labels,
    held_out,
    logit_margin,
    propose_labels,
)
from rmadapter.task import TEMPLATES
from rmadapter.training.contract import Known

CLASSES = ("cat", "dog", "owl")


def draw(backbone: Backbone, count: int) -> np.ndarray:
    """Draw unit features of images in three clusters, in turn."""
    rng = np.random.default_rng(0)
    centres = np.linalg.qr(rng.standard_normal((backbone.embedding_size, 3)))[0].T
    points = centres[np.arange(count) % 3] + 0.1 * rng.standard_normal((count, centres.shape[1]))
    unit: np.ndarray = points / np.linalg.norm(points, axis=1, keepdims=True)
    return unit


def labels_of(count: int, rows: list[int]) -> np.ndarray:
    labels = np.full(count, -1)
    labels[rows] = np.array(rows) % 3
    return labels


def states(unit: np.ndarray) -> States:
    empty = torch.empty(0)
    return States(None, Grid(None), torch.from_numpy(unit).float(), empty, empty)


def same_order(table: np.ndarray, logits: torch.Tensor) -> None:
    """Check that probabilities are those of logits divided by one temperature."""
    logs = np.log(table)
    logs -= logs[:, :1]
    wide = (logits - logits[:, :1]).double().numpy()
    heat = (wide[:, 1:] / logs[:, 1:]).mean()
    np.testing.assert_allclose(logs * heat, wide, rtol=1e-3, atol=1e-3)


def test_without_labels_it_is_zero_shot(tiny_clip: Backbone) -> None:
    unit = draw(tiny_clip, 6)
    found = propose_labels(tiny_clip, unit, CLASSES, labels_of(6, []), np.arange(6))
    weights = zero_shot_weights(tiny_clip, CLASSES, (*TEMPLATES, *GENERAL_TEMPLATES))
    logits = cosine_logits(tiny_clip, torch.from_numpy(unit).float(), weights)
    expected = logits.detach().softmax(-1).numpy()
    np.testing.assert_allclose(found.table, expected, rtol=1e-4, atol=1e-6)
    assert not found.judged.any()
    assert found.doubts(labels_of(6, [])) == []


def test_it_is_the_method_ridge(tiny_clip: Backbone) -> None:
    """On images without labels, also where a class is known by name alone."""
    unit = draw(tiny_clip, 12)
    for rows, known in (([0, 1, 2, 3, 4, 5], CLASSES), ([0, 1, 3, 4, 6], CLASSES[:2])):
        found = propose_labels(tiny_clip, unit, CLASSES, labels_of(12, rows), np.arange(12))
        targets = torch.tensor([row % 3 for row in rows])
        shots = torch.from_numpy(unit[rows]).float()
        head = ridge(shots, targets, len(known), Ridge().penalty)
        fitted = Ridge().restore(tiny_clip, Known(known), {HEAD: head})
        rest = [row for row in range(12) if row not in rows]
        same_order(found.table[rest], fitted.score(CLASSES)(states(unit[rest])))


def test_held_out_answers_are_those_of_refits() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((14, 6))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    targets = np.arange(14) % 3
    together = np.array([0, 1, 2, 3, 4, 5, 0, 1, 8, 9, 10, 0, 12, 13])
    found = held_out(x, targets, 3, together, 0.3)
    for row in range(14):
        kept = together != together[row]
        wide = torch.from_numpy(x[kept])
        head = ridge(wide, torch.from_numpy(targets[kept]), 3, 0.3).numpy()
        np.testing.assert_allclose(found[row], head @ x[row], rtol=1e-9, atol=1e-12)


def test_images_of_a_group_do_not_judge_each_other(tiny_clip: Backbone) -> None:
    groups = np.array([0, 1, 2, 0, 4, 5, 0])  # of the first class, all are near-duplicates
    labels = labels_of(7, [*range(7)])
    judged = propose_labels(tiny_clip, draw(tiny_clip, 7), CLASSES, labels, groups).judged
    assert judged.tolist() == [False, True, True, False, True, True, False]


# Rules


TABLE = np.array([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
LABELS = np.array([0, 0, 1, 2])


def test_logit_margin_by_hand() -> None:
    expected = np.log([0.1 / 0.9, 0.7 / 0.2, 0.5 / 0.3, 0.2 / 0.7])
    assert logit_margin(TABLE, LABELS) == pytest.approx(expected, abs=1e-4)
    assert np.isfinite(logit_margin(np.eye(2), np.array([0, 1]))).all()


def test_confident_class_by_hand() -> None:
    """Thresholds, the means over images of a label: (0.9 + 0.2) / 2, 0.3, 0.7."""
    assert confident(TABLE, LABELS).tolist() == [0, 1, 1, 2]
    unsure = np.vstack([TABLE, [[0.5, 0.2, 0.3]]])
    assert confident(unsure, np.array([0, 0, 1, 2, 0]))[4] == -1  # 0.533, 0.3, 0.7: below all
    without = confident(np.array([[0.4, 0.6], [0.3, 0.7]]), np.array([0, 0]))
    assert without.tolist() == [0, -1]  # a class without a label has no threshold


def test_doubts_are_of_judged_images_the_worst_first() -> None:
    """The third label is not the class that the image confidently belongs to."""
    [doubt] = doubted_labels(TABLE, LABELS)
    assert (doubt.row, doubt.better, doubt.probability) == (1, 1, 0.7)
    assert doubt.margin == pytest.approx(np.log(0.7 / 0.2), abs=1e-4)
    judged = np.array([False, True, False, True, True, True])
    table = np.vstack([TABLE[:1], TABLE[:1], TABLE[:1], TABLE[1:]])
    labels = np.array([-1, 0, -1, 0, 1, 2])
    assert Proposals(table, judged).doubts(labels) == [doubt._replace(row=3)]
    assert Proposals(table, np.zeros(6, bool)).doubts(labels) == []
