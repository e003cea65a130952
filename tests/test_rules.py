"""Rules for wrong labels: by hand, and in the cases where they must find what is plain."""

from __future__ import annotations

import numpy as np
import pytest

from rmadapter.suspects import rules

TABLE = np.array([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
GIVEN = np.array([0, 0, 1, 2])


def test_scores_of_single_images_by_hand() -> None:
    assert rules.self_confidence(TABLE, GIVEN) == pytest.approx([0.1, 0.8, 0.7, 0.3])
    assert rules.margin(TABLE, GIVEN) == pytest.approx([0.1, 0.75, 0.6, 0.25])  # (1 + best other - given) / 2


def test_the_confident_class_by_hand() -> None:
    """Thresholds, the means over images of a label: (0.9 + 0.2) / 2, 0.3, 0.7."""
    assert rules.confident(TABLE, GIVEN).tolist() == [0, 1, 1, 2]
    unsure = np.vstack([TABLE, [[0.5, 0.2, 0.3]]])
    assert rules.confident(unsure, np.array([0, 0, 1, 2, 0]))[4] == -1  # 0.533, 0.3, 0.7: below all
    without = rules.confident(np.array([[0.4, 0.6], [0.3, 0.7]]), np.array([0, 0]))
    assert without.tolist() == [0, -1]  # a class without a label has no threshold


def test_adjusted_probabilities_order_images_by_how_far_they_are_below_the_usual() -> None:
    """A class that gets little of every image: 0.4 is as usual there, and 0.45 is far below the usual of the other."""
    table = np.array([[0.9, 0.1], [0.9, 0.1], [0.45, 0.55], [0.6, 0.4], [0.6, 0.4]])
    given = np.array([0, 0, 0, 1, 1])
    plain, found = rules.self_confidence(table, given), rules.self_confidence(rules.adjusted(table, given), given)
    assert plain.argmax() in (3, 4)
    assert found.argmax() == 2
    assert rules.adjusted(table, given).sum(1) == pytest.approx(np.ones(5))
    assert rules.adjusted(table, given).min() >= 0


def test_a_mean_of_places() -> None:
    assert rules.mean_rank(np.array([0.1, 0.9, 0.5]), np.array([3, 1, 2])) == pytest.approx([2 / 3, 2 / 3, 2 / 3])
    assert rules.mean_rank(np.array([5.0, 5.0, 9.0])) == pytest.approx([0.5, 0.5, 1])


def test_nearest_images_are_those_of_scikit_learn_without_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.neighbors import NearestNeighbors

    monkeypatch.setattr(rules, "CHUNK", 7)
    features = np.random.default_rng(0).normal(size=(30, 5))
    alone = np.arange(30)
    distances, rows = NearestNeighbors(n_neighbors=5, metric="cosine").fit(features).kneighbors(features)
    found = rules.nearest(features, alone, 4)
    assert (found.rows == rows[:, 1:]).all()
    assert found.cosines == pytest.approx(1 - distances[:, 1:])
    together = alone.copy()
    together[rows[0, 1]] = 0  # a copy of the first
    assert rules.nearest(features, together, 4).rows[0, 0] == rows[0, 2]
    assert np.isinf(rules.nearest(features, np.zeros(30), 4).cosines).all()


def test_votes_by_hand() -> None:
    near = rules.Near(np.array([[1, 2], [0, 2], [1, 0]]), np.array([[0.6, 0.2], [0.5, -0.5], [-np.inf, -np.inf]]))
    found = rules.votes(near, np.array([0, 1, 1]), 2)
    assert found == pytest.approx(np.array([[0, 1], [1, 0], [0, 0]]))
    assert rules.votes(near, np.array([0, 1, 0]), 2)[0] == pytest.approx([0.25, 0.75])
