"""Draw differences with their 95 % intervals, as the first figure of a study's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from rmadapter.bench.report.stats import over_sets
from rmadapter.support.html import COLOURS, canvas

SERIES = {"base": ("adapted", "o"), "novel": ("zero-shot", "s"), "HM": ("ink", "D")}
STEP = 0.24  # between the lines of a row


class Interval(NamedTuple):
    """A mean difference in points, and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


def interval(sets: Sequence[Sequence[float]]) -> Interval:
    """Return the interval of differences by data set and draw, as the tables of a study have it.
    Raises ValueError for fewer than three data sets."""
    half, mean = over_sets(sets).half, fmean(map(fmean, sets))
    if half is None:
        raise ValueError("an interval needs three data sets")
    return Interval(mean, mean - half, mean + half)


def forest(rows: Mapping[str, Mapping[str, Interval]], prefix: str, label: str) -> str:
    """Draw an SVG with a row for each comparison and a line for each of SERIES in it, with its
    mean. prefix: of the figure's ids. label: what a screen reader says."""
    with canvas(6.4, 0.5 + 0.62 * len(rows), prefix, label) as (axes, out):
        axes.axvline(0, color=COLOURS["ink"], linewidth=0.8)
        for place, differences in enumerate(rows.values()):
            for line, (name, (mean, low, high)) in enumerate(differences.items()):
                colour, marker = COLOURS[SERIES[name][0]], SERIES[name][1]
                y = place + STEP * (line - (len(differences) - 1) / 2)
                axes.hlines(y, low, high, color=colour, linewidth=1.4)
                axes.plot(mean, y, marker, color=colour, markersize=4, label=name * (place == 0))
                axes.annotate(
                    f"{mean:+.1f}", (high, y), (4, 0), textcoords="offset points", va="center",
                    fontsize=7, color=colour,
                )  # fmt: skip
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.margins(x=0.08)
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("points, with 95 % intervals over data sets")
        axes.legend(loc="upper center", bbox_to_anchor=(0.4, 1.12), ncols=3)
    return out[0]
