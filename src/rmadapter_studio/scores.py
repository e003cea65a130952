"""How good a run is, as the page shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

import numpy as np

from rmadapter.artifacts.page import thumbnail, thumbnails_of
from rmadapter.artifacts.predictions import Predictions, read_predictions
from rmadapter.artifacts.record import Rates, Record, read_record
from rmadapter.artifacts.run_folder import RunFolder
from rmadapter.artifacts.summary import describe_tie
from rmadapter.runs.judge import ZERO_SHOT
from rmadapter_studio.images import original_name
from rmadapter_studio.jobs import without_commands

MOST_WRONG = 24  # wrong images shown


class ScoreRow(TypedDict):
    """Accuracy in percent with its interval. right: number of images."""

    name: str
    right: int
    accuracy: float
    low: float
    high: float


class WrongImage(TypedDict):
    """true, answer: names of classes. src: a thumbnail, "" if there is none."""

    name: str
    src: str
    true: str
    answer: str
    probability: float


class Scores(TypedDict, total=False):
    """What the page shows of a run. tie: that a linear probe may be as good, or "". mistakes: how
    many images are wrong, of which `wrong` has the first."""

    method: str
    notes: list[str]
    how: str
    rows: list[ScoreRow]
    tie: str
    doubts: list[str]
    wrong: list[WrongImage]
    mistakes: int
    images: int
    report: bool


def record_of(run: Path, home: Path) -> Record | None:
    """Read the record of a run, its data path taken relative to `home`; None for a model that was
    saved by itself."""
    file = RunFolder(run).record
    if not file.is_file():
        return None
    record = read_record(file)
    task = replace(record.task, data=str(home / record.task.data))
    return record.model_copy(update={"task": task})


def read_scores(run: Path, home: Path) -> Scores | None:
    """Read what the page shows of a run; None for a model without record. home: where its command
    ran.

    Raises UserError for a damaged run.
    """
    record, files = record_of(run, home), RunFolder(run)
    if record is None:
        return None
    tie = describe_tie(record)
    scores: Scores = {
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
        scores["how"] = judgement.how
        scores["rows"] = [
            _score_row(row, record.method.title, judgement.images) for row in judgement.rows
        ]
        scores["doubts"] = [without_commands(text) for text in judgement.doubts]
        scores["images"] = judgement.images
    # a repository's run has no answers
    predictions = read_predictions(run, record) if files.predictions.is_file() else []
    if predictions:
        images, count = wrong_images(predictions[0], thumbnails_of(files.page))
        scores["wrong"] = images
        scores["mistakes"] = count
    return scores


def _score_row(row: Rates, title: str, images: int) -> ScoreRow:
    names = {ZERO_SHOT: "before: by the class names alone", title: f"after: {title}"}
    name = names.get(row.name, row.name.replace("-", " "))
    right = round(row.accuracy / 100 * images)
    rates: ScoreRow = {
        "name": name, "right": right, "accuracy": row.accuracy, "low": row.low, "high": row.high,
    }  # fmt: skip
    return rates


def wrong_images(
    predictions: Predictions, thumbnails: Mapping[tuple[int, str], str]
) -> tuple[list[WrongImage], int]:
    """List the images that the model gets wrong, the most confident mistakes first, at most
    MOST_WRONG; and count all of them."""
    wrong = np.flatnonzero(~predictions.right[1])
    wrong = wrong[np.argsort(-predictions.answer.probability[wrong], kind="stable")]
    images: list[WrongImage] = []
    for i in wrong[:MOST_WRONG]:
        image = predictions.images[i]
        src = thumbnail(predictions.sources[i]) or thumbnails.get((0, image), "")
        true = predictions.classes[predictions.true[i]]
        answer = predictions.classes[predictions.answer.which[i]]
        probability = float(predictions.answer.probability[i])
        name = original_name(image)
        images.append(
            WrongImage(name=name, src=src, true=true, answer=answer, probability=probability)
        )
    return images, len(wrong)
