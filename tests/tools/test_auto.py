"""tools/auto.py: what it writes, that it goes on where it was, and what follows from its lines, by
hand."""

from __future__ import annotations

from typing import Any

import auto
import numpy as np
import pytest

pytestmark = pytest.mark.real_plots


def line(
    data: str, name: str, right: list[int], test: float, shots: int = 4, seed: int = 1
) -> dict[str, Any]:
    bits = np.packbits(np.array(right, bool)).tobytes().hex()
    return {
        "data": data, "shots": shots, "seed": seed, "candidate": name, "images": len(right),
        "right": bits, "test": test,
    }  # fmt: skip


def test_what_auto_takes_and_how_far_it_is_behind() -> None:
    few, most, none = [1] * 5 + [0] * 15, [1] * 20, [0] * 20
    lines = [line("x", "a", few, 60), line("x", "b", most, 50), line("x", "c", none, 90)]
    lines += [line("y", "a", most, 60), line("y", "b", most, 70), line("y", "c", few, 40)]
    lines += [
        line("x", "a", most, 80, seed=2),
        line("x", "b", none, 60, seed=2),
        line("x", "c", none, 40, seed=2),
    ]
    lines += [line("z", "a", most, 80)]  # not all candidates: left out
    found = auto.accuracies(lines, ["a", "b", "c"])
    assert {task: values["auto"] for task, values in found.items()} == {
        ("x", 4, 1): 50, ("y", 4, 1): 60, ("x", 4, 2): 80
    }  # fmt: skip
    assert auto.accuracies(lines, ["b", "a", "c"])["y", 4, 1]["auto"] == 70
    points = auto.regrets(found)
    assert points["auto"] == {"x": 20, "y": 10}  # (90 - 50 + 0) / 2, 70 - 60
    assert points["a"] == {"x": 15, "y": 10}
    assert points[auto.BEST] == {"x": 0, "y": 0}
    assert auto.regrets(found, shots=2) == {}
