"""Records as standings, one table for each protocol, backbone, number of shots and track, beside
the figures that papers print."""

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
from rmadapter.bench.report.format import Cell
from rmadapter.bench.report.groups import (
    TRANSFER,
    Group,
    common_targets,
    comparable_costs,
    complete,
    group_records,
    rows_of,
    tested,
)
from rmadapter.bench.report.stats import Ranks, rank_methods
from rmadapter.bench.report.tables import AVERAGES, Column, columns_of, row_uses
from rmadapter.data.catalog.sets import ELEVEN
from rmadapter.methods.uses import TRACKS, UNKNOWN

TARGETS = {"cross-dataset": ELEVEN[1:], "domain-generalization": DOMAINS["imagenet"]}  # of ImageNet


@dataclass(frozen=True)
class Standing:
    """A method over the data sets that all methods of the table have. rank: the mean rank and half
    the width of its 95 % interval over data sets. seconds: median training time."""

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
class DatasetResult:
    """A method on one data set. lines: line numbers of its records in records.jsonl."""

    label: str
    dataset: str
    cells: tuple[Cell, ...]
    printed: tuple[Printed, ...]
    seeds: int
    lines: tuple[int, ...]


@dataclass(frozen=True)
class Standings:
    """One table. heads, columns: what the cells of `rows` and of `results` are. sets: those that
    `rows` average over. ranks: in the last column; None for too few methods or data sets, or if
    what the methods use is not stated."""

    group: Group
    heads: tuple[str, ...]
    columns: tuple[str, ...]
    sets: tuple[str, ...]
    rows: tuple[Standing, ...]
    results: tuple[DatasetResult, ...]
    ranks: Ranks | None

    @property
    def title(self) -> str:
        """The title of the group, always with its track."""
        ranked = self.group.track == TRACKS[0]
        return f"{self.group.title}, {self.group.track}" if ranked else self.group.title


def make_standings(records: Sequence[Record]) -> list[Standings]:
    """Make the tables of finished records, which are in the order of records.jsonl. Ablations have
    none."""
    places = {id(record): number for number, record in enumerate(records, 1)}
    return [_standings(group, places) for group in _groups(records)]


def _groups(records: Sequence[Record]) -> Iterator[Group]:
    """Yield the groups of a report, split by number of shots."""
    of_methods = [record for record in records if not PROTOCOLS[record.protocol].variants]
    for group in group_records(of_methods):
        for shots in sorted({record.task.shots for record in group.records}):
            selected = [record for record in group.records if record.task.shots == shots]
            yield replace(group, shots=shots, records=selected)


def _standings(group: Group, places: Mapping[int, int]) -> Standings:
    rows = rows_of(group.records)
    columns = columns_of(group)
    sets, seeds = complete(rows)
    comparable = rows_of(common_targets(group.records))
    ranks = None
    if group.track != UNKNOWN:
        ranks = rank_methods(comparable, columns[-1].metric)
    averages = AVERAGES[:3] if group.protocol == "base-to-novel" else columns
    costs = comparable_costs(rows)
    standings = []
    for label, records in rows.items():
        cells = [column.cell(comparable[label], sets, seeds) for column in averages]
        standings.append(_standing(label, records, costs[label], cells, ranks))
    results = []
    for dataset in group.datasets:
        for label, records in rows.items():
            on_set = [record for record in records if record.task.data == dataset]
            trimmed = [record for record in comparable[label] if record.task.data == dataset]
            if on_set and trimmed:
                results.append(_dataset_result(label, dataset, on_set, trimmed, columns, places))
    return Standings(
        group,
        tuple(column.head for column in averages),
        tuple(column.head for column in columns),
        tuple(sets),
        tuple(_best_first(standings)),
        tuple(results),
        ranks,
    )


def _best_first(rows: Sequence[Standing]) -> list[Standing]:
    """Sort by mean rank if all rows with a figure have one, then by the last figure, then by
    label."""
    partly_ranked = any(row.rank.value is None and row.cells[-1].value is not None for row in rows)

    def key(row: Standing) -> tuple[float, float, str]:
        figure = row.cells[-1]
        rank = 0 if partly_ranked else _number(row.rank, math.inf)
        return rank, -_number(figure, -1.0), row.label

    return sorted(rows, key=key)


