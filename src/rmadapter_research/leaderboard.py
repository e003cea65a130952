"""The leaderboard: records as standings, one table for each protocol, backbone, number of shots and
track, beside the figures that papers print; as one self-contained page and as JSON."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import TypeAlias, TypedDict

from rmadapter.artifacts.record import Record, parse_record
from rmadapter.bench.protocols import DOMAINS, PROTOCOLS
from rmadapter.bench.report import paper
from rmadapter.bench.report.costs import row_uses
from rmadapter.bench.report.format import Cell
from rmadapter.bench.report.groups import (
    Group,
    common_targets,
    comparable_costs,
    complete,
    counted,
    experiment_of,
    group_records,
    rows_of,
    tested,
)
from rmadapter.bench.report.read import RECORDS, fault, lines, read_records
from rmadapter.bench.report.stats import LEVEL, Ranks, rank_methods
from rmadapter.bench.report.tables import (
    AVERAGES,
    Column,
    chance_row,
    columns_of,
    departures,
)
from rmadapter.data import ELEVEN
from rmadapter.errors import UserError
from rmadapter.support.files import write_text
from rmadapter.support.html import template
from rmadapter.support.locks import exclusive
from rmadapter.support.terminal import note
from rmadapter.training.traits import TRACKS, UNKNOWN
from rmadapter_research.published import (
    AVERAGE,
    Figure,
    contradictions,
    explained,
    published,
    sources,
)

TARGETS = {"cross-dataset": ELEVEN[1:], "domain-generalization": DOMAINS["imagenet"]}  # of ImageNet
# of a scatter, in its own units
WIDTH, HEIGHT = 340, 300
LEFT, RIGHT, TOP, BOTTOM = 48, 328, 10, 256

Tick: TypeAlias = "dict[str, float | str]"  # at, text


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
    `rows` average over. chance: what guesses get there. ranks: in the last column; None for too few
    methods or data sets, or if what the methods use is not stated."""

    group: Group
    heads: tuple[str, ...]
    columns: tuple[str, ...]
    sets: tuple[str, ...]
    chance: tuple[Cell, ...]
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
        chance_row(group.records, averages, sets).cells,
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
    if record.task.draw != "balanced" or not comparable(record, metric):
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
    if metric != AVERAGE:
        return paper.has_paper_images(record)
    images = {paper.dataset_name(key): count for key, count in tested(record).items()}
    targets = {key: count for key, count in images.items() if key != "all"}
    needed = {key: paper.TEST_IMAGES[key] for key in TARGETS[record.protocol]}
    return paper.dataset_name(record.task.data) == "imagenet" and targets == needed


class Leaderboard(TypedDict):
    """The content of leaderboard.json. contradictions, explained: see `published`."""

    runs: int
    boards: list[dict[str, object]]
    contradictions: list[str]
    explained: list[str]


def write_leaderboard(results: Path, out: Path) -> Leaderboard:
    """Write index.html, leaderboard.json and records.jsonl to `out`, and return what the JSON
    holds.

    results: a folder or a file of lines, as for `report`. The same records give the same bytes.
    Raises UserError for anything that is no valid record of the bench, if no run is finished, and
    if `out` cannot be written.
    """
    for place, line in lines(results):
        wrong = fault(parse_record(line, place))
        if wrong:
            raise UserError(f"{place}: {wrong}")
    read = read_records(results)
    for text in read.notes:
        note(text)
    records = sorted(read.finished, key=experiment_of)
    tables = make_standings(records)
    if not tables:
        raise UserError(
            f"{results}: no finished run of a method, so a leaderboard has nothing to show"
        )
    summary: Leaderboard = {
        "runs": len(records),
        "boards": [_to_json(table) for table in tables],
        "contradictions": contradictions(),
        "explained": explained(),
    }
    with exclusive(out):  # two at once would mix their files
        write_text(out / RECORDS, "".join(record.line() for record in records))
        text = json.dumps(summary, indent=1, ensure_ascii=False) + "\n"
        write_text(out / "leaderboard.json", text)
        write_text(out / "index.html", _html(tables, len(records)))
    return summary


def _to_json(table: Standings) -> dict[str, object]:
    group = table.group
    return {
        "protocol": group.protocol,
        "backbone": group.backbone.model_dump(),
        "shots": group.shots,
        "shared": group.shared,
        "track": group.track,
        "heads": table.heads,
        "columns": table.columns,
        "datasets": table.sets,
        "notes": departures(group),
        "chance": [cell.value for cell in table.chance],
        "standings": [asdict(row) for row in table.rows],
        "lines": [asdict(result) for result in table.results],
    }


