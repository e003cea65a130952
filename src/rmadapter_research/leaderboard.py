"""The leaderboard: records as standings, one table for each protocol, backbone, number of shots and
track, beside the figures that papers print; as one self-contained page and as JSON."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from statistics import median

from rmadapter import Record, UserError
from rmadapter.artifacts import exclusive, template, write_text
from rmadapter.bench import (
    Cell,
    Column,
    Group,
    group_records,
    read_records,
    setting_text,
    trade_off,
)
from rmadapter.cli import note
from rmadapter_research import paper
from rmadapter_research.paper import AVERAGE
from rmadapter_research.published import Figure, contradictions, explained, published


@dataclass(frozen=True)
class Standing:
    """A method over the data sets that all methods of the table have.

    Attributes:
        label: Row.
        uses: What it uses beyond the shots.
        cells: Averages.
        rank: Mean rank with its interval over data sets.
        parameters: Number of trained parameters.
        seconds: Median training time.
        runs: Number of runs.
    """

    label: str
    uses: str
    cells: tuple[Cell, ...]
    rank: Cell
    parameters: int | None
    seconds: float | None
    runs: int


@dataclass(frozen=True)
class Printed:
    """A printed figure.

    Attributes:
        figure: What it is.
        value: The figure.
        where: Where it is printed.
        difference: Measured minus printed, in points.
        off: Whether that is beyond 1 point and the seeds' interval.
    """

    figure: str
    value: float
    where: str
    difference: float
    off: bool


@dataclass(frozen=True)
class DatasetResult:
    """A method on one data set.

    Attributes:
        label: Row.
        dataset: Data set.
        cells: Averages over seeds.
        printed: What papers print.
        seeds: Number of seeds.
        lines: Numbers of the lines of its records in records.jsonl.
    """

    label: str
    dataset: str
    cells: tuple[Cell, ...]
    printed: tuple[Printed, ...]
    seeds: int
    lines: tuple[int, ...]


@dataclass(frozen=True)
class Standings:
    """One table.

    Attributes:
        group: Records of the table.
        averages: What the cells of `rows` are.
        sets: Data sets that they average over.
        chance: What guesses get there.
        rows: Methods, the best first.
        results: Methods by data set.
        ranking: What the ranks in the last column say; empty for too few methods or data sets, or
            if what the methods use is not stated.
    """

    group: Group
    averages: tuple[Column, ...]
    sets: tuple[str, ...]
    chance: tuple[Cell, ...]
    rows: tuple[Standing, ...]
    results: tuple[DatasetResult, ...]
    ranking: str

    @property
    def title(self) -> str:
        """The title of the group, always with its track."""
        group = self.group
        return f"{group.title}, {group.track}" if group.ranked else group.title


def make_standings(records: Sequence[Record]) -> list[Standings]:
    """Make the tables of finished records, which are in the order of records.jsonl. Ablations have
    none."""
    places = {id(record): number for number, record in enumerate(records, 1)}
    return [_standings(group, places) for group in _groups(records)]


def _groups(records: Sequence[Record]) -> Iterator[Group]:
    """Yield the groups of a report that compare methods, split by number of shots."""
    of_variants = ("ablation", "sensitivity")
    of_methods = [record for record in records if not record.protocol.startswith(of_variants)]
    for group in group_records(of_methods):
        for shots in sorted({record.task.shots for record in group.records}):
            selected = [record for record in group.records if record.task.shots == shots]
            yield replace(group, shots=shots, records=selected)


def _standings(group: Group, places: Mapping[int, int]) -> Standings:
    averages = group.averages[:3] if group.protocol == "base-to-novel" else group.columns
    sets, seeds = group.common
    ranks = group.ranks(group.columns[-1])
    rows = []
    for label, records in group.rows.items():
        uses, costs = group.uses(label), group.costs[label]
        trained = [record.seconds["train"] for record in costs if "train" in record.seconds]
        parameters = [record.parameters for record in costs if record.parameters is not None]
        standing = Standing(
            label,
            uses.words if uses else "",
            tuple(column.cell(group.comparable[label], sets, seeds) for column in averages),
            ranks.cells.get(label, Cell()) if ranks else Cell(),
            max(parameters, default=None),
            median(trained) if trained else None,
            len(records),
        )
        rows.append(standing)
    results = (
        _dataset_result(group, label, dataset, places)
        for dataset in group.datasets
        for label, records in group.rows.items()
        if any(record.task.data == dataset for record in records)
    )
    ranking = ""
    if ranks:
        differ = "they differ" if ranks.differ else "they are not shown to differ"
        ranking = (
            f"Mean ranks in {group.columns[-1].head} over n = {len(ranks.values)} data sets; "
            f"{differ} (Friedman's test, p {ranks.p:.2g})."
        )
        if ranks.left_out:
            ranking += f" Left out: {', '.join(ranks.left_out)}."
    chance = group.chance(averages, sets)
    best = _best_first(rows)
    return Standings(group, averages, tuple(sets), chance, tuple(best), tuple(results), ranking)


def _best_first(rows: Sequence[Standing]) -> list[Standing]:
    """Sort by mean rank if all rows with a figure have one, then by the last figure, then by
    label."""
    partly_ranked = any(row.rank.value is None and row.cells[-1].value is not None for row in rows)

    def key(row: Standing) -> tuple[float, float, str]:
        figure = row.cells[-1]
        rank = math.inf if row.rank.value is None else row.rank.number
        last = -1.0 if figure.value is None else figure.number
        return 0 if partly_ranked else rank, -last, row.label

    return sorted(rows, key=key)


def _dataset_result(
    group: Group, label: str, dataset: str, places: Mapping[int, int]
) -> DatasetResult:
    """Sum up a row on one data set; a table averages the same targets for all of its rows."""
    records = [record for record in group.rows[label] if record.task.data == dataset]
    cells = tuple(column.cell(group.comparable[label], [dataset]) for column in group.columns)
    printed = tuple(_compare_with_printed(records[0], group.columns, cells))
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
            places[figure.value].append(figure.where)
        for value, where in places.items():
            if cell.value is not None:
                difference = cell.number - value
                off = abs(difference) > max(paper.TOLERANCE, cell.interval or 0.0)
                yield Printed(column.head, value, "; ".join(where), difference, off)


def _printed(record: Record, metric: str) -> list[Figure]:
    """Return the printed figures for a metric of a record, as in `Record.metric`; "average" is a
    data set in what is printed."""
    if record.task.draw != "balanced" or not paper.has_paper_images(record, metric):
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


def write_leaderboard(results: Path, out: Path) -> dict[str, object]:
    """Write index.html, leaderboard.json and records.jsonl to `out`. The same records give the same
    bytes.

    Args:
        results: Folder or file of lines, as for `report`.
        out: Folder of the page.

    Returns:
        What leaderboard.json holds: the number of runs, the tables (`boards`), and the sentences of
        `published.contradictions` and `published.explained`.

    Raises:
        UserError: Something is no valid record of the bench, no run is finished, or `out` cannot be
            written.
    """
    read = read_records(results, strict=True)
    for text in read.notes:
        note(text)
    tables = make_standings(read.finished)
    if not tables:
        raise UserError(
            f"{results}: no finished run of a method, so a leaderboard has nothing to show"
        )
    summary: dict[str, object] = {
        "runs": len(read.finished),
        "boards": [_to_json(table) for table in tables],
        "contradictions": contradictions(),
        "explained": explained(),
    }
    with exclusive(out):  # two at once would mix their files
        write_text(out / "records.jsonl", "".join(record.line() for record in read.finished))
        text = json.dumps(summary, indent=1, ensure_ascii=False) + "\n"
        write_text(out / "leaderboard.json", text)
        write_text(out / "index.html", _html(tables, len(read.finished)))
    return summary


def _to_json(table: Standings) -> dict[str, object]:
    group = table.group
    return {
        "protocol": group.protocol,
        "backbone": group.backbone.model_dump(),
        "shots": group.shots,
        "shared": group.shared,
        "track": group.track,
        "heads": [column.head for column in table.averages],
        "columns": [column.head for column in group.columns],
        "datasets": table.sets,
        "notes": group.departures,
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
            "plots": trade_off(table.group) if table.group.protocol == "base-to-novel" else [],
            "ranking": " ".join(filter(None, [table.ranking, *table.group.departures])),
        }
        for table in tables
    ]
    html: str = template("leaderboard.html.j2", package="rmadapter_research").render(
        title=f"{methods} methods on {len(sets)} data set{'' if len(sets) == 1 else 's'}",
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
    settings = [f"{name} {setting_text(value)}" for name, value in table.group.shared.items()]
    scope = "empty, because no data set has all methods"
    if table.sets:
        chance = " / ".join(cell.text for cell in table.chance)
        scope = f"over {', '.join(table.sets)}, where chance is {chance}"
    return (
        f"The first table is {scope}. All runs share: {'; '.join(settings)}; "
        f"weights {table.group.backbone.digest[:8]}."
    )


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
        {
            "title": f"{protocol}: {backbone}, {shots} shot{'' if shots == 1 else 's'}",
            **_average_rows(rows),
        }
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
        places = sorted({figure.where for figures in row.values() for figure in figures})
        where = "; ".join(places)
        shown.append({"method": method, "cells": cells, "sources": len(places), "where": where})
    return {"heads": [paper.METRIC_NAMES.get(m, "accuracy") for m in metrics], "rows": shown}
