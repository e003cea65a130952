"""Read records back. Each experiment counts once; what is no record, or unlike the others, is left
out with a note."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmadapter.artifacts.record import MethodName, Record, parse_record
from rmadapter.bench.protocols import PROTOCOLS
from rmadapter.bench.report.groups import TRANSFER, cell, known_as, shared, track
from rmadapter.errors import UserError
from rmadapter.support.files import read_text, user_path

SUMMARY, RECORDS = "report.json", "records.jsonl"  # of a report's own files
SUMMARIES = (SUMMARY, "leaderboard.json")  # neither records nor worth a note

Key = tuple[Any, ...]  # the cell of a record, and its text
Finished = dict[Key, tuple[str, Record]]  # where the record was found, and the record


@dataclass(frozen=True)
class Results:
    """finished: each experiment once. unfinished: failed and not applicable. notes: what was left
    out and why."""

    finished: list[Record]
    unfinished: list[Record]
    notes: list[str]


def read_records(results: Path) -> Results:
    """The records of a file of lines, or of every *.json and *.jsonl below a folder.

    What is no record is left out with a note, and so is a run tested on other images, or with other
    settings, than most of its kind; of two finished records of one cell the later counts, with a
    note. Raises UserError without records.
    """
    found: list[tuple[str, Record]] = []
    notes = []
    for where, line in lines(results):
        try:
            record = parse_record(line, where)
        except UserError as error:
            notes.append(f"{error}; left out")
            continue
        if wrong := fault(record):
            notes.append(f"{where}: {wrong}; left out")
        else:
            found.append((where, record))
    if not found:
        why = f" ({notes[0]})" if notes else ""
        raise UserError(
            f"{results}: no bench records found{why}; `rmadapter bench ... --out FOLDER` writes them"
        )
    finished: Finished = {}
    for where, record in found:
        if record.status == "finished":
            finished.setdefault(
                (cell(record), record.line()), (where, record)
            )  # the same record twice needs no note
    # A failure that has since been repeated with success does not count.
    cells = {which for which, _ in finished}
    unfinished = {cell(r): r for _, r in found if r.status != "finished" and cell(r) not in cells}
    notes += _tested_elsewhere(finished) + _set_otherwise(finished) + _done_again(finished)
    # Sorted, so that the same records give the same report wherever they were found.
    done = sorted((record for _, record in finished.values()), key=cell)
    return Results(done, sorted(unfinished.values(), key=cell), notes)


def _tested_elsewhere(finished: Finished) -> list[str]:
    """Remove each record that was tested on other images than most of its data set, and return a
    note on it."""
    sets: dict[Any, dict[str, list[Key]]] = defaultdict(lambda: defaultdict(list))
    for key, (_, record) in finished.items():
        for score in record.scores:
            drawn = () if score.split == "test" else (record.task.shots, record.split_digest)
            if score.digest:
                sets[(record.task.data, score.name, score.split, *drawn)][score.digest].append(key)
    fewer = [key for sides in sets.values() for key in _fewer(finished, sides)[0]]
    gone = [finished.pop(key) for key in dict.fromkeys(fewer)]
    return [
        f"{where}: tested on other images of {r.task.data} than the runs kept; left out"
        for where, r in gone
    ]


def _set_otherwise(finished: Finished) -> list[str]:
    """Remove each record that has other settings than most of its row, and return a note on it.

    Variants that are not the protocol's own, such as methods as published, differ from set to set
    by design and are kept. A setting that a record lacks, as of another version, is no difference.
    """
    rows: dict[tuple[Any, ...], list[Key]] = defaultdict(list)
    for key, (_, record) in finished.items():
        planned = [variant.label for variant in PROTOCOLS[record.protocol].variants]
        if not record.variant or record.variant in planned:
            row = (
                record.protocol,
                *known_as(record),
                record.variant,
                record.axis,
                json.dumps(record.value),
            )
            made = {name: value for name, value in shared(record).items() if name != "templates"}
            rows[
                (*row, track(record), record.backbone.digest, record.task.shots, json.dumps(made))
            ].append(key)
    notes = []
    for keys in rows.values():
        settings = {key: _made_with(finished[key][1].method) for key in keys}
        sides = _sides(settings)
        fewer, _ = _fewer(finished, {text: some for text, (_, some) in sides.items()})
        usual = next(made for made, some in sides.values() if not {*some} & {*fewer})
        for key in fewer:
            where, record = finished.pop(key)
            own = sorted(settings[key].items())
            apart = [f"{name}={value}" for name, value in own if usual.get(name, value) != value]
            what = f"{record.method.name} with {', '.join(apart)}, unlike the runs kept"
            notes.append(f"{where}: {what}; left out, put it in a folder of its own")
    return notes


def _sides(
    settings: Mapping[Key, Mapping[str, Any]],
) -> dict[str, tuple[dict[str, Any], list[Key]]]:
    """Records whose settings agree, and these settings, by any text; one that lacks settings is
    with the most others that it agrees with."""
    sides: list[tuple[dict[str, Any], list[Key]]] = []
    for key, own in sorted(
        settings.items(), key=lambda item: (-len(item[1]), json.dumps(item[1], sort_keys=True))
    ):
        fit = [
            side
            for side in sides
            if all(side[0].get(name, value) == value for name, value in own.items())
        ]
        made, keys = max(fit, key=lambda side: len(side[1]), default=({}, []))
        if not fit:
            sides.append((made, keys))
        made.update(own)
        keys.append(key)
    return {json.dumps(made, sort_keys=True): (made, keys) for made, keys in sides}


def _made_with(method: MethodName) -> dict[str, Any]:
    """Its settings, and the start of the digest of each file or code behind it."""
    return {
        **method.settings,
        **({"content": " ".join(s[:12] for s in method.sums)} if method.sums else {}),
    }


def _done_again(finished: Finished) -> list[str]:
    """Remove all but the latest record of each cell, and return a note on each."""
    latest: dict[Any, Key] = {}
    notes = []
    for key in [*finished]:
        old = latest.setdefault(key[0], key)
        if old != key:
            late, early = sorted(
                [old, key], key=lambda one: finished[one][1].finished, reverse=True
            )  # ISO, UTC
            latest[key[0]] = late
            told = f"{finished[late][0]} is the same experiment, finished later or first in order; left out"
            notes.append(f"{finished[early][0]}: {told}")
            del finished[early]
    return notes


def _fewer(finished: Finished, sides: Mapping[str, list[Key]]) -> tuple[list[Key], Key]:
    """The keys of all sides but that with most cells, and one key of that; between sides of the
    same size the latest run decides, then names."""

    def size(side: str) -> tuple[int, str, str]:
        keys = sides[side]
        return (
            len({which for which, _ in keys}),
            max(finished[key][1].finished for key in keys),
            side,
        )

    *fewer, most = sorted(sides, key=size)
    return [key for side in fewer for key in sides[side]], sides[most][0]


def lines(results: Path) -> Iterator[tuple[str, str]]:
    """(where it was found, text) of everything that may be a record, but for what `report` and
    `leaderboard` wrote into folders below."""
    results = user_path(results)
    if not results.exists():
        raise UserError(
            f"{results}: not found; give the folder that `rmadapter bench ... --out` wrote, or its records"
        )
    paths = [results] if results.is_file() else sorted(results.rglob("*.json*"))
    for path in paths:
        where = path.relative_to(results).as_posix() if path != results else path.name
        hidden = any(part.startswith(".") for part in where.split("/"))
        if hidden or path.name in SUMMARIES or path.suffix not in (".json", ".jsonl"):
            continue
        if where.endswith(f"/{RECORDS}") and any(
            (path.parent / name).is_file() for name in SUMMARIES
        ):
            continue  # its runs are here, too, or were deleted
        try:
            text = read_text(path, errors="replace")
        except UserError:
            text = "not readable"
        if path.suffix == ".json":
            yield where, text
        else:
            yield from (
                (f"{where}, line {n}", line)
                for n, line in enumerate(text.split("\n"), 1)
                if line.strip()
            )


def fault(record: Record) -> str:
    """Why a record is not one of the bench's; empty if it is."""
    if record.protocol not in PROTOCOLS:
        return f"a run of {record.protocol!r}, which is not a protocol of the bench"
    needed = "all" if record.protocol in ("few-shot", *TRANSFER) else "base"
    missing = record.status == "finished" and record.metric(needed) is None
    return f"finished, but without an accuracy on {needed} classes" if missing else ""
