"""Read records: the ones that a report compares, or all as a DataFrame.

`read_records` leaves out what cannot be compared, and says so in notes.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from rmadapter.artifacts.record import MethodName, Record, parse_record
from rmadapter.bench.protocols import PROTOCOLS
from rmadapter.bench.report.groups import (
    TRANSFER,
    Experiment,
    experiment_of,
    method_key,
    shared,
    track,
)
from rmadapter.errors import UserError
from rmadapter.support.files import read_text, user_path

if TYPE_CHECKING:
    import pandas

SUMMARY, RECORDS = "report.json", "records.jsonl"  # of a report's own files
SUMMARIES = (SUMMARY, "leaderboard.json")  # neither records nor worth a note
OF_TASK = ("data", "shots", "seed", "draw", "classes", "augmentation", "views")
OF_RUN = ("protocol", "variant", "axis", "value", "precision", "status")

Key: TypeAlias = "tuple[Experiment, str]"  # what a record measured, and its text
Finished: TypeAlias = "dict[Key, tuple[str, Record]]"  # the place of the record, and the record
Settings: TypeAlias = "Mapping[str, object]"


@dataclass(frozen=True)
class Results:
    """finished: each experiment once. unfinished: failed and not applicable. notes: what was left
    out and why."""

    finished: list[Record]
    unfinished: list[Record]
    notes: list[str]


def read_records(results: Path) -> Results:
    """Read the records of a file of lines, or of every *.json and *.jsonl below a folder.

    What is no record is left out with a note, and so is a run tested on other images, or with other
    settings, than most of its kind; of two finished records of one experiment the later counts,
    with a note. Raises UserError without records.
    """
    records: list[tuple[str, Record]] = []
    notes = []
    for place, line in lines(results):
        try:
            record = parse_record(line, place)
        except UserError as error:
            notes.append(f"{error}; left out")
            continue
        wrong = fault(record)
        if wrong:
            notes.append(f"{place}: {wrong}; left out")
        else:
            records.append((place, record))
    if not records:
        reason = f" ({notes[0]})" if notes else ""
        raise UserError(
            f"{results}: no bench records found{reason}; "
            "`rmadapter bench ... --out FOLDER` writes them"
        )
    finished: Finished = {}
    for place, record in records:
        if record.status == "finished":  # the same record twice needs no note
            finished.setdefault((experiment_of(record), record.line()), (place, record))
    # A failure that has since been repeated with success does not count.
    done_experiments = {key[0] for key in finished}
    unfinished = {
        experiment_of(record): record
        for _, record in records
        if record.status != "finished" and experiment_of(record) not in done_experiments
    }
    notes += _drop_other_images(finished)
    notes += _drop_other_settings(finished)
    notes += _drop_repeated(finished)
    # Sorted, so that the same records give the same report wherever they lie.
    done = sorted((record for _, record in finished.values()), key=experiment_of)
    return Results(done, sorted(unfinished.values(), key=experiment_of), notes)


def _drop_other_images(finished: Finished) -> list[str]:
    """Remove each record that was tested on other images than most of its data set, and return a
    note on it."""
    sets: dict[object, dict[str, list[Key]]] = defaultdict(lambda: defaultdict(list))
    for key, (_, record) in finished.items():
        for score in record.scores:
            drawn = () if score.split == "test" else (record.task.shots, record.split_digest)
            judged = (record.task.data, score.name, score.split, *drawn)
            if score.digest:
                sets[judged][score.digest].append(key)
    dropped = [key for sides in sets.values() for key in _minority(finished, sides)[0]]
    notes = []
    for key in dict.fromkeys(dropped):
        place, record = finished.pop(key)
        notes.append(
            f"{place}: tested on other images of {record.task.data} than the runs kept; left out"
        )
    return notes


def _drop_other_settings(finished: Finished) -> list[str]:
    """Remove each record that has other settings than most of its row, and return a note on it.

    Variants that are not the protocol's own, such as methods as published, differ from set to set
    by design and are kept. A setting that a record lacks, as of another version, is no difference.
    """
    rows: dict[tuple[object, ...], list[Key]] = defaultdict(list)
    for key, (_, record) in finished.items():
        planned = [variant.label for variant in PROTOCOLS[record.protocol].variants]
        if not record.variant or record.variant in planned:
            method = (*method_key(record), track(record), record.backbone.digest)
            row = (record.protocol, record.variant, record.axis, json.dumps(record.value))
            same = {name: value for name, value in shared(record).items() if name != "templates"}
            alike = (*row, *method, record.task.shots, json.dumps(same))
            rows[alike].append(key)
    notes = []
    for keys in rows.values():
        settings = {key: _settings(finished[key][1].method) for key in keys}
        sides = _sides(settings)
        dropped, _ = _minority(finished, {text: members for text, (_, members) in sides.items()})
        kept = next(own for own, members in sides.values() if not {*members} & {*dropped})
        for key in dropped:
            place, record = finished.pop(key)
            different = [
                f"{name}={value}"
                for name, value in sorted(settings[key].items())
                if kept.get(name, value) != value
            ]
            notes.append(
                f"{place}: {record.method.name} with {', '.join(different)}, unlike the runs kept; "
                "left out, put it in a folder of its own"
            )
    return notes


def _sides(settings: Mapping[Key, Settings]) -> dict[str, tuple[Settings, list[Key]]]:
    """Group records whose settings agree, with these settings, by any text; one that lacks settings
    joins the largest group that it agrees with."""

    def most_settings_first(item: tuple[Key, Settings]) -> tuple[int, str]:
        return -len(item[1]), json.dumps(item[1], sort_keys=True)

    sides: list[tuple[dict[str, object], list[Key]]] = []
    for key, own in sorted(settings.items(), key=most_settings_first):
        agreeing = [
            side
            for side in sides
            if all(side[0].get(name, value) == value for name, value in own.items())
        ]
        common, keys = max(agreeing, key=lambda side: len(side[1]), default=({}, []))
        if not agreeing:
            sides.append((common, keys))
        common.update(own)
        keys.append(key)
    return {json.dumps(common, sort_keys=True): (common, keys) for common, keys in sides}


def _settings(method: MethodName) -> Settings:
    """Return the settings, and the start of the digest of each file or code behind the method."""
    content = " ".join(digest[:12] for digest in method.sums)
    return {**method.settings, **({"content": content} if content else {})}


def _drop_repeated(finished: Finished) -> list[str]:
    """Remove all but the latest record of each experiment, and return a note on each."""
    latest: dict[Experiment, Key] = {}
    notes = []
    for key in [*finished]:
        old = latest.setdefault(key[0], key)
        if old != key:
            times = {k: finished[k][1].finished for k in (old, key)}  # ISO, UTC
            late, early = sorted([old, key], key=lambda k: times[k], reverse=True)
            latest[key[0]] = late
            notes.append(
                f"{finished[early][0]}: {finished[late][0]} is the same experiment, finished later "
                "or first in order; left out"
            )
            del finished[early]
    return notes


def _minority(finished: Finished, sides: Mapping[str, list[Key]]) -> tuple[list[Key], Key]:
    """Return the keys of all sides but that with most experiments, and one key of that; between
    sides of the same size the latest run decides, then names."""

    def size(side: str) -> tuple[int, str, str]:
        keys = sides[side]
        return len({key[0] for key in keys}), max(finished[key][1].finished for key in keys), side

    *fewer, most = sorted(sides, key=size)
    return [key for side in fewer for key in sides[side]], sides[most][0]


def lines(results: Path) -> Iterator[tuple[str, str]]:
    """Yield (place, text) of everything that may be a record, except what `report` and
    `leaderboard` wrote into folders below."""
    results = user_path(results)
    if not results.exists():
        raise UserError(
            f"{results}: not found; give the folder that `rmadapter bench ... --out` wrote, or its "
            "records"
        )
    paths = [results] if results.is_file() else sorted(results.rglob("*.json*"))
    for path in paths:
        place = path.relative_to(results).as_posix() if path != results else path.name
        hidden = any(part.startswith(".") for part in place.split("/"))
        if hidden or path.name in SUMMARIES or path.suffix not in (".json", ".jsonl"):
            continue
        beside_summary = any((path.parent / name).is_file() for name in SUMMARIES)
        if place.endswith(f"/{RECORDS}") and beside_summary:
            continue  # the runs of that report are below the folder, too, or were deleted
        try:
            text = read_text(path, errors="replace")
        except UserError:
            text = "not readable"
        if path.suffix == ".json":
            yield place, text
        else:
            for number, line in enumerate(text.split("\n"), 1):
                if line.strip():
                    yield f"{place}, line {number}", line


def fault(record: Record) -> str:
    """Say why a record is not one of the bench's; empty if it is."""
    if record.protocol not in PROTOCOLS:
        return f"a run of {record.protocol!r}, which is not a protocol of the bench"
    needed = "all" if record.protocol in ("few-shot", *TRANSFER) else "base"
    missing = record.status == "finished" and record.metric(needed) is None
    return f"finished, but without an accuracy on {needed} classes" if missing else ""


