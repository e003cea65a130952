"""The figures of the bench's report as SVG that takes its colours from the page, in the look of `rmadapter.plots`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rmadapter.bench.records import Group, Run, complete, entries
from rmadapter.bench.render import Cell
from rmadapter.bench.statistics import metric, summary
from rmadapter.bench.tables import average_title, by_shots, reference
from rmadapter.plots import COLOURS, _canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Mid tones that are readable on white and on black (after Okabe and Ito, and Tol); markers tell the rest apart.
GREEN = "#009e73"
FIXED = {"zero-shot": (COLOURS["zero-shot"], "o"), "mma": (GREEN, "s"), "rmadapter": (COLOURS["adapted"], "D")}
OTHERS = ("#cc79a7", "#8f7a00", "#7f6fd6", "#5f8f9f", "#b5651d", "#3f9f3f", "#a05070")
MARKERS = "^vPXphd<>"
NAMES = {"base": "base", "novel": "novel", "hm": "HM"}


class Figure(NamedTuple):
    name: str  # of its file
    title: str
    svg: str


def make_figures(group: Group) -> list[Figure]:
    """The figures that fit the protocol; none where there is too little to draw."""
    if group.protocol == "few-shot":
        return _few_shot(group)
    if group.protocol == "base-to-novel":
        return [*_trade_off(group), *_cost(group)]
    if group.protocol.startswith("ablation"):
        return _ablation(group)
    return _sensitivity(group) if group.protocol == "sensitivity" else []


def _looks(group: Group) -> dict[str, tuple[str, str]]:
    """Colour and marker of each row: the same in every figure of a group."""
    rest = zip(itertools.cycle(OTHERS), itertools.cycle(MARKERS))
    return {label: FIXED.get(runs[0].method) or next(rest) for label, runs in entries(group.runs).items()}


def _trade_off(group: Group) -> list[Figure]:
    """Base against novel accuracy, averaged over the data sets that every row has; curves of equal HM behind."""
    rows = entries(group.runs)
    datasets, seeds = complete(rows)
    points = {}
    for label, runs in rows.items():
        base, novel = (summary(runs, metric(half), datasets, seeds) for half in ("base", "novel"))
        if base.value is not None and novel.value is not None:
            points[label] = base, novel
    if len(points) < 2:
        return []
    name, title = f"{group.slug}-trade-off", "Base against novel accuracy"
    with _canvas(4.2, 3.6, name, title) as (axes, out):
        looks = _looks(group)
        for label, (base, novel) in points.items():
            _point(axes, base.number, novel, label, looks[label], base.interval)
        axes.margins(0.12)
        _equal_hm(axes)
        axes.set(xlabel="base classes, %", ylabel="novel classes, %")
        _legend(axes)
    return [Figure(name, title, out[0])]


def _cost(group: Group) -> list[Figure]:
    """HM, averaged over the data sets that every row has, against the median training time of a run."""
    rows = entries(group.runs)
    datasets, seeds = complete(rows)
    points = {}
    for label, runs in rows.items():
        hm = summary(runs, metric("hm"), datasets, seeds)
        seconds = median(run.seconds.get("train", 0) for run in runs)
        if hm.value is not None and (seconds > 0 or runs[0].method in FIXED):
            points[label] = hm, seconds
    trained = [seconds for _, seconds in points.values() if seconds > 0]
    if len(trained) < 2:
        return []
    name, title = f"{group.slug}-cost", "HM against training time"
    with _canvas(4.2, 3.6, name, title) as (axes, out):
        looks = _looks(group)
        for label, (hm, seconds) in points.items():
            if seconds > 0:
                _point(axes, seconds, hm, label, looks[label])
            else:  # zero-shot, which takes no time
                axes.axhline(hm.number, color=looks[label][0], linestyle="--", linewidth=1, label=label)
        if max(trained) > 10 * min(trained):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set(xlabel="training, s", ylabel="HM, %")
        _legend(axes)
    return [Figure(name, title, out[0])]


def _point(axes: Axes, x: float, y: Cell, label: str, look: tuple[str, str], interval: float | None = None) -> None:
    """A method's mark with the intervals of y and, if there is one, of x."""
    colour, marker = look
    axes.errorbar(x, y.number, y.interval, interval, fmt="none", ecolor=colour, elinewidth=1, alpha=0.6)
    axes.plot(x, y.number, marker, color=colour, markersize=6.5, markeredgewidth=0, label=label)


def _equal_hm(axes: Axes) -> None:
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    x, y = np.meshgrid(np.linspace(max(left, 0.1), right, 100), np.linspace(max(low, 0.1), high, 100))
    lines = axes.contour(x, y, 2 * x * y / (x + y), levels=6, colors=COLOURS["faint"], linewidths=0.8, zorder=1)
    axes.clabel(lines, fmt=lambda value: f"HM {value:g}", fontsize=7, colors=COLOURS["ink"])
    axes.grid(False)


def _legend(axes: Axes) -> None:
    """Below the axes, in as many columns as fit the figure, which grows by every row but the first."""
    figure: Any = axes.figure
    sizes = [len(label) for label in axes.get_legend_handles_labels()[1]]

    def width(columns: int) -> float:
        """Inches, in 9 points; a legend fills one column after the other."""
        rows = math.ceil(len(sizes) / columns)
        return sum(0.4 + 0.065 * max(sizes[i : i + rows]) for i in range(0, len(sizes), rows))

    columns = next((n for n in (3, 2) if width(n) <= figure.get_figwidth()), 1)
    figure.set_figheight(figure.get_figheight() + 0.18 * (math.ceil(len(sizes) / columns) - 1))
    figure.legend(loc="outside lower center", ncols=columns, handlelength=1.4, columnspacing=1.2)


