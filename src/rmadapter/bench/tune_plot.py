"""Every trial of a search as a line across its settings, the best ones in colour."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rmadapter.bench.search_space import Trial
from rmadapter.support.plots import COLOURS, canvas

SHOWN = 0.1  # share of the trials in colour


def coordinates(trials: Sequence[Trial], space: Mapping[str, Any]) -> str:
    """SVG: parallel coordinates of the trials with proposed settings (not the first); accuracy is
    on the last axis."""
    rows = sorted(
        (trial for trial in trials if trial.right and trial.params),
        key=lambda trial: trial.accuracy or 0,
    )
    names = [*space]
    with canvas(1.6 + 1.3 * len(names), 3.2, "tune", "Settings and accuracy of every trial") as (
        axes,
        out,
    ):
        columns = [_column([trial.params[name] for trial in rows], space[name]) for name in names]
        accuracies = np.array([trial.accuracy for trial in rows], dtype=float)
        low, high = (accuracies.min(), accuracies.max()) if len(rows) else (0.0, 100.0)
        columns.append((accuracies - low) / ((high - low) or 1))
        best = max(1, math.ceil(SHOWN * len(rows)))
        for place, heights in enumerate(zip(*columns, strict=True)):
            shown = place >= len(rows) - best
            colour = COLOURS["adapted" if shown else "faint"]
            axes.plot(heights, color=colour, linewidth=1.8 if shown else 0.8, zorder=1 + shown)
        axes.set(
            xticks=range(len(names) + 1),
            yticks=[],
            ylim=(-0.12, 1.12),
            xlim=(-0.3, len(names) + 0.3),
        )
        axes.set_xticklabels([*names, "accuracy, %"], rotation=20, ha="right")
        ends = [*(_ends(one) for one in space.values()), (f"{low:.1f}", f"{high:.1f}")]
        for place, pair in enumerate(ends):
            for text, height in zip(pair, (-0.04, 1.04), strict=True):
                axes.text(
                    place,
                    height,
                    text,
                    ha="center",
                    va="top" if height < 0 else "bottom",
                    fontsize=7,
                )
    return out[0]


def _column(values: Sequence[Any], one: Any) -> np.ndarray:
    """Heights [N], 0..1, of the values on one axis."""
    if hasattr(one, "choices"):
        return np.array([one.choices.index(value) for value in values]) / max(
            len(one.choices) - 1, 1
        )
    scale = math.log if one.log else float
    low, high = scale(one.low), scale(one.high)
    return np.array([(scale(value) - low) / ((high - low) or 1) for value in values])


def _ends(one: Any) -> tuple[str, str]:
    if hasattr(one, "choices"):
        return str(one.choices[0]), str(one.choices[-1])
    return f"{one.low:.3g}", f"{one.high:.3g}"