def records(results: str | Path) -> pandas.DataFrame:
    """Read all records of a folder or file, from `fit` or `bench`, as a pandas DataFrame.

    A row is a score. A run without scores, which failed or whose method does not apply, has one row
    with the reason.

    Args:
        results: A folder, which is searched to any depth, or a file of records.

    Returns:
        `accuracy`, `zero_shot`, `gain` and `balanced`, the balanced accuracy, with the ends of its
        95 % interval, all in percent, on the set `tested`; every setting of the
        methods as a column `set.NAME`; seconds as columns `seconds.WHAT`; and `file`, where the
        record is.

    Raises:
        UserError: Pandas is missing, or there is no record.

    Example:
        >>> from rmadapter import records
        >>> table = records("run")
        >>> table[["method", "shots", "tested", "images"]].values.tolist()
        [['rmadapter', 4, 'all', 16]]
    """
    try:
        import pandas
    except ImportError:
        raise UserError(
            "records as a data frame need pandas: pip install 'rmadapter[report]'"
        ) from None
    seen: set[str] = set()  # a report of the folder repeats its records
    rows = []
    for place, line in lines(Path(results)):
        with suppress(UserError):  # the other files of a run are not records
            record = parse_record(line, place)
            if record.line() not in seen:
                rows += [{"file": place, **row} for row in _frame_rows(record)]
                seen.add(record.line())
    if not rows:
        raise UserError(
            f"{results}: no run records found; `rmadapter fit` and `bench` write them below --out"
        )
    return pandas.DataFrame(rows)