def _number(cell: Cell, otherwise: float) -> float:
    return otherwise if cell.value is None else cell.number


def _standing(
    label: str, records: Sequence[Record], costs: Sequence[Record], cells: Sequence[Cell],
    ranks: Ranks | None,
) -> Standing:  # fmt: skip
    """Sum up a row. costs: the records on the data sets that all rows have."""
    uses = row_uses(records)
    trained = [record.seconds["train"] for record in costs if "train" in record.seconds]
    parameters = [record.parameters for record in costs if record.parameters is not None]
    rank = Cell()
    if ranks is not None and label in ranks.labels:
        place = ranks.labels.index(label)
        rank = Cell(ranks.mean[place], ranks.half_widths[place])
    return Standing(
        label,
        uses.words if uses else "",
        tuple(cells),
        rank,
        max(parameters, default=None),
        median(trained) if trained else None,
        len(records),
    )


def _dataset_result(
    label: str, dataset: str, records: Sequence[Record], trimmed: Sequence[Record],
    columns: Sequence[Column], places: Mapping[int, int],
) -> DatasetResult:  # fmt: skip
    """Sum up a row on one data set. trimmed: the records from `common_targets`, so that a table
    averages the same targets for all."""
    cells = tuple(column.cell(trimmed, [dataset]) for column in columns)
    printed = tuple(_compare_with_printed(records[0], columns, cells))
    seeds = len({record.task.seed for record in records})
    lines = tuple(sorted(places[id(record)] for record in records))
    return DatasetResult(label, dataset, cells, printed, seeds, lines)


def _compare_with_printed(
    record: Record, columns: Sequence[Column], cells: Sequence[Cell]
) -> Iterator[Printed]:
    """Yield what papers print for the same method, data set, shots and backbone; a value that
    several print appears once."""
    for column, cell in zip(columns, cells, strict=True):
        places: dict[float, list[str]] = defaultdict(list)
        for figure in _printed(record, column.metric):
            places[figure.value].append(f"{sources()[figure.source].title}, {figure.place}")
        for value, where in places.items():
            if cell.value is not None:
                difference = cell.number - value
                off = abs(difference) > max(paper.TOLERANCE, cell.interval or 0.0)
                yield Printed(column.head, value, "; ".join(where), difference, off)


def _printed(record: Record, metric: str) -> list[Figure]:
    """Return the printed figures for a record. metric: as in `Record.metric`; "average" is a data
    set in what is printed."""
    if not comparable(record, metric):
        return []
    dataset = AVERAGE if metric == AVERAGE else paper.dataset_name(record.task.data)
    metric = "all" if metric == AVERAGE else metric
    backbone = record.backbone.name
    if backbone in paper.BACKBONES:
        backbone = paper.BACKBONES[0]
    wanted = (record.method.name, record.protocol, dataset, metric, backbone)
    return [
        figure
        for figure in published()
        if wanted
        == (figure.method, figure.protocol, figure.dataset, figure.metric, figure.backbone)
        and figure.shots in (record.task.shots, 0)
        and figure.kind == "printed"
    ]


def comparable(record: Record, metric: str = "") -> bool:
    """Return whether its data sets are those of the same name in the papers, judged by their number
    of test images."""
    name = paper.dataset_name(record.task.data)
    images = {paper.dataset_name(key): count for key, count in tested(record).items()}
    expected = paper.TEST_IMAGES.get(name)
    if expected is None:
        return False
    if metric == AVERAGE:
        targets = {key: count for key, count in images.items() if key != "all"}
        needed = {key: paper.TEST_IMAGES[key] for key in TARGETS[record.protocol]}
        return name == "imagenet" and targets == needed
    if record.protocol in TRANSFER or "all" in images:
        return images.get("all") == expected
    total = sum(images.values())  # a method that names no new classes is tested on one half alone
    return total == expected if "novel" in images else 0 < total < expected
