"""How good a run is, as the page shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from rmadapter import Record
from rmadapter.artifacts import (
    Predictions,
    RunFolder,
    describe_tie,
    read_predictions,
    read_record,
    thumbnail,
    thumbnails_of,
)
from rmadapter_studio.images import original_name
from rmadapter_studio.jobs import without_commands

MAX_WRONG = 24  # wrong images shown


def record_of(run: Path, home: Path) -> Record | None:
    """Read the record of a run, its data path taken relative to `home`; None for a model that was
    saved by itself."""
    file = RunFolder(run).record
    if not file.is_file():
        return None
    record = read_record(file)
    task = replace(record.task, data=str(home / record.task.data))
    return record.model_copy(update={"task": task})


def read_scores(run: Path, home: Path) -> dict[str, object] | None:
    """Read what the page shows of a run.

    Args:
        run: Folder of the run.
        home: Where its command ran.

    Returns:
        The title of its method, its notes, how and on how many images it was judged, accuracies in
        percent with the ends of their intervals and the images that are right, that a linear probe
        may be as good (or ""), doubts, the number of mistakes and the first of them as
        `wrong_images` has them, and whether there is a report; None for a model without record.

    Raises:
        UserError: A damaged run.
    """
    record, files = record_of(run, home), RunFolder(run)
    if record is None:
        return None
    tie = describe_tie(record)
    scores: dict[str, object] = {
        "method": record.method.title,
        "notes": [without_commands(text) for text in record.notes if text != tie],
        "how": "",
        "rows": [],
        "tie": without_commands(tie),
        "doubts": [],
        "wrong": [],
        "images": 0,
        "report": files.page.is_file(),
    }
    judgement = record.judgement
    if judgement:
        title = record.method.title
        names = {"zero-shot": "before: by the class names alone", title: f"after: {title}"}
        rows = [
            {
                "name": names.get(row.name, row.name.replace("-", " ")),
                "right": round(row.accuracy / 100 * judgement.images),
                "accuracy": row.accuracy,
                "low": row.low,
                "high": row.high,
            }
            for row in judgement.rows
        ]
        scores |= {
            "how": judgement.how,
            "images": judgement.images,
            "doubts": [without_commands(text) for text in judgement.doubts],
            "rows": rows,
        }
    # a repository's run has no answers
    predictions = read_predictions(run, record) if files.predictions.is_file() else []
    if predictions:
        images, count = wrong_images(predictions[0], thumbnails_of(files.page))
        scores |= {"wrong": images, "mistakes": count}
    return scores


def wrong_images(
    predictions: Predictions, thumbnails: Mapping[tuple[int, str], str]
) -> tuple[list[dict[str, object]], int]:
    """List the images that the model gets wrong, the most confident mistakes first, at most
    MAX_WRONG; and count all of them. Each has a thumbnail, "" for none, the name of its class, and
    the answer with its probability."""
    wrong = np.flatnonzero(~predictions.right[1])
    wrong = wrong[np.argsort(-predictions.answer.probability[wrong], kind="stable")]
    classes = predictions.classes
    images: list[dict[str, object]] = []
    for i in wrong[:MAX_WRONG]:
        image = predictions.images[i]
        images.append({
            "name": original_name(image),
            "src": thumbnail(predictions.sources[i]) or thumbnails.get((0, image), ""),
            "true": classes[predictions.true[i]],
            "answer": classes[predictions.answer.which[i]],
            "probability": float(predictions.answer.probability[i]),
        })  # fmt: skip
    return images, len(wrong)