def _html(tables: Sequence[Standings], runs: int) -> str:
    script = (files("rmadapter_research") / "assets/leaderboard.js").read_text(encoding="utf-8")
    groups = [table.group for table in tables]
    sets = sorted({result.dataset for table in tables for result in table.results})
    filters: dict[str, Sequence[object]] = {
        "protocol": [*dict.fromkeys(group.protocol for group in groups)],
        "track": [*dict.fromkeys(group.track for group in groups)],
        "backbone": [*dict.fromkeys(group.backbone.name for group in groups)],
        "shots": sorted({group.shots or 0 for group in groups}),
        "set": sets,
    }
    methods = len({row.label for table in tables for row in table.rows})
    entries = [
        {
            "table": table,
            "about": _about(table),
            "plot": scatter(table),
            "ranking": " ".join(filter(None, [_ranking(table), *departures(table.group)])),
        }
        for table in tables
    ]
    html: str = template("leaderboard.html.j2", package="rmadapter_research").render(
        title=f"{methods} methods on {counted(len(sets), 'data set')}",
        runs=runs,
        filters=filters,
        entries=entries,
        printed=printed_averages(),
        contradictions=contradictions(),
        explained=explained(),
        script=script,
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return html


def _about(table: Standings) -> str:
    settings = []
    for name, value in table.group.shared.items():
        text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
        settings.append(f"{name} {text}")
    scope = "empty, because no data set has all methods"
    if table.sets:
        chance = " / ".join(cell.text for cell in table.chance)
        scope = f"over {', '.join(table.sets)}, where chance is {chance}"
    return (
        f"The first table is {scope}. All runs share: {'; '.join(settings)}; "
        f"weights {table.group.backbone.digest[:8]}."
    )


def _ranking(table: Standings) -> str:
    ranks = table.ranks
    if ranks is None:
        return ""
    differ = "they differ" if ranks.p < LEVEL else "they are not shown to differ"
    text = (
        f"Mean ranks in {table.columns[-1]} over n = {len(ranks.values)} data sets; {differ} "
        f"(Friedman's test, p {ranks.p:.2g})."
    )
    return f"{text} Left out: {', '.join(ranks.left_out)}." if ranks.left_out else text


def scatter(table: Standings) -> dict[str, object] | None:
    """Lay out base against novel accuracy of the standings, in the units of the drawing; None for
    fewer than two points."""
    rows = [
        (number, row)
        for number, row in enumerate(table.rows, 1)
        if all(cell.value is not None for cell in row.cells[:2])
    ]
    if table.group.protocol != "base-to-novel" or len(rows) < 2:
        return None
    shown = [row for _, row in rows]
    x_ticks, x_of = _axis(shown, 0, LEFT, RIGHT)
    y_ticks, y_of = _axis(shown, 1, BOTTOM, TOP)
    points = []
    for number, row in rows:
        base, novel = row.cells[:2]
        x = x_of(base.number)
        y = y_of(novel.number)
        wide, high = base.interval or 0.0, novel.interval or 0.0
        bars = [
            (x_of(base.number - wide), y, x_of(base.number + wide), y),
            (x, y_of(novel.number - high), x, y_of(novel.number + high)),
        ]
        texts = {"label": row.label, "base": base.text, "novel": novel.text}
        points.append({"number": number, "x": x, "y": y, "bars": bars, **texts})
    size = {"width": WIDTH, "height": HEIGHT}
    box = {"left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM}
    return {**size, **box, "x": x_ticks, "y": y_ticks, "points": points}


def _percent(value: float) -> float:
    """Return the nearest possible accuracy: an interval over two seeds may reach beyond."""
    return min(max(value, 0), 100)


def _axis(
    rows: Sequence[Standing], which: int, start: float, end: float
) -> tuple[list[Tick], Callable[[float], float]]:
    """Return ticks, and a function from percent to the drawing's units."""
    cells = [row.cells[which] for row in rows]
    ends = [
        _percent(cell.number + sign * (cell.interval or 0)) for cell in cells for sign in (-1, 1)
    ]
    span = max(ends) - min(ends)
    step = next(step for step in (1, 2, 5, 10, 20, 50) if span / step <= 6)
    low = step * math.floor(min(ends) / step)
    high = max(step * math.ceil(max(ends) / step + 1e-9), low + step)

    def place(value: float) -> float:
        return round(start + (_percent(value) - low) / (high - low) * (end - start), 1)

    ticks: list[Tick] = [
        {"at": place(tick), "text": str(tick)} for tick in range(low, high + 1, step)
    ]
    return ticks, place


def printed_averages() -> list[dict[str, object]]:
    """Make tables of the printed averages by protocol, backbone and shots; where sources differ,
    with all values."""
    tables: dict[tuple[str, str, int], dict[str, dict[str, list[Figure]]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    for figure in published():
        if figure.dataset == AVERAGE and figure.kind == "printed":
            shots = figure.shots or paper.SHOTS
            rows = tables[figure.protocol, figure.backbone or "backbone not stated", shots]
            rows[figure.method].setdefault(figure.metric, []).append(figure)
    return [
        {"title": f"{protocol}: {backbone}, {counted(shots, 'shot')}", **_average_rows(rows)}
        for (protocol, backbone, shots), rows in sorted(tables.items())
    ]


def _average_rows(rows: Mapping[str, Mapping[str, Sequence[Figure]]]) -> dict[str, object]:
    metrics = [m for m in ("base", "novel", "hm", "all") if any(m in row for row in rows.values())]
    best = {
        method: max((figure.value for figure in row.get(metrics[-1], [])), default=0.0)
        for method, row in rows.items()
    }
    shown = []
    for method in sorted(rows, key=lambda method: -best[method]):
        row = rows[method]
        cells = []
        for metric in metrics:
            values = sorted({figure.value for figure in row.get(metric, [])})
            cells.append(" / ".join(f"{value:.2f}" for value in values))
        places = sorted(
            {f"{sources()[f.source].title}, {f.place}" for figures in row.values() for f in figures}
        )
        where = "; ".join(places)
        shown.append({"method": method, "cells": cells, "sources": len(places), "where": where})
    return {"heads": [paper.NAMES.get(m, "accuracy") for m in metrics], "rows": shown}
