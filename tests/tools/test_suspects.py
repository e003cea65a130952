"""tools/suspects.py: what it flips, its rules by hand, that it goes on, and what its lines say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import suspects

from rmadapter.artifacts.predictions import Nearest


def test_as_many_labels_are_flipped_as_was_asked_for_and_where_to() -> None:
    labels = np.repeat(np.arange(4), 50)
    found = suspects.flipped(labels, None, 10, 4, seed=1)
    wrong = found != labels
    assert wrong.sum() == 20
    assert (
        len({(a, b) for a, b in zip(labels[wrong], found[wrong], strict=True)}) > 6
    )  # to any other class
    assert (found == suspects.flipped(labels, None, 10, 4, seed=1)).all()
    assert (found != suspects.flipped(labels, None, 10, 4, seed=2)).any()
    target = np.array([1, 0, 3, 2])
    found = suspects.flipped(labels, target, 20, 4, seed=1)
    assert (found != labels).sum() == 40
    assert (found[found != labels] == target[labels[found != labels]]).all()


def test_what_a_class_is_taken_for() -> None:
    table = np.array([[0.6, 0.4, 0.0], [0.8, 0.0, 0.2], [0.1, 0.7, 0.2], [0.5, 0.0, 0.5]])
    assert suspects.confusable(table, np.array([0, 0, 1, 2])).tolist() == [1, 2, 0]


def test_scores_by_hand() -> None:
    table, given = np.array([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1]]), np.array([0, 0])
    assert suspects.self_confidence(table, given) == pytest.approx([0.1, 0.8])
    assert suspects.margin(table, given) == pytest.approx(
        [0.1, 0.75]
    )  # (1 + best other - given) / 2
    near = Nearest(
        np.array([[1, 2], [0, 2], [1, 0]]), np.array([[0.6, 0.2], [0.5, -0.5], [-np.inf, -np.inf]])
    )
    assert suspects.votes(near, np.array([0, 1, 0]), 2) == pytest.approx(
        np.array([[0.25, 0.75], [1, 0], [0, 0]])
    )
    ranked = suspects.score_rules(dict.fromkeys((*suspects.PROBES, "neighbours"), table), given)
    assert ranked["mean rank of probe 3 and neighbours, margin"].tolist() == [2, 4]


def test_precision_by_hand() -> None:
    wrong = np.array([True, False, True, False])
    assert suspects.precisions(np.array([4.0, 3, 2, 1]), wrong) == [round((1 + 2 / 3) / 2, 4), 0.5]
    assert suspects.precision_recall(np.array([True, True, False, False]), wrong) == [0.5, 0.5, 2]
    assert suspects.precision_recall(np.zeros(4, bool), wrong) == [0, 0, 0]


def test_cleanlab_scores_the_same_probabilities_alike() -> None:
    pytest.importorskip("cleanlab", reason="is licensed under the AGPL, and no dependency")
    rng = np.random.default_rng(0)
    table, given = rng.dirichlet(np.ones(4), 60), rng.integers(0, 4, 60)
    theirs, mask = suspects.cleanlab(table, given)
    assert theirs["self_confidence"] == pytest.approx(suspects.self_confidence(table, given))
    assert theirs["normalized_margin"] == pytest.approx(suspects.margin(table, given))
    assert mask is not None
    assert 0 < mask.sum() < 60


def line(data: str, kind: str, share: int, a: float, b: float) -> dict[str, Any]:
    scores = {"random": [0.1, 0.1], "a": [a, 0.5], "b": [b, 0.25], "cleanlab, a": [1.0, 1.0]}
    return {
        "data": data,
        "kind": kind,
        "share": share,
        "seed": 1,
        "scores": scores,
        "flags": {"a": [0.5, 0.25, 3]},
    }


def test_the_rule_is_chosen_on_some_sets_and_reported_on_others() -> None:
    kinds = [(kind, share) for kind in suspects.KINDS for share in suspects.SHARES]
    lines = [line("trashnet", *kind, 0.6, 0.4) for kind in kinds] + [
        line("dtd10", *kind, 0.2, 0.9) for kind in kinds
    ]
    lines += [line("neu_steel", *kind, 0.4, 0.9) for kind in kinds]
    assert suspects.best(lines) == "a"
    mean, half = suspects.difference(lines, "a", "b")
    assert mean == pytest.approx(-0.6)  # (0.2 - 0.9 + 0.4 - 0.9) / 2
    assert half == pytest.approx(12.706 * 0.1, rel=1e-3)  # t times 0.2 / sqrt(2) / sqrt(2)
    found = suspects.tables(lines)
    assert "| a | 0.600 | 0.300 | 0.300 | 0.300 | 0.300 | 0.300 | 0.300 |" in found
    assert "| dtd10 | 0.20, 0.50 |" in found
    assert "| a | 0.50, 0.25 |" in found
