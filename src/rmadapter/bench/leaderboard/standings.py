"""Records as boards, one for each protocol, backbone, number of shots and track, beside the figures
papers print."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from rmadapter.artifacts.record import Record
from rmadapter.bench.leaderboard.published import AVERAGE, Figure, published, sources
from rmadapter.bench.protocols import DOMAINS, PROTOCOLS
from rmadapter.bench.report import paper
from rmadapter.bench.report import uses as fair
from rmadapter.bench.report.format import Cell
from rmadapter.bench.report.groups import (
    TRANSFER,
    Group,
    alike,
    alongside,
    complete,
    entries,
    group_records,
    tested,
)
from rmadapter.bench.report.ranks import Ranks, ranked
from rmadapter.bench.report.tables import AVERAGES, Column, columns_of
from rmadapter.data.catalog.sets import ELEVEN
from rmadapter.methods.uses import TRACKS, UNKNOWN

TARGETS = {"cross-dataset": ELEVEN[1:], "domain-generalization": DOMAINS["imagenet"]}  # of ImageNet


@dataclass(frozen=True)
class Standing:
    """A method over the data sets that all methods of its board have. rank: the mean rank and the
    half width of its 95 % interval over data sets. seconds: median training time."""

    label: str
    uses: str
    cells: tuple[Cell, ...]
    rank: Cell
    parameters: int | None
    seconds: float | None
    runs: int


@dataclass(frozen=True)
class Printed:
    """A printed figure. difference: measured minus printed, in points. off: beyond 1 point and the
    seeds' interval."""

    figure: str
    value: float
    where: str
    difference: float
    off: bool


@dataclass(frozen=True)
class Line:
    """A method on one data set. lines: line numbers of its records in records.jsonl."""

    label: str
    dataset: str
    cells: tuple[Cell, ...]
    printed: tuple[Printed, ...]
    seeds: int
    lines: tuple[int, ...]


@dataclass(frozen=True)
class Board:
    """One table. heads, columns: what the cells of `standings` and of `lines` are. sets: those
    `standings` are over. ranks: in the last column; None for too few methods or data sets, or if
    what the methods use is not stated."""

    group: Group
    heads: tuple[str, ...]
    columns: tuple[str, ...]
    sets: tuple[str, ...]
    standings: tuple[Standing, ...]
    lines: tuple[Line, ...]
    ranks: Ranks | None

    @property
    def title(self) -> str:
        return (
            f"{self.group.title}, {self.group.track}"
            if self.group.track == TRACKS[0]
            else self.group.title
        )


def boards(records: Sequence[Record]) -> list[Board]:
    """The boards of finished records, which are in the order of records.jsonl. Ablations have none."""
    place = {id(record): number for number, record in enumerate(records, 1)}
    return [_board(group, place) for group in _groups(records)]


def _groups(records: Sequence[Record]) -> Iterator[Group]:
    """The groups of a report, split by number of shots."""
    of_methods = [record for record in records if not PROTOCOLS[record.protocol].variants]
    for group in group_records(of_methods):
        for shots in sorted({record.task.shots for record in group.records}):
            yield replace(
                group, shots=shots, records=[r for r in group.records if r.task.shots == shots]
            )


def _board(group: Group, place: Mapping[int, int]) -> Board:
    rows, columns = entries(group.records), columns_of(group)
    sets, seeds = complete(rows)
    same = entries(alike(group.records))
    ranks = None if group.track == UNKNOWN else ranked(same, columns[-1].metric)
    over = AVERAGES[:3] if group.protocol == "base-to-novel" else columns
    beside = alongside(rows)
    standings = [
        _standing(
            label,
            records,
            beside[label],
            [column.cell(same[label], sets, seeds) for column in over],
            ranks,
        )
        for label, records in rows.items()
    ]
    lines = [
        _line(label, dataset, some, trimmed, columns, place)
        for dataset in group.datasets
        for label, records in rows.items()
        if (some := [record for record in records if record.task.data == dataset])
        if (trimmed := [record for record in same[label] if record.task.data == dataset])
    ]
    partly = any(
        row.rank.value is None and row.cells[-1].value is not None for row in standings
    )  # ranked
    best = sorted(
        standings,
        key=lambda row: (
            0 if partly else _or(row.rank, math.inf),
            -_or(row.cells[-1], -1.0),
            row.label,
        ),
    )
    heads, own = (tuple(column.head for column in some) for some in (over, columns))
    return Board(group, heads, own, tuple(sets), tuple(best), tuple(lines), ranks)


