"""Figures as other papers print them, and the contradictions among them, which are computed, not
typed.

assets/published has the figures, each with its source and the place in it; those of RMAdapter are
in assets/printed.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.resources import files
from math import sqrt
from statistics import fmean, harmonic_mean, stdev
from typing import Annotated, Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from scipy.special import stdtrit

from rmadapter_research import paper
from rmadapter_research.paper import AVERAGE

# points by which an HM may be below that of its base and novel figures: a mean of the seeds' HMs is
EXPLAINED = 0.10 + 1e-9
# rows of RMAdapter's tables
OUR_NAMES = {"CLIP": "zero-shot", "Co-CoOp": "cocoop", "RMAdapter": "rmadapter"}


class PrintedSource(NamedTuple):
    """A source.

    Attributes:
        title: Name of it.
        at: Address or number.
        read: What was read, and which parts were not readable.
    """

    title: str
    at: str
    read: str


class Figure(BaseModel):
    """A published figure.

    Attributes:
        method: Our name if we have it, else as printed.
        protocol: Protocol of the bench.
        dataset: Data set of the catalogue, or "average".
        shots: Shots per class.
        backbone: Backbone; "" if not stated.
        metric: What it is.
        value: The figure, in percent.
        kind: Printed, or rerun by others with the authors' code.
        source: Source, by name.
        place: Place in the source.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Annotated[str, Field(min_length=1)]
    protocol: Literal["base-to-novel", "cross-dataset", "domain-generalization", "few-shot"]
    dataset: Annotated[str, Field(min_length=1)]
    shots: Annotated[int, Field(ge=0, le=16)]
    backbone: str
    metric: Literal["base", "novel", "hm", "all"]
    value: Annotated[float, Field(ge=0, le=100)]
    kind: Literal["printed", "rerun"]
    source: str
    place: str

    @property
    def cell(self) -> tuple[str, ...]:
        """What the figure measures, without its source."""
        experiment = (self.protocol, self.backbone, str(self.shots))
        return (*experiment, self.method, self.dataset, self.metric)

    @property
    def where(self) -> str:
        """Its source and the place there."""
        return f"{sources()[self.source].title}, {self.place}"

    @property
    def name(self) -> str:
        """What it measures, in words."""
        shots = f", {self.shots} shots" if self.protocol == "few-shot" else ""
        metric = paper.METRIC_NAMES.get(self.metric, "accuracy")
        return f"{self.method}, {self.protocol}, {self.dataset}{shots}, {metric}"


_Row = dict[tuple[str, str], Figure]  # the figures of a method in a table, by data set and metric


def _text(name: str) -> str:
    return (files("rmadapter_research") / "assets/published" / name).read_text(encoding="utf-8")


@cache
def sources() -> dict[str, PrintedSource]:
    """Read the sources by name."""
    return {
        name: PrintedSource(**row) for name, row in yaml.safe_load(_text("sources.yaml")).items()
    }


@cache
def published() -> tuple[Figure, ...]:
    """Read all figures, including RMAdapter's tables."""
    rows = [*csv.DictReader(io.StringIO(_text("figures.csv"))), *_rmadapter_rows()]
    return TypeAdapter(tuple[Figure, ...]).validate_python(rows)


def _rmadapter_rows() -> Iterator[dict[str, object]]:
    """Yield the figures of RMAdapter's Tables 1 to 3 as in figures.csv."""
    for protocol in ("base-to-novel", *paper.TRANSFER):
        for block, rows in paper.tables()[protocol].items():
            for method, row in rows.items():
                ours = OUR_NAMES.get(method, method.lower())
                name = paper.MISNAMED_BY.get((block, method), ours)
                for figure, value in row.items():
                    yield {
                        "method": name,
                        "protocol": protocol,
                        "dataset": block or figure,
                        "metric": figure if block else "all",
                        "value": value,
                        "shots": 0 if name == "zero-shot" else paper.SHOTS,
                        "backbone": paper.BACKBONES[0],
                        "kind": "printed",
                        "source": "rmadapter",
                        "place": paper.TITLES[protocol],
                    }


def contradictions(figures: Iterable[Figure] | None = None) -> list[str]:
    """Write a sentence on each contradiction that nothing explains: an HM or average that does not
    follow from its parts in the same source; sources that print different figures for the same
    cell; a printed figure outside the 95 % interval of runs by others."""
    figures = published() if figures is None else tuple(figures)
    wrong = (off.sentence for off in _arithmetic(figures) if not off.explained)
    return [*wrong, *_between_sources(figures), *_reruns(figures)]


def explained(figures: Iterable[Figure] | None = None) -> list[str]:
    """Write a sentence on each HM of one data set that is printed below that of its base and novel
    figures by at most `EXPLAINED`: the mean of the seeds' HMs is always below, so it can be
    that."""
    figures = published() if figures is None else tuple(figures)
    return [off.sentence for off in _arithmetic(figures) if off.explained]


