"""Figures as other papers print them, and the contradictions among them, which are computed, not
typed.

assets/published has the figures, each with its source and the place in it; those of RMAdapter are
in rmadapter/bench/report/printed.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.resources import files
from statistics import fmean
from typing import Annotated, Literal, NamedTuple

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from rmadapter.bench.report import paper
from rmadapter.bench.report.groups import TRANSFER
from rmadapter.bench.report.stats import half_width
from rmadapter.metrics import harmonic_mean

AVERAGE = "average"
# points by which an HM may be below that of its base and novel figures: a mean of the seeds' HMs is
EXPLAINED = 0.10 + 1e-9
# rows of RMAdapter's tables
OUR_NAMES = {"CLIP": "zero-shot", "Co-CoOp": "cocoop", "RMAdapter": "rmadapter"}


class Source(NamedTuple):
    """A source. at: address or number. read: what was read, and which parts were not readable."""

    title: str
    at: str
    read: str


class Figure(BaseModel):
    """A published figure. method: our name if we have it, else as printed. dataset: of the
    catalogue, or "average". backbone: "" if not stated. kind: printed, or rerun by others with the
    authors' code. place: in the source."""

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
        """Return what the figure measures, without its source."""
        experiment = (self.protocol, self.backbone, str(self.shots))
        return (*experiment, self.method, self.dataset, self.metric)


_Row = dict[tuple[str, str], Figure]  # the figures of a method in a table, by data set and metric


def _text(name: str) -> str:
    return (files("rmadapter_research") / "assets/published" / name).read_text(encoding="utf-8")


@cache
def sources() -> dict[str, Source]:
    """Read the sources by name."""
    return {name: Source(**row) for name, row in yaml.safe_load(_text("sources.yaml")).items()}


@cache
def published() -> tuple[Figure, ...]:
    """Read all figures, including RMAdapter's tables."""
    rows = [*csv.DictReader(io.StringIO(_text("figures.csv"))), *_rmadapter_rows()]
    return TypeAdapter(tuple[Figure, ...]).validate_python(rows)


def _rmadapter_rows() -> Iterator[dict[str, object]]:
    """Yield the figures of RMAdapter's Tables 1 to 3 as in figures.csv."""
    for dataset, rows in paper.halves().items():
        for method, row in rows.items():
            for metric, value in row.items():
                yield _rmadapter_row("Table 1", "base-to-novel", method, dataset, metric, value)
    for number, protocol in enumerate(TRANSFER, 2):
        for method, row in paper.transfer(protocol).items():
            for dataset, value in row.items():
                yield _rmadapter_row(f"Table {number}", protocol, method, dataset, "all", value)


def _rmadapter_row(
    place: str, protocol: str, method: str, dataset: str, metric: str, value: float
) -> dict[str, object]:
    name = paper.MISNAMED_BY.get((dataset, method), OUR_NAMES.get(method, method.lower()))
    return {
        "method": name, "protocol": protocol, "dataset": dataset, "metric": metric, "value": value,
        "shots": 0 if name == "zero-shot" else paper.SHOTS, "backbone": paper.BACKBONES[0],
        "kind": "printed", "source": "rmadapter", "place": place,
    }  # fmt: skip


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


def _name(figure: Figure) -> str:
    shots = f", {figure.shots} shots" if figure.protocol == "few-shot" else ""
    metric = paper.NAMES.get(figure.metric, "accuracy")
    return f"{figure.method}, {figure.protocol}, {figure.dataset}{shots}, {metric}"


class _Off(NamedTuple):
    """A figure that does not follow from its parts. how: what they are. value: what they give."""

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
        """Say what is printed, and what follows from its parts."""
        figure = self.figure
        where = f"{sources()[figure.source].title}, {figure.place}"
        return (
            f"{_name(figure)}: printed as {figure.value:.2f}, but {self.how} is {self.value:.2f} "
            f"({where})."
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
    """Yield what the parts of an HM or average give. complete: whether the row has all data sets of
    its table; the mean of some says nothing."""
    for (dataset, metric), f in row.items():
        averaged = dataset == AVERAGE and complete
        mean, sets = _mean_of_parts(row, f) if averaged else (None, "")
        if metric == "hm" and {(dataset, "base"), (dataset, "novel")} <= row.keys():
            hm = harmonic_mean(row[dataset, "base"].value, row[dataset, "novel"].value)
            if not (dataset == AVERAGE and _is_mean_of_hms(f.value, hm, mean)):
                prefix = "" if mean is None else f"{sets} is {mean:.2f}, and "
                yield _Off(f, f"{prefix}that of its base and novel figures", hm)
        elif mean is not None:
            yield _Off(f, sets, mean)


def _mean_of_parts(row: _Row, average: Figure) -> tuple[float | None, str]:
    """Average the figures of the data sets; None for too few of them. Also name that mean."""
    excluded = {AVERAGE, "imagenet"} if average.protocol in TRANSFER else {AVERAGE}
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
            texts = [
                f"{value:.2f} ({sources()[figure.source].title}, {figure.place})"
                for value, figure in sorted(values.items())
            ]
            yield f"{_name(next(iter(values.values())))}: printed as {' and '.join(texts)}."


def _reruns(figures: Iterable[Figure]) -> Iterator[str]:
    printed = {f.cell: f for f in figures if f.kind == "printed"}
    reruns: dict[tuple[tuple[str, ...], str], list[Figure]] = defaultdict(list)
    for figure in figures:
        if figure.kind == "rerun":
            reruns[figure.cell, figure.source].append(figure)
    for (cell, source), runs in reruns.items():
        values = np.array([run.value for run in runs])
        half = half_width(values)
        first = printed.get(cell)
        if first and half is not None and abs(first.value - values.mean()) > half:
            yield (
                f"{_name(first)}: printed as {first.value:.2f}, but {len(runs)} runs with the "
                f"released code gave {values.min():.2f} to {values.max():.2f} "
                f"({sources()[source].at})."
            )
