"""Parallel coordinates: each trial at the heights of its settings."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

optuna = pytest.importorskip("optuna", reason="needs the extra ray: `make scale` installs it")
from rmadapter.bench.search_space import Trial  # noqa: E402
from rmadapter.bench.tune_plot import _column, coordinates  # noqa: E402

pytestmark = pytest.mark.real_plots

SPACE = {
    "rate": optuna.distributions.FloatDistribution(0.01, 1, log=True),
    "share": optuna.distributions.CategoricalDistribution(("down", "up", "none")),
}


def test_heights() -> None:
    assert np.allclose(_column([0.01, 0.1, 1], SPACE["rate"]), [0, 0.5, 1])
    assert np.allclose(_column(["none", "down", "up"], SPACE["share"]), [1, 0, 0.5])
    assert np.allclose(_column([2, 3], optuna.distributions.IntDistribution(1, 3)), [0.5, 1])
    assert _column([7], optuna.distributions.IntDistribution(7, 7)).tolist() == [0]


def test_a_line_for_each_trial_that_chose_its_settings() -> None:
    trials = [
        Trial(0, {}, "11"),
        Trial(1, {"rate": 0.1, "share": "up"}, "10"),
        Trial(2, {"rate": 1.0, "share": "up"}),
    ]
    picture = coordinates(trials, SPACE)
    ElementTree.fromstring(picture)
    assert all(
        f">{word}<" in picture for word in ("rate", "share", "accuracy, %", "down", "none", "50.0")
    )
    more = coordinates([*trials, Trial(3, {"rate": 0.5, "share": "down"}, "11")], SPACE)
    assert more.count("<path") > picture.count("<path")
    ElementTree.fromstring(coordinates(trials[:1], SPACE))  # nothing to draw yet
