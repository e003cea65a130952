"""The figures of the bench report as SVG that takes its colours from the page, as `support.html`
does."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, cast

import numpy as np

from rmadapter.bench.report.format import Cell
from rmadapter.bench.report.groups import HALVES, Column, Group, slug
from rmadapter.bench.report.tables import average_title
from rmadapter.support.html import COLOURS, canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as MatplotlibFigure

# Mid tones that are readable on white and black (after Okabe and Ito, and Tol); markers distinguish
# the rest.
GREEN = "#009e73"
FIXED = {
    "zero-shot": (COLOURS["zero-shot"], "o"),
    "mma": (GREEN, "s"),
    "rmadapter": (COLOURS["adapted"], "D"),
}
OTHERS = ("#cc79a7", "#8f7a00", "#7f6fd6", "#5f8f9f", "#b5651d", "#3f9f3f", "#a05070")
MARKERS = "^vPXphd<>"
HM = HALVES[-1]
TRADE_OFF = "trade-off"  # how the name of that figure ends

Look = tuple[str, str]  # colour and marker
Interval: TypeAlias = "float | Sequence[Sequence[float]] | None"  # half its width, or both parts


class Figure(NamedTuple):
    """A figure.

    Attributes:
        name: Name of its file.
        title: Title for readers.
        svg: The drawing.
    """

    name: str
    title: str
    svg: str


def make_figures(group: Group) -> list[Figure]:
    """Draw the figures that fit the protocol, and the ranks; none where there is too little to
    draw."""
    if group.protocol == "few-shot":
        figures = _few_shot(group)
    elif group.protocol == "base-to-novel":
        figures = [*trade_off(group), *_cost(group)]
    elif group.protocol.startswith("ablation"):
        title = f"HM of each variant, {group.protocol.removeprefix('ablation-')}"
        figures = _intervals(group, HM, title, "HM, %")
    else:
        figures = []
    return [*figures, *_ranks(group)]


def _looks(group: Group) -> dict[str, Look]:
    """Assign each row a look, the same in every figure of a group."""
    rest = zip(itertools.cycle(OTHERS), itertools.cycle(MARKERS))
    return {
        label: FIXED.get(records[0].method.name) or next(rest)
        for label, records in group.rows.items()
    }


def _halves(group: Group) -> dict[str, list[Cell]]:
    """Return base, novel and HM of each row that has all of them, averaged over the data sets that
    every row has."""
    cells = {
        label: [column.cell(records, *group.common) for column in HALVES]
        for label, records in group.rows.items()
    }
    return {
        label: some for label, some in cells.items() if all(cell.value is not None for cell in some)
    }


def trade_off(group: Group) -> list[Figure]:
    """Draw base against novel accuracy."""
    points, looks = _halves(group), _looks(group)
    if len(points) < 2:
        return []
    name, title = f"{group.slug}-{TRADE_OFF}", "Base against novel accuracy"
    with canvas(4.2, 3.6, name, title) as (axes, out):
        for label, (base, novel, _) in points.items():
            _point(axes, base.number, novel, label, looks[label], _possible(base))
        axes.margins(0.12)
        _equal_hm(axes)
        axes.set(xlabel="base classes, %", ylabel="novel classes, %")
        _legend(axes)
    return [Figure(name, title, out[0])]


def _cost(group: Group) -> list[Figure]:
    """Draw HM against training time."""
    points, looks, costs = _halves(group), _looks(group), group.costs
    seconds = {
        label: median(record.seconds.get("train", 0) for record in costs[label]) for label in points
    }
    trained = [value for value in seconds.values() if value > 0]
    if len(trained) < 2:
        return []
    name, title = f"{group.slug}-cost", "HM against training time"
    with canvas(4.2, 3.6, name, title) as (axes, out):
        for label, (_, _, hm) in points.items():
            if seconds[label] > 0:
                _point(axes, seconds[label], hm, label, looks[label])
            else:  # such as zero-shot, which is not trained
                colour = looks[label][0]
                axes.axhline(hm.number, color=colour, linestyle="--", linewidth=1, label=label)
        if max(trained) > 10 * min(trained):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set(xlabel="training, s", ylabel="HM, %")
        _legend(axes)
    return [Figure(name, title, out[0])]


def _possible(accuracy: Cell) -> Interval:
    """Return both parts of an interval up to 0 and 100 %: that of two seeds may reach beyond."""
    if accuracy.interval is None:
        return None
    below, above = accuracy.number, 100 - accuracy.number
    return [[min(accuracy.interval, below)], [min(accuracy.interval, above)]]


def _point(
    axes: Axes,
    x: float,
    y: Cell,
    label: str,
    look: Look,
    interval: Interval = None,
    width: float = 1,
) -> None:
    """Draw a row's mark with the interval of y and, if there is one, of x, as lines of a width."""
    colour, marker = look
    axes.errorbar(
        x, y.number, _possible(y), interval, fmt="none", ecolor=colour, elinewidth=width, alpha=0.6
    )
    axes.plot(x, y.number, marker, color=colour, markersize=6.5, markeredgewidth=0, label=label)


