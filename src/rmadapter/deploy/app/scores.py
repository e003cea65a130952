"""How good a run is, as the page shows it: before and after, doubts, and the images that it gets
wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rmadapter.artifacts.page import thumbnail, thumbnails_of
from rmadapter.artifacts.predictions import Predictions, read_predictions
from rmadapter.artifacts.record import Rates, Record, read_record
from rmadapter.artifacts.run_folder import RunFolder
from rmadapter.deploy.app.images import own_name
from rmadapter.runs.judge import ZERO_SHOT

MOST = 24  # wrong images shown


def its_record(run: Path, home: Path) -> Record | None:
    """The record of a run, its data path taken relative to `home`; None for a model that was saved
    by itself."""
    file = RunFolder(run).record
    if not file.is_file():
        return None
    record = read_record(file)
    return record.model_copy(
        update={"task": replace(record.task, data=str(home / record.task.data))}
    )


def judged(run: Path, home: Path) -> dict[str, Any] | None:
    """What the page shows of a run, rates in percent; None for a model without record. home: where
    its command ran.

    Raises UserError for a damaged run.
    """
    record = its_record(run, home)
    if record is None:
        return None
    found = {
        "method": record.method.title,
        "notes": list(record.notes),
        "how": "",
        "rows": [],
        "doubts": [],
        "wrong": [],
        "images": 0,
        "report": RunFolder(run).page.is_file(),
    }
    if judgement := record.judgement:
        names = {
            ZERO_SHOT: "before: by the class names alone",
            record.method.title: f"after: {record.method.title}",
        }
        rows = [
            _rates(row, names.get(row.name, row.name.replace("-", " "))) for row in judgement.rows
        ]
        found |= {
            "how": judgement.how,
            "rows": rows,
            "doubts": list(judgement.doubts),
            "images": judgement.images,
        }
    if RunFolder(run).predictions.is_file() and (
        some := read_predictions(run, record)
    ):  # a repository's run has none
        found |= wrong(some[0], thumbnails_of(RunFolder(run).page))
    return found


def _rates(row: Rates, title: str) -> dict[str, Any]:
    return {"name": title, "accuracy": row.accuracy, "low": row.low, "high": row.high}


def wrong(found: Predictions, thumbnails: dict[tuple[int, str], str]) -> dict[str, Any]:
    """The images that the model gets wrong, the most confident mistakes first."""
    rows = np.flatnonzero(~found.right[1])
    rows = rows[np.argsort(-found.answer.probability[rows], kind="stable")]
    shown = [
        {
            "name": own_name(found.images[i]),
            "src": thumbnail(found.sources[i]) or thumbnails.get((0, found.images[i]), ""),
            "true": found.classes[found.true[i]],
            "answer": found.classes[found.answer.which[i]],
            "probability": float(found.answer.probability[i]),
        }
        for i in rows[:MOST]
    ]
    return {"wrong": shown, "mistakes": len(rows)}
