"""The leaderboard: standings as one self-contained page and as JSON, with the records they are made
of."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import TypeAlias, TypedDict

from rmadapter.artifacts.record import parse_record
from rmadapter.bench.leaderboard.published import (
    AVERAGE,
    Figure,
    contradictions,
    published,
    sources,
)
from rmadapter.bench.leaderboard.standings import Standing, Standings, make_standings
from rmadapter.bench.report import paper
from rmadapter.bench.report.groups import experiment_of
from rmadapter.bench.report.read import RECORDS, fault, lines, read_records
from rmadapter.bench.report.stats import LEVEL
from rmadapter.bench.report.tables import counted
from rmadapter.errors import UserError
from rmadapter.support.files import write_text
from rmadapter.support.html import template
from rmadapter.support.locks import exclusive
from rmadapter.support.terminal import note

# of a scatter, in its own units
WIDTH, HEIGHT = 340, 300
LEFT, RIGHT, TOP, BOTTOM = 48, 328, 10, 256

Tick: TypeAlias = "dict[str, float | str]"  # at, text


class Leaderboard(TypedDict):
    """The content of leaderboard.json."""

    runs: int
    boards: list[dict[str, object]]
    contradictions: list[str]


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
        "standings": [asdict(row) for row in table.rows],
        "lines": [asdict(result) for result in table.results],
    }


def _html(tables: Sequence[Standings], runs: int) -> str:
    script = (files("rmadapter") / "assets/leaderboard.js").read_text(encoding="utf-8")
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
            "ranking": _ranking(table),
        }
        for table in tables
    ]
    html: str = template("leaderboard.html.j2").render(
        title=f"{methods} methods on {counted(len(sets), 'data set')}",
        runs=runs,
        filters=filters,
        entries=entries,
        printed=printed_averages(),
        contradictions=contradictions(),
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
        scope = f"over {', '.join(table.sets)}"
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