def _equal_hm(axes: Axes) -> None:
    """Draw contours of equal HM behind the points."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    columns = np.linspace(max(left, 0.1), right, 100)
    x, y = np.meshgrid(columns, np.linspace(max(low, 0.1), high, 100))
    hm = 2 * x * y / (x + y)
    lines = axes.contour(x, y, hm, levels=6, colors=COLOURS["faint"], linewidths=0.8, zorder=1)
    axes.clabel(lines, fmt=lambda value: f"HM {value:g}", fontsize=7, colors=COLOURS["ink"])
    axes.grid(False)


def _legend(axes: Axes) -> None:
    """Put a legend below the axes, in as many columns as surely fit. The figure grows for every row
    but the first."""
    figure = cast("MatplotlibFigure", axes.figure)
    labels = axes.get_legend_handles_labels()[1]
    inches = 0.4 + 0.065 * max(map(len, labels), default=0)  # of a label in 9 points
    columns = max(1, min(3, int(figure.get_figwidth() / inches)))
    figure.set_figheight(figure.get_figheight() + 0.18 * (math.ceil(len(labels) / columns) - 1))
    figure.legend(loc="outside lower center", ncols=columns, handlelength=1.4, columnspacing=1.2)


def _few_shot(group: Group) -> list[Figure]:
    """Draw accuracy against shots with a band for the interval: the average first, then each data
    set. One number of shots is no curve: then there is one figure, of the average."""
    columns = group.columns
    if len(columns) == 1:
        shots = f"Accuracy with {columns[0].head} of each method"
        return _intervals(group, columns[0], shots, "accuracy, %")
    datasets, seeds = group.common
    figures = []
    if len(datasets) > 1 and seeds:
        title = average_title(datasets, seeds)
        figures.append(_shots_figure(group, "average", title, datasets, seeds))
    figures += [_shots_figure(group, name, name, [name], None) for name in group.datasets]
    return figures


def _shots_figure(
    group: Group, key: str, title: str, datasets: Sequence[str], seeds: Sequence[int] | None
) -> Figure:
    columns = {column.shots or 0: column for column in group.columns}
    # all images stand after the most shots
    places: list[float] = [shots or 2 * max(columns) or 1 for shots in columns]
    name, looks = f"{group.slug}-{slug(key)}-curve", _looks(group)
    with canvas(3.6, 3.1, name, f"Accuracy against shots, {title}") as (axes, out):
        for label, records in group.rows.items():
            cells = [column.cell(records, datasets, seeds) for column in columns.values()]
            _curve(axes, dict(zip(places, cells, strict=True)), looks[label], label)
        fewest = min(places)
        if max(places) >= 10 * fewest:  # logarithmic, as they span a decade
            axes.set_xscale("symlog", linthresh=fewest, linscale=0.5)
        axes.set_xticks(places, [str(shots or "all") for shots in columns])
        axes.set_xticks([], minor=True)
        axes.set(xlabel="images per class", ylabel="accuracy, %")
        _legend(axes)
    return Figure(name, title, out[0])


def _curve(axes: Axes, cells: Mapping[float, Cell], look: Look, label: str) -> None:
    """Draw a curve over x with a band for the intervals; a single figure, such as zero-shot's, is a
    horizontal line."""
    known = {x: cell for x, cell in cells.items() if cell.value is not None}
    colour, marker = look
    x = list(known)
    y = np.array([cell.number for cell in known.values()])
    half = np.array([cell.interval or 0 for cell in known.values()])
    if len(y) == 1:
        axes.axhline(y[0], color=colour, linestyle="--", label=label)
    elif len(y):
        axes.plot(x, y, color=colour, marker=marker, markersize=4.5, linewidth=1.6, label=label)
        axes.fill_between(x, y - half, y + half, color=colour, alpha=0.15, linewidth=0)


def _intervals(group: Group, column: Column, title: str, axis: str) -> list[Figure]:
    """Draw a figure of each row with a bar for its interval, over the data sets that every row has;
    columns from 0 would hide the differences."""
    cells = {label: column.cell(records, *group.common) for label, records in group.rows.items()}
    cells = {label: cell for label, cell in cells.items() if cell.value is not None}
    if len(cells) < 2:
        return []
    name = f"{group.slug}-bars"
    with canvas(4.2, 0.9 + 0.5 * len(cells), name, title) as (axes, out):
        for place, (label, cell) in enumerate(cells.items()):
            colour = COLOURS["adapted"] if label == group.reference else GREEN
            half = cell.interval or 0
            axes.barh(place, 2 * half, 0.34, cell.number - half, color=colour, alpha=0.25)
            axes.plot(cell.number, place, "o", color=colour, markersize=6)
            for text, x, side in ((label, 0, "left"), (cell.text, 1, "right")):
                above, where = (x, place - 0.3), ("axes fraction", "data")
                axes.annotate(text, above, xycoords=where, ha=side, va="bottom", fontsize=8)
        xlabel = f"{axis}; the band is the 95 % interval over seeds"
        axes.set(ylim=(len(cells) - 0.5, -0.85), xlabel=xlabel)
        axes.use_sticky_edges = False
        axes.margins(x=0.1)
        axes.set_yticks([])
        axes.grid(axis="y", visible=False)
    return [Figure(name, title, out[0])]


def _ranks(group: Group) -> list[Figure]:
    """Draw a critical-difference diagram of the figure that the finding is about: mean ranks with
    their intervals, and bars beside methods of which no two are shown to differ."""
    *_, column = group.columns
    ranks = group.ranks(column)
    if ranks is None:
        return []
    looks = _looks(group)
    k, (n, _) = len(ranks.labels), ranks.values.shape
    name, title = f"{group.slug}-ranks", f"Mean ranks in {column.head} over n = {n} data sets"
    with canvas(5.0, 1.1 + 0.25 * k, name, title) as (axes, out):
        for place, (label, mean) in enumerate(ranks.cells.items()):
            rank, half = mean.number, mean.interval or 0.0
            ends = [[min(half, rank - 1)], [min(half, k - rank)]]  # ranks are from 1 to k
            _point(axes, rank, Cell(place), label, looks[label], ends, width=1.2)
        right = max(axes.get_xlim()[1], k)
        ink = COLOURS["ink"]
        for number, (first, last) in enumerate(ranks.level(), 1):
            x = [right + 0.04 * k * number] * 2
            y = [first - 0.25, last + 0.25]
            axes.plot(x, y, color=ink, linewidth=2.5, solid_capstyle="butt")
        axes.set_yticks(range(k), ranks.labels)
        xlabel = "mean rank, 1 is the best;\na bar joins methods not shown to differ"
        axes.set(ylim=(k - 0.5, -0.5), xlabel=xlabel)
    return [Figure(name, title, out[0])]
