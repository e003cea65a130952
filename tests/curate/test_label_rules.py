"""Rules for wrong labels: by hand, and in the cases where they must find what is plain."""

from __future__ import annotations

import numpy as np
import pytest

from rmadapter.curate import label_rules as rules

TABLE = np.array([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
GIVEN = np.array([0, 0, 1, 2])


def test_the_logit_margin_by_hand() -> None:
    expected = np.log([0.1 / 0.9, 0.7 / 0.2, 0.5 / 0.3, 0.2 / 0.7])
    assert rules.logit_margin(TABLE, GIVEN) == pytest.approx(expected, abs=1e-4)
    assert np.isfinite(rules.logit_margin(np.eye(2), np.array([0, 1]))).all()


def test_the_confident_class_by_hand() -> None:
    """Thresholds, the means over images of a label: (0.9 + 0.2) / 2, 0.3, 0.7."""
    assert rules.confident(TABLE, GIVEN).tolist() == [0, 1, 1, 2]
    unsure = np.vstack([TABLE, [[0.5, 0.2, 0.3]]])
    assert rules.confident(unsure, np.array([0, 0, 1, 2, 0]))[4] == -1  # 0.533, 0.3, 0.7: below all
    without = rules.confident(np.array([[0.4, 0.6], [0.3, 0.7]]), np.array([0, 0]))
    assert without.tolist() == [0, -1]  # a class without a label has no threshold


def test_nearest_images_are_those_of_scikit_learn_without_copies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sklearn.neighbors import NearestNeighbors

    monkeypatch.setattr(rules, "CHUNK", 7)
    features = np.random.default_rng(0).normal(size=(30, 5))
    alone = np.arange(30)
    distances, rows = (
        NearestNeighbors(n_neighbors=5, metric="cosine").fit(features).kneighbors(features)
    )
    found = rules.nearest(features, alone, 4)
    assert (found.rows == rows[:, 1:]).all()
    assert found.cosines == pytest.approx(1 - distances[:, 1:])
    together = alone.copy()
    together[rows[0, 1]] = 0  # a copy of the first
    assert rules.nearest(features, together, 4).rows[0, 0] == rows[0, 2]
    assert np.isinf(rules.nearest(features, np.zeros(30), 4).cosines).all()