def _or(cell: Cell, otherwise: float) -> float:
    return otherwise if cell.value is None else cell.number


def _standing(
    label: str,
    records: Sequence[Record],
    beside: Sequence[Record],
    cells: Sequence[Cell],
    ranks: Ranks | None,
) -> Standing:
    """beside: those on the data sets that all rows have."""
    uses, trained = fair.uses(records), [r.seconds["train"] for r in beside if "train" in r.seconds]
    parameters = max((r.parameters for r in beside if r.parameters is not None), default=None)
    seconds = median(trained) if trained else None
    rank = Cell()
    if ranks is not None and label in ranks.labels:
        place = ranks.labels.index(label)
        rank = Cell(ranks.mean[place], ranks.half_widths[place])
    return Standing(
        label, uses.words if uses else "", tuple(cells), rank, parameters, seconds, len(records)
    )


def _line(
    label: str, dataset: str, records: Sequence[Record], trimmed: Sequence[Record], columns: Sequence[Column],
    place: Mapping[int, int],
) -> Line:  # fmt: skip
    """trimmed: the records as `alike` gives them, so that a board averages the same targets for
    all."""
    cells = tuple(column.cell(trimmed, [dataset]) for column in columns)
    printed = tuple(_beside(records[0], columns, cells))
    seeds = len({record.task.seed for record in records})
    return Line(
        label,
        dataset,
        cells,
        printed,
        seeds,
        tuple(sorted(place[id(record)] for record in records)),
    )


def _beside(record: Record, columns: Sequence[Column], cells: Sequence[Cell]) -> Iterator[Printed]:
    """What papers print for the same method, data set, shots and backbone; a value that several
    print appears once."""
    for column, cell in zip(columns, cells, strict=True):
        told: dict[float, list[str]] = defaultdict(list)
        for figure in _printed(record, column.metric):
            told[figure.value].append(f"{sources()[figure.source].title}, {figure.place}")
        for value, where in told.items():
            if cell.value is not None:
                difference = cell.number - value
                off = abs(difference) > max(paper.TOLERANCE, cell.interval or 0.0)
                yield Printed(column.head, value, "; ".join(where), difference, off)


def _printed(record: Record, metric: str) -> list[Figure]:
    """The printed figures for a record. metric: as in `Record.metric`; "average" is a data set in
    what is printed."""
    if not comparable(record, metric):
        return []
    dataset, metric = (
        (AVERAGE, "all") if metric == AVERAGE else (paper.dataset_name(record.task.data), metric)
    )
    backbone = (
        paper.BACKBONES[0] if record.backbone.name in paper.BACKBONES else record.backbone.name
    )
    wanted = (record.method.name, record.protocol, dataset, metric, backbone)
    return [
        figure
        for figure in published()
        if (figure.method, figure.protocol, figure.dataset, figure.metric, figure.backbone)
        == wanted
        and figure.shots in (record.task.shots, 0)
        and figure.kind == "printed"
    ]


def comparable(record: Record, metric: str = "") -> bool:
    """Whether its data sets are those of the same name in the papers, judged by their number of
    test images."""
    name = paper.dataset_name(record.task.data)
    images = {paper.dataset_name(key): count for key, count in tested(record).items()}
    if name not in paper.TEST_IMAGES:
        return False
    if metric == AVERAGE:
        targets = {key: count for key, count in images.items() if key != "all"}
        return name == "imagenet" and targets == {
            key: paper.TEST_IMAGES[key] for key in TARGETS[record.protocol]
        }
    if record.protocol in TRANSFER or "all" in images:
        return images.get("all") == paper.TEST_IMAGES[name]
    total = sum(images.values())  # a method that names no new classes is tested on one half alone
    return (
        total == paper.TEST_IMAGES[name]
        if "novel" in images
        else 0 < total < paper.TEST_IMAGES[name]
    )
