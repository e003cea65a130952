"""Records as a tidy pandas DataFrame: one row for each score of each run."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from rmadapter.artifacts.record import Record, parse_record
from rmadapter.bench.report.read import lines
from rmadapter.errors import UserError

OF_TASK = ("data", "shots", "seed", "classes", "augmentation", "views")


def records(results: str | Path) -> Any:
    """All records of a folder or file, from `fit` or `bench`, as a DataFrame.

    A row is a score: `accuracy`, `zero_shot` and `gain` in percent, on the set `tested`. A run
    without scores, which failed or whose method does not apply, has one row with the reason. Every
    setting of the methods is a column `set.NAME`, seconds are columns `seconds.WHAT`, and `file` is
    where the record was found. Raises UserError without pandas, and if there is no record.
    """
    try:
        import pandas
    except ImportError:
        raise UserError(
            "records as a data frame need pandas: pip install 'rmadapter[report]'"
        ) from None
    seen: set[str] = set()  # a report of the folder repeats its records
    rows = []
    for where, line in lines(Path(results)):
        with suppress(UserError):  # the other files of a run are not records
            record = parse_record(line, where)
            if record.line() not in seen:
                rows += [{"file": where, **row} for row in _rows(record)]
                seen.add(record.line())
    if not rows:
        raise UserError(
            f"{results}: no run records found; `rmadapter fit` and `bench` write them below --out"
        )
    return pandas.DataFrame(rows)


def _rows(record: Record) -> list[dict[str, Any]]:
    run = {
        "method": record.method.name,
        "title": record.method.title,
        "backbone": record.backbone.name,
        **{name: getattr(record.task, name) for name in OF_TASK},
        **{
            name: getattr(record, name)
            for name in ("protocol", "variant", "axis", "value", "precision", "status")
        },
    }
    cost = {
        "parameters": record.parameters,
        "step_seconds": record.step_seconds,
        "peak_mb": record.peak_mb,
        **{f"seconds.{what}": value for what, value in record.seconds.items()},
        "temperature": record.temperature,
        **{f"set.{name}": value for name, value in record.method.settings.items()},
        "key": record.key,
        "finished": record.finished,
    }
    rows: list[dict[str, Any]] = []
    for score in record.scores:
        both = score.accuracy is not None and score.zero_shot is not None
        rows.append(
            {
                **run,
                "tested": score.name,
                "split": score.split,
                "tested_data": score.data or record.task.data,
                "images": score.images,
                "n_classes": score.classes,
                "accuracy": score.accuracy,
                "zero_shot": score.zero_shot,
                "gain": score.accuracy - score.zero_shot if both else None,  # type: ignore[operator]
                "reason": score.reason or record.reason,
                **cost,
            }
        )
    return rows or [{**run, "reason": record.reason, **cost}]