def _few_shot(group: Group) -> list[Figure]:
    """Accuracy against shots with a band for the interval: the average first, then each data set."""
    cells = by_shots(group)
    datasets, seeds = complete(cells)
    figures = []
    parts: list[tuple[str, str, list[str], list[int] | None]] = [(d, d, [d], None) for d in group.datasets]
    if len(datasets) > 1 and seeds:
        parts.insert(0, ("average", average_title(datasets, seeds), datasets, seeds))
    for key, title, sets, fixed in parts:
        name = f"{group.slug}-{key.replace('/', '-')}-curve"
        with _canvas(3.6, 3.1, name, f"Accuracy against shots, {title}") as (axes, out):
            _curves(axes, group, cells, sets, fixed)
        figures.append(Figure(name, title, out[0]))
    return figures


def _curves(
    axes: Axes, group: Group, cells: dict[tuple[str, int], list[Run]], datasets: list[str], seeds: Sequence[int] | None
) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    looks = _looks(group)
    shots = sorted({k for _, k in cells})
    for label, (colour, marker) in looks.items():
        line: dict[int, Cell] = {}
        for k in shots:
            runs = [run for run in cells.get((label, k), []) if run.dataset in datasets]
            used = sorted({run.seed for run in runs}) if seeds is None else seeds
            cell = summary(runs, metric("accuracy"), datasets, used)
            line |= {k: cell} if cell.value is not None else {}
        if len(line) == 1:  # such as zero-shot, which needs no images
            axes.axhline(next(iter(line.values())).number, color=colour, linestyle="--", label=label)
        elif line:
            _band(axes, list(line), list(line.values()), colour, marker, label)
    axes.set_xscale("symlog", base=2, linthresh=1)
    axes.xaxis.set_major_locator(FixedLocator(shots))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(xlabel="images per class", ylabel="accuracy, %")
    _legend(axes)


def _band(axes: Axes, x: Sequence[float], cells: Sequence[Cell], colour: str, marker: str, label: str) -> None:
    y = np.array([cell.number for cell in cells])
    half = np.array([cell.interval or 0 for cell in cells])
    axes.plot(x, y, color=colour, marker=marker, markersize=4.5, linewidth=1.6, label=label)
    if half.any():
        axes.fill_between(x, y - half, y + half, color=colour, alpha=0.15, linewidth=0)


def _ablation(group: Group) -> list[Figure]:
    """HM of each variant with a bar for its interval; columns from 0 would hide the differences."""
    rows = entries(group.runs)
    datasets, seeds = complete(rows)
    cells = {label: summary(runs, metric("hm"), datasets, seeds) for label, runs in rows.items()}
    cells = {label: cell for label, cell in cells.items() if cell.value is not None}
    if len(cells) < 2:
        return []
    name, title = f"{group.slug}-bars", f"HM of each variant, {group.protocol.removeprefix('ablation-')}"
    full = reference(rows)
    with _canvas(4.2, 0.9 + 0.5 * len(cells), name, title) as (axes, out):
        for place, (label, cell) in enumerate(cells.items()):
            colour = COLOURS["adapted"] if label == full else GREEN
            half = cell.interval or 0
            axes.barh(place, 2 * half, 0.34, cell.number - half, color=colour, alpha=0.25)
            axes.plot(cell.number, place, "o", color=colour, markersize=6)
            for text, x, side in ((label, 0, "left"), (cell.text, 1, "right")):
                above = (x, place - 0.3)
                axes.annotate(text, above, xycoords=("axes fraction", "data"), ha=side, va="bottom", fontsize=8)
        axes.set(ylim=(len(cells) - 0.5, -0.85), xlabel="HM, %; the band is the 95 % interval over seeds")
        axes.use_sticky_edges = False
        axes.margins(x=0.1)
        axes.set_yticks([])
        axes.grid(axis="y", visible=False)
    return [Figure(name, title, out[0])]


def _sensitivity(group: Group) -> list[Figure]:
    """Base, novel and HM against the value of the field that varies."""
    rows = entries(group.runs)
    datasets, seeds = complete(rows)
    values = [runs[0].value for runs in rows.values()]
    numeric = all(isinstance(v, (int, float)) for v in values)
    places = [float(v) for v in values] if numeric else [float(i) for i in range(len(values))]
    if len(places) < 2:
        return []
    name, title = f"{group.slug}-line", f"Accuracy against {group.axis}"
    colours = (COLOURS["zero-shot"], GREEN, COLOURS["adapted"])
    with _canvas(3.6, 3.1, name, title) as (axes, out):
        for (key, shown), colour, marker in zip(NAMES.items(), colours, "osD", strict=True):
            cells = [summary(runs, metric(key), datasets, seeds) for runs in rows.values()]
            if all(cell.value is not None for cell in cells):
                _band(axes, places, cells, colour, marker, shown)
        _value_axis(axes, places, [f"{v:g}" if numeric else str(v) for v in values])
        axes.set(xlabel=group.axis, ylabel="accuracy, %")
        _legend(axes)
    return [Figure(name, title, out[0])]


def _value_axis(axes: Axes, places: Sequence[float], texts: Sequence[str]) -> None:
    """Ticks at the values that were tried; logarithmic above the smallest positive one where they span a decade."""
    positive = [place for place in places if place > 0]
    if positive and min(places) >= 0 and max(positive) >= 10 * min(positive):
        axes.set_xscale("symlog", linthresh=min(positive), linscale=0.5)
    axes.set_xticks(places, texts)
    axes.set_xticks([], minor=True)
