"""Read records: the ones that a report compares, or all as a DataFrame.

`read_records` leaves out what cannot be compared, and says so in notes.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from rmadapter.artifacts.record import MethodName, Record, parse_record
from rmadapter.bench.protocols import PROTOCOLS
from rmadapter.bench.report.format import import_pandas
from rmadapter.bench.report.groups import (
    TRANSFER,
    Experiment,
    experiment_of,
    method_key,
    shared,
    track,
    without_templates,
)
from rmadapter.errors import UserError
from rmadapter.support.files import read_text, user_path

if TYPE_CHECKING:
    import pandas

SUMMARY, RECORDS = "report.json", "records.jsonl"  # of a report's own files
SUMMARIES = (SUMMARY, "leaderboard.json")  # neither records nor worth a note
OF_TASK = ("data", "shots", "seed", "draw", "classes", "augmentation", "views")
OF_RUN = ("protocol", "variant", "axis", "value", "precision", "status")

Settings: TypeAlias = "Mapping[str, object]"


@dataclass(frozen=True)
class Results:
    """The records of a bench that a report compares.

    Attributes:
        finished: Each experiment once.
        unfinished: Failed and not applicable.
        notes: What was left out, and why.
    """

    finished: list[Record]
    unfinished: list[Record]
    notes: list[str]


class Run(NamedTuple):
    """A record with the place where it was read, and what it measured."""

    place: str
    record: Record
    experiment: Experiment


def read_records(results: Path, strict: bool = False) -> Results:
    """Read the records of a file of lines, or of every *.json and *.jsonl below a folder.

    What is no record is left out with a note, and so is a run tested on other images, or with other
    settings, than most of its kind; of two finished records of one experiment the later counts,
    with a note.

    Args:
        results: File or folder.
        strict: Whether to refuse what is no record of the bench.

    Raises:
        UserError: There is no record.
    """
    runs: list[Run] = []
    notes: list[str] = []
    for place, line in lines(results):
        try:
            record = parse_record(line, place)
            _check_bench_record(record, place)
        except UserError as error:
            if strict:
                raise
            notes.append(f"{error}; left out")
        else:
            runs.append(Run(place, record, experiment_of(record)))
    if not runs:
        reason = f" ({notes[0]})" if notes else ""
        raise UserError(
            f"{results}: no bench records found{reason}; "
            "`rmadapter bench ... --out FOLDER` writes them"
        )
    unique: dict[object, Run] = {}
    for run in runs:
        if run.record.status == "finished":  # the same record twice needs no note
            unique.setdefault((run.experiment, run.record.line()), run)
    finished = [*unique.values()]
    # A failure that has since been repeated with success does not count.
    done = {run.experiment for run in finished}
    unfinished = {
        run.experiment: run.record
        for run in runs
        if run.record.status != "finished" and run.experiment not in done
    }
    for find in (_other_images, _other_settings, _repeated):
        dropped = find(finished)
        notes += [f"{finished[number].place}: {why}" for number, why in dropped.items()]
        finished = [run for number, run in enumerate(finished) if number not in dropped]
    # Sorted, so that the same records give the same report wherever they lie.
    return Results(
        sorted((run.record for run in finished), key=experiment_of),
        sorted(unfinished.values(), key=experiment_of),
        notes,
    )


def _other_images(runs: Sequence[Run]) -> dict[int, str]:
    """Return number -> reason of each run that was tested on other images than most of its data
    set."""
    sets: dict[object, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, run in enumerate(runs):
        task = run.record.task
        for score in run.record.scores:
            drawn = () if score.split == "test" else (task.shots, run.record.split_digest)
            if score.digest:
                judged = (task.data, score.name, score.split, *drawn)
                sets[judged][score.digest].append(number)
    return {
        number: f"tested on other images of {runs[number].record.task.data} than the runs kept; "
        "left out"
        for sides in sets.values()
        for number in _minority(runs, sides)
    }


def _other_settings(runs: Sequence[Run]) -> dict[int, str]:
    """Return number -> reason of each run that has other settings than most of its row.

    Variants that are not the protocol's own, such as methods as published, differ from set to set
    by design and are kept. A setting that a record lacks, as of another version, is no difference.
    """
    rows: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for number, (_, record, _) in enumerate(runs):
        planned = [variant.label for variant in PROTOCOLS[record.protocol].variants]
        if not record.variant or record.variant in planned:
            method = (*method_key(record), track(record), record.backbone.digest)
            row = (record.protocol, record.variant, record.axis, json.dumps(record.value))
            same = json.dumps(without_templates(shared(record)))
            alike = (*row, *method, record.task.shots, same)
            rows[alike].append(number)
    reasons = {}
    for numbers in rows.values():
        settings = {number: _settings(runs[number].record.method) for number in numbers}
        sides = _sides(settings)
        dropped = _minority(runs, {text: members for text, (_, members) in sides.items()})
        kept = next(own for own, members in sides.values() if not {*members} & {*dropped})
        for number in dropped:
            different = [
                f"{name}={value}"
                for name, value in sorted(settings[number].items())
                if kept.get(name, value) != value
            ]
            reasons[number] = (
                f"{runs[number].record.method.name} with {', '.join(different)}, unlike the runs "
                "kept; left out, put it in a folder of its own"
            )
    return reasons


def _sides(settings: Mapping[int, Settings]) -> dict[str, tuple[Settings, list[int]]]:
    """Group runs whose settings agree, with these settings, by any text; one that lacks settings
    joins the largest group that it agrees with."""

    def most_settings_first(item: tuple[int, Settings]) -> tuple[int, str]:
        return -len(item[1]), json.dumps(item[1], sort_keys=True)

    sides: list[tuple[dict[str, object], list[int]]] = []
    for number, own in sorted(settings.items(), key=most_settings_first):
        agreeing = [
            side
            for side in sides
            if all(side[0].get(name, value) == value for name, value in own.items())
        ]
        common, numbers = max(agreeing, key=lambda side: len(side[1]), default=({}, []))
        if not agreeing:
            sides.append((common, numbers))
        common.update(own)
        numbers.append(number)
    return {json.dumps(common, sort_keys=True): (common, numbers) for common, numbers in sides}


def _settings(method: MethodName) -> Settings:
    """Return the settings, and the start of the digest of each file or code behind the method."""
    content = " ".join(digest[:12] for digest in method.sums)
    return {**method.settings, **({"content": content} if content else {})}


def _repeated(runs: Sequence[Run]) -> dict[int, str]:
    """Return number -> reason of all but the latest run of each experiment."""
    kept: dict[Experiment, int] = {}
    reasons = {}
    # times are ISO, in UTC; of equal ones the first counts
    latest_first = sorted(range(len(runs)), key=lambda n: runs[n].record.finished, reverse=True)
    for number in latest_first:
        late = kept.setdefault(runs[number].experiment, number)
        if late != number:
            reasons[number] = (
                f"{runs[late].place} is the same experiment, finished later or first in order; "
                "left out"
            )
    return reasons


def _minority(runs: Sequence[Run], sides: Mapping[str, list[int]]) -> list[int]:
    """Return the runs of all sides but that with most experiments; between sides of the same size
    the latest run decides, then names."""

    def size(side: str) -> tuple[int, str, str]:
        members = [runs[number] for number in sides[side]]
        experiments = {run.experiment for run in members}
        return len(experiments), max(run.record.finished for run in members), side

    fewer = sorted(sides, key=size)[:-1]
    return [number for side in fewer for number in sides[side]]


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


def _check_bench_record(record: Record, place: str) -> None:
    """Raise UserError for a record that is not one of the bench's."""
    if record.protocol not in PROTOCOLS:
        raise UserError(
            f"{place}: a run of {record.protocol!r}, which is not a protocol of the bench"
        )
    needed = "all" if record.protocol in ("few-shot", *TRANSFER) else "base"
    if record.status == "finished" and record.metric(needed) is None:
        raise UserError(f"{place}: finished, but without an accuracy on {needed} classes")


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
    pandas = import_pandas("records as a data frame")
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
