"""learning.py and frontier.py: what the figures of the registered study average."""

from __future__ import annotations

from typing import Any

import frontier
import learning
import numpy as np
import pytest
from studies import CHOOSE_ALL, REPORT_ALL

pytestmark = pytest.mark.real_plots

SETS = learning.sets_of(REPORT_ALL)


def line(data: str, method: str, test: float, shots: int = 4, **more: Any) -> dict[str, Any]:
    digest = f"{data} {shots}"
    common = {"data": data, "method": method, "test": test, "shots": shots, "seed": 1}
    return {**common, "split_digest": digest, **more}


def whole(shots: int = 4) -> list[dict[str, Any]]:
    """Return a line of each method on each set; a method is as many points behind the best as its
    place says, give or take the place of the set."""
    sets = learning.sets_of((*CHOOSE_ALL, *REPORT_ALL))
    return [
        line(data, method, 60 - behind * (method != learning.BEST) - i % 3, shots, classes=10)
        for behind, method in enumerate(learning.METHODS)
        for i, data in enumerate(sets)
    ]


def test_a_task_counts_once() -> None:
    lines = [line("food", "ridge", 50), line("food", "zero-shot", 20)]
    more = [line("food", "ridge", 50), {**line("food", "ridge", 9), "seed": 2}]
    assert learning.merged([lines, more, [line("food", "clap", 1)]]) == lines


def test_lines_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="two accuracies of ridge"):
        learning.merged([[line("food", "ridge", 50)], [line("food", "ridge", 51)]])
    with pytest.raises(ValueError, match="different shots"):
        learning.merged([[line("food", "ridge", 50), line("food", "mma", 1, split_digest="?")]])


def test_a_mean_needs_all_sets() -> None:
    lines = [line(data, "ridge", float(i)) for i, data in enumerate(SETS)]
    assert learning.means(lines, SETS)["ridge"] == {4: np.mean(range(len(SETS)))}
    assert learning.means(lines[1:], SETS)["ridge"] == {}
    assert "| chance | – |" in learning.accuracy_table(lines, SETS)
    assert "| chance | 10.0 |" in learning.accuracy_table(whole(), SETS)


def test_methods_are_tested_once_all_runs_are_there() -> None:
    lines = whole()
    name = "learning, reporting: 4 shots"
    assert name not in learning.tables(lines[1:])
    rows = learning.tables(lines)[name].splitlines()[2:]
    assert len(rows) == len(learning.METHODS) - 1
    behind = learning.METHODS.index("mmrl")
    assert f"| mmrl - rmadapter-plus | -{behind}.0 |" in "\n".join(rows)


def test_the_curves_end_with_their_means() -> None:
    lines = whole()
    svg = learning.drawn(lines)
    for name, (label, *_) in learning.CURVES.items():
        assert f">{label}, 4: {learning.means(lines, SETS)[name][4]:.1f}</text>" in svg


def kept(data: str, variant: str, base: float, novel: float, draw: int = 1) -> dict[str, Any]:
    points = [[20, 30, 0], [base, novel, 0]]
    return {"data": data, "draw": draw, "shots": 4, "variant": variant, "frontier": points}


def test_a_set_counts_once_in_a_frontier() -> None:
    lines = [
        kept(*run)
        for name in frontier.CURVES
        for run in [
            ("pacs/photo", name, 80, 40, 1),
            ("pacs/sketch", name, 60, 20, 1),
            ("food", name, 50, 20, 1),
            ("rooms", name, 0, 0, 1),  # for choosing
        ]
    ]
    found = frontier.frontiers(lines, 4)
    assert found["both"].tolist() == [[20, 30], [60, 25]]
    assert ">RMAdapter 60.0 / 25.0</text>" in frontier.drawn(lines)
    with pytest.raises(ValueError, match="different draws"):
        frontier.frontiers(lines[1:], 4)