class _Off(NamedTuple):
    """A figure that does not follow from its parts.

    Attributes:
        figure: The figure.
        how: What the parts are.
        value: What they give.
    """

    figure: Figure
    how: str
    value: float

    @property
    def explained(self) -> bool:
        """Whether it may be the mean of the seeds' HMs."""
        of_one_set = self.figure.metric == "hm" and self.figure.dataset != AVERAGE
        return of_one_set and 0 < self.value - self.figure.value <= EXPLAINED

    @property
    def sentence(self) -> str:
        """What is printed, and what follows from its parts."""
        figure = self.figure
        return (
            f"{figure.name}: printed as {figure.value:.2f}, but {self.how} is {self.value:.2f} "
            f"({figure.where})."
        )


def _arithmetic(figures: Iterable[Figure]) -> Iterator[_Off]:
    tables: dict[tuple[str, ...], dict[str, _Row]] = defaultdict(lambda: defaultdict(dict))
    for f in figures:
        key = (f.source, f.place, f.kind, f.protocol, f.backbone, str(f.shots))
        tables[key][f.method][f.dataset, f.metric] = f
    for rows in tables.values():
        most = max(map(_count_sets, rows.values()))
        for row in rows.values():
            for off in _implied(row, complete=_count_sets(row) == most):
                if abs(off.figure.value - off.value) > paper.ROUNDING:
                    yield off


def _count_sets(row: _Row) -> int:
    return len({dataset for dataset, _ in row})


def _implied(row: _Row, complete: bool) -> Iterator[_Off]:
    """Yield what the parts of an HM or average give.

    Args:
        row: Figures of a method.
        complete: Whether they are of all data sets of the table; the mean of some says nothing.
    """
    for (dataset, metric), f in row.items():
        averaged = dataset == AVERAGE and complete
        mean, sets = _mean_of_parts(row, f) if averaged else (None, "")
        if metric == "hm" and {(dataset, "base"), (dataset, "novel")} <= row.keys():
            hm = harmonic_mean([row[dataset, "base"].value, row[dataset, "novel"].value])
            if not (dataset == AVERAGE and _is_mean_of_hms(f.value, hm, mean)):
                prefix = "" if mean is None else f"{sets} is {mean:.2f}, and "
                yield _Off(f, f"{prefix}that of its base and novel figures", hm)
        elif mean is not None:
            yield _Off(f, sets, mean)


def _mean_of_parts(row: _Row, average: Figure) -> tuple[float | None, str]:
    """Average the figures of the data sets; None for too few of them. Also name that mean."""
    excluded = {AVERAGE, "imagenet"} if average.protocol in paper.TRANSFER else {AVERAGE}
    parts = [
        figure.value
        for (dataset, metric), figure in row.items()
        if metric == average.metric and dataset not in excluded
    ]
    mean = fmean(parts) if len(parts) > 3 else None
    return mean, f"the mean of its {len(parts)} data sets"


def _is_mean_of_hms(printed: float, of_means: float, mean: float | None) -> bool:
    """Return whether an average may be the mean of the HMs, the other convention: where these are
    not all printed (mean is None), whether it is below the HM of the means, as their mean always
    is."""
    return printed < of_means if mean is None else abs(printed - mean) <= paper.ROUNDING


def _between_sources(figures: Iterable[Figure]) -> Iterator[str]:
    cells: dict[tuple[str, ...], dict[float, Figure]] = defaultdict(dict)
    for figure in figures:
        if figure.kind == "printed" and figure.backbone:
            cells[figure.cell].setdefault(figure.value, figure)
    for values in cells.values():
        if max(values) - min(values) > paper.ROUNDING:
            texts = [f"{value:.2f} ({figure.where})" for value, figure in sorted(values.items())]
            yield f"{next(iter(values.values())).name}: printed as {' and '.join(texts)}."


def _reruns(figures: Iterable[Figure]) -> Iterator[str]:
    printed = {f.cell: f for f in figures if f.kind == "printed"}
    reruns: dict[tuple[tuple[str, ...], str], list[float]] = defaultdict(list)
    for figure in figures:
        if figure.kind == "rerun":
            reruns[figure.cell, figure.source].append(figure.value)
    for (cell, source), values in reruns.items():
        first = printed.get(cell)
        if first and len(values) > 1:
            half = stdtrit(len(values) - 1, 0.975) * stdev(values) / sqrt(len(values))
            if abs(first.value - fmean(values)) > half:
                yield (
                    f"{first.name}: printed as {first.value:.2f}, but {len(values)} runs with the "
                    f"released code gave {min(values):.2f} to {max(values):.2f} "
                    f"({sources()[source].at})."
                )
