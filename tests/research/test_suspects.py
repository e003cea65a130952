"""suspects.py: flipped labels, scores and precisions by hand, and the chosen rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import suspects

from rmadapter.artifacts.predictions import Nearest


def test_a_share_of_labels_is_flipped_to_any_class_or_to_the_confusable_one() -> None:
    labels = np.repeat(np.arange(4), 50)
    any_class = suspects.flipped(labels, None, 10, 4, seed=1)
    wrong = any_class != labels
    assert wrong.sum() == 20
    assert len({*zip(labels[wrong], any_class[wrong], strict=True)}) > 6
    assert (any_class == suspects.flipped(labels, None, 10, 4, seed=1)).all()
    assert (any_class != suspects.flipped(labels, None, 10, 4, seed=2)).any()
    target = np.array([1, 0, 3, 2])
    confusable = suspects.flipped(labels, target, 20, 4, seed=1)
    wrong = confusable != labels
    assert wrong.sum() == 40
    assert (confusable[wrong] == target[labels[wrong]]).all()


def test_the_confusable_class_has_the_largest_mean_probability_of_the_others() -> None:
    table = np.array([[0.6, 0.4, 0.0], [0.8, 0.0, 0.2], [0.1, 0.7, 0.2], [0.5, 0.0, 0.5]])
    assert suspects.confusable(table, np.array([0, 0, 1, 2])).tolist() == [1, 2, 0]


def test_scores_by_hand() -> None:
    table, labels = np.array([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1]]), np.array([0, 0])
    assert suspects.self_confidence(table, labels) == pytest.approx([0.1, 0.8])
    # (1 + best other - own) / 2
    assert suspects.margin(table, labels) == pytest.approx([0.1, 0.75])
    cosines = np.array([[0.6, 0.2], [0.5, -0.5], [-np.inf, -np.inf]])
    near = Nearest(np.array([[1, 2], [0, 2], [1, 0]]), cosines)
    votes = suspects.votes(near, np.array([0, 1, 0]), 2)
    assert votes == pytest.approx(np.array([[0.25, 0.75], [1, 0], [0, 0]]))
    ranked = suspects.score_rules(dict.fromkeys((*suspects.PROBES, "neighbours"), table), labels)
    assert ranked["mean rank of probe 3 and neighbours, margin"].tolist() == [2, 4]


def test_precision_by_hand() -> None:
    wrong = np.array([True, False, True, False])
    assert suspects.precisions(np.array([4.0, 3, 2, 1]), wrong) == [round((1 + 2 / 3) / 2, 4), 0.5]
    assert suspects.precision_recall(np.array([True, True, False, False]), wrong) == [0.5, 0.5, 2]
    assert suspects.precision_recall(np.zeros(4, bool), wrong) == [0, 0, 0]


def test_cleanlab_scores_the_same_probabilities_alike() -> None:
    pytest.importorskip("cleanlab", reason="is licensed under the AGPL, and no dependency")
    rng = np.random.default_rng(0)
    table, labels = rng.dirichlet(np.ones(4), 60), rng.integers(0, 4, 60)
    theirs, mask = suspects.cleanlab(table, labels)
    assert theirs["self_confidence"] == pytest.approx(suspects.self_confidence(table, labels))
    assert theirs["normalized_margin"] == pytest.approx(suspects.margin(table, labels))
    assert mask is not None
    assert 0 < mask.sum() < 60


def lines_of(data: str, a: float, b: float) -> list[dict[str, Any]]:
    scores = {"random": [0.1, 0.1], "a": [a, 0.5], "b": [b, 0.25], "cleanlab, a": [1.0, 1.0]}
    common = {"data": data, "seed": 1, "scores": scores, "flags": {"a": [0.5, 0.25, 3]}}
    kinds = [(kind, share) for kind in suspects.KINDS for share in suspects.SHARES]
    return [{**common, "kind": kind, "share": share} for kind, share in kinds]


def test_the_rule_is_chosen_on_some_sets_and_reported_on_others() -> None:
    lines = lines_of("trashnet", 0.6, 0.4) + lines_of("dtd10", 0.2, 0.9)
    lines += lines_of("neu_steel", 0.4, 0.9)
    assert suspects.best(lines) == "a"
    mean, half = suspects.difference(lines, "a", "b")
    assert mean == pytest.approx(-0.6)  # (0.2 - 0.9 + 0.4 - 0.9) / 2
    assert half == pytest.approx(12.706 * 0.1, rel=1e-3)  # t times 0.2 / sqrt(2) / sqrt(2)
    tables = suspects.tables(lines)
    assert "| a | 0.600 | 0.300 | 0.300 | 0.300 | 0.300 | 0.300 | 0.300 |" in tables
    assert "| dtd10 | 0.20, 0.50 |" in tables
    assert "| a | 0.50, 0.25 |" in tables
