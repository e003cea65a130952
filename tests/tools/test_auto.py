"""tools/auto.py: the choice and its regret, by hand."""

from __future__ import annotations

from typing import Any

import auto
import numpy as np

FEW, MOST, NONE = [1] * 5 + [0] * 15, [1] * 20, [0] * 20


def task(data: str, seed: int, **candidates: tuple[list[int], float]) -> list[dict[str, Any]]:
    """Return the lines of candidates by the right answers on folds and the test accuracy."""
    common = {"data": data, "shots": 4, "seed": seed, "images": 20}
    return [
        {**common, "candidate": name, "right": np.packbits(right).tobytes().hex(), "test": test}
        for name, (right, test) in candidates.items()
    ]


LINES = [
    *task("x", 1, a=(FEW, 60), b=(MOST, 50), c=(NONE, 90)),
    *task("y", 1, a=(MOST, 60), b=(MOST, 70), c=(FEW, 40)),
    *task("x", 2, a=(MOST, 80), b=(NONE, 60), c=(NONE, 40)),
    *task("z", 1, a=(MOST, 80)),  # lacks candidates, so it is left out
]


def test_auto_takes_the_first_of_the_best_candidates() -> None:
    chosen = auto.accuracies(LINES, ["a", "b", "c"])
    assert {task: values["auto"] for task, values in chosen.items()} == {
        ("x", 4, 1): 50, ("y", 4, 1): 60, ("x", 4, 2): 80
    }  # fmt: skip
    assert auto.accuracies(LINES, ["b", "a", "c"])["y", 4, 1]["auto"] == 70


def test_regret_is_the_distance_to_the_best_of_a_task_averaged_over_a_set() -> None:
    points = auto.regrets(auto.accuracies(LINES, ["a", "b", "c"]))
    assert points["auto"] == {"x": 20, "y": 10}  # (90 - 50 + 0) / 2, 70 - 60
    assert points["a"] == {"x": 15, "y": 10}
    assert points[auto.BEST] == {"x": 0, "y": 0}
    assert auto.regrets(auto.accuracies(LINES, ["a", "b", "c"]), shots=2) == {}
