"""The boards as one self-contained page and as JSON, with the records they are made of."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from rmadapter.artifacts.record import parse_record
from rmadapter.bench.leaderboard.published import (
    AVERAGE,
    Figure,
    contradictions,
    published,
    sources,
)
from rmadapter.bench.leaderboard.standings import Board, Standing, boards
from rmadapter.bench.report import paper
from rmadapter.bench.report.groups import cell
from rmadapter.bench.report.read import fault, lines, read_records
from rmadapter.bench.report.stats import LEVEL
from rmadapter.errors import UserError
from rmadapter.support.files import write_text
from rmadapter.support.html import template
from rmadapter.support.locks import exclusive
from rmadapter.support.terminal import note

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = (
    340,
    300,
    48,
    328,
    10,
    256,
)  # of a scatter, in its own units


def write_leaderboard(results: Path, out: Path) -> dict[str, Any]:
    """Write index.html, leaderboard.json and records.jsonl to `out`, and return what the JSON
    holds.

    results: a folder or a file of lines, as for `report`. The same records give the same bytes.
    Raises UserError for anything that is no valid record of the bench, if no run is finished, and
    if `out` cannot be written.
    """
    for where, line in lines(results):
        if wrong := fault(parse_record(line, where)):
            raise UserError(f"{where}: {wrong}")
    read = read_records(results)
    for text in read.notes:
        note(text)
    found = sorted(read.finished, key=cell)
    made = boards(found)
    if not made:
        raise UserError(
            f"{results}: no finished run of a method, so a leaderboard has nothing to show"
        )
    summary = {
        "runs": len(found),
        "boards": [_facts(board) for board in made],
        "contradictions": contradictions(),
    }
    with exclusive(out):  # two at once would mix their files
        write_text(out / "records.jsonl", "".join(record.line() for record in found))
        write_text(
            out / "leaderboard.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n"
        )
        write_text(out / "index.html", _page(made, len(found)))
    return summary


def _facts(board: Board) -> dict[str, Any]:
    group = board.group
    return {
        "protocol": group.protocol,
        "backbone": group.backbone.model_dump(),
        "shots": group.shots,
        "shared": group.shared,
        "track": board.group.track,
        "heads": board.heads,
        "columns": board.columns,
        "datasets": board.sets,
        "standings": [asdict(row) for row in board.standings],
        "lines": [asdict(line) for line in board.lines],
    }


def _page(made: Sequence[Board], runs: int) -> str:
    script = (files("rmadapter") / "assets/leaderboard.js").read_text(encoding="utf-8")
    filters: dict[str, list[Any]] = {
        "protocol": [*dict.fromkeys(board.group.protocol for board in made)],
        "track": [*dict.fromkeys(board.group.track for board in made)],
        "backbone": [*dict.fromkeys(board.group.backbone.name for board in made)],
        "shots": sorted({board.group.shots for board in made}),
        "set": sorted({line.dataset for board in made for line in board.lines}),
    }
    sets, methods = (
        len(filters["set"]),
        len({row.label for board in made for row in board.standings}),
    )
    return template("leaderboard.html.j2").render(
        title=f"{methods} methods on {sets} data set{'' if sets == 1 else 's'}",
        runs=runs,
        filters=filters,
        entries=[
            {"board": b, "about": _about(b), "plot": scatter(b), "ranking": _ranking(b)}
            for b in made
        ],
        printed=printed_averages(),
        contradictions=contradictions(),
        script=script,
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _about(board: Board) -> str:
    shared = "; ".join(
        f"{name} {', '.join(map(str, value)) if isinstance(value, (list, tuple)) else value}"
        for name, value in board.group.shared.items()
    )
    where = (
        f"over {', '.join(board.sets)}"
        if board.sets
        else "empty, because no data set has all methods"
    )
    return f"The first table is {where}. All runs share: {shared}; weights {board.group.backbone.digest[:8]}."


def _ranking(board: Board) -> str:
    found = board.ranks
    if found is None:
        return ""
    n, differ = (
        len(found.values),
        "they differ" if found.p < LEVEL else "they are not shown to differ",
    )
    told = f"Mean ranks in {board.columns[-1]} over n = {n} data sets; {differ} (Friedman's test, p {found.p:.2g})."
    return f"{told} Left out: {', '.join(found.left_out)}." if found.left_out else told


def scatter(board: Board) -> dict[str, Any] | None:
    """Base against novel accuracy of the standings, in the units of the drawing; None for fewer
    than two points."""
    rows = [
        (n, row)
        for n, row in enumerate(board.standings, 1)
        if all(c.value is not None for c in row.cells[:2])
    ]
    if board.group.protocol != "base-to-novel" or len(rows) < 2:
        return None
    x, y = (
        _axis([row for _, row in rows], i, *ends)
        for i, ends in enumerate(((LEFT, RIGHT), (BOTTOM, TOP)))
    )
    points = []
    for number, row in rows:
        base, novel = row.cells[:2]
        at = x[1](base.number), y[1](novel.number)
        wide, high = base.interval or 0.0, novel.interval or 0.0
        bars = [
            (x[1](base.number - wide), at[1], x[1](base.number + wide), at[1]),
            (at[0], y[1](novel.number - high), at[0], y[1](novel.number + high)),
        ]
        shown = {"label": row.label, "base": base.text, "novel": novel.text}
        points.append({"number": number, "x": at[0], "y": at[1], "bars": bars, **shown})
    box = {
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": RIGHT,
        "top": TOP,
        "bottom": BOTTOM,
    }
    return {**box, "x": x[0], "y": y[0], "points": points}


def _percent(value: float) -> float:
    """The nearest that an accuracy can be: an interval over two seeds may reach beyond."""
    return min(max(value, 0), 100)


def _axis(
    rows: Sequence[Standing], which: int, start: float, end: float
) -> tuple[list[dict[str, Any]], Any]:
    """Ticks, and a function from percent to the drawing's units."""
    cells = [row.cells[which] for row in rows]
    ends = [
        _percent(cell.number + sign * (cell.interval or 0)) for cell in cells for sign in (-1, 1)
    ]
    low, high = min(ends), max(ends)
    step = next(step for step in (1, 2, 5, 10, 20, 50) if (high - low) / step <= 6)
    low, high = step * math.floor(low / step), step * math.ceil(high / step + 1e-9)
    high = max(high, low + step)

    def place(value: float) -> float:
        return round(start + (_percent(value) - low) / (high - low) * (end - start), 1)

    return [{"at": place(tick), "text": str(tick)} for tick in range(low, high + 1, step)], place


def printed_averages() -> list[dict[str, Any]]:
    """Tables of the printed averages by protocol, backbone and shots; where sources differ, with
    all values."""
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
            **_averages(rows),
        }
        for (protocol, backbone, shots), rows in sorted(tables.items())
    ]


def _averages(rows: dict[str, dict[str, list[Figure]]]) -> dict[str, Any]:
    metrics = [m for m in ("base", "novel", "hm", "all") if any(m in row for row in rows.values())]
    shown = []
    best = {
        method: max((f.value for f in row.get(metrics[-1], [])), default=0.0)
        for method, row in rows.items()
    }
    for method in sorted(rows, key=lambda method: -best[method]):
        row = rows[method]
        cells = [
            " / ".join(f"{v:.2f}" for v in sorted({f.value for f in row.get(m, [])}))
            for m in metrics
        ]
        where = sorted(
            {f"{sources()[f.source].title}, {f.place}" for some in row.values() for f in some}
        )
        shown.append(
            {"method": method, "cells": cells, "sources": len(where), "where": "; ".join(where)}
        )
    return {"heads": [paper.NAMES.get(m, "accuracy") for m in metrics], "rows": shown}