def _frame_rows(record: Record) -> list[dict[str, object]]:
    run = {
        "method": record.method.name,
        "title": record.method.title,
        "backbone": record.backbone.name,
        **{name: getattr(record.task, name) for name in OF_TASK},
        **{name: getattr(record, name) for name in OF_RUN},
    }
    cost = {
        "parameters": record.parameters,
        "step_seconds": record.step_seconds,
        "peak_mb": record.peak_mb,
        **{f"seconds.{name}": value for name, value in record.seconds.items()},
        "temperature": record.temperature,
        **{f"set.{name}": value for name, value in record.method.settings.items()},
        "key": record.key,
        "finished": record.finished,
    }
    if not record.scores:
        return [{**run, "reason": record.reason, **cost}]
    rows: list[dict[str, object]] = []
    for score in record.scores:
        gain = None
        if score.accuracy is not None and score.zero_shot is not None:
            gain = score.accuracy - score.zero_shot
        tested = {
            "tested": score.name,
            "split": score.split,
            "tested_data": score.data or record.task.data,
            "images": score.images,
            "n_classes": score.classes,
            "accuracy": score.accuracy,
            "zero_shot": score.zero_shot,
            "gain": gain,
            "balanced": score.balanced and score.balanced.accuracy,
            "balanced_low": score.balanced and score.balanced.low,
            "balanced_high": score.balanced and score.balanced.high,
            "reason": score.reason or record.reason,
        }
        rows.append({**run, **tested, **cost})
    return rows
