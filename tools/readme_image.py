"""Make the image of README: pictograms of the demo's test set, what the model called them before
and after, two numbers.

rmadapter demo --out runs/demo
python tools/readme_image.py runs/demo docs/demo.png
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from rmadapter.artifacts.checkpoint import load
from rmadapter.artifacts.predictions import Evaluation
from rmadapter.artifacts.record import read_record
from rmadapter.data.catalog.openmoji import load_openmoji
from rmadapter.data.fewshot import half
from rmadapter.runs.evaluate import evaluate
from rmadapter.runs.lab import Sets
from rmadapter.task import Question
from rmadapter.training.cache import Cache

COLUMNS = 6
INK, SOFT, GOOD, BAD = "#1d2129", "#6b7280", "#00724f", "#b84e00"


def picked(evaluation: Evaluation) -> np.ndarray:
    """Return rows to show, evenly spaced over those whose two answers differ, so that examples are
    not cherry-picked."""
    assert evaluation.zero_shot is not None
    before, after = (table.argmax(1) for table in (evaluation.zero_shot, evaluation.probabilities))
    rows = np.flatnonzero(before != after)
    return rows[np.unique(np.linspace(0, len(rows) - 1, COLUMNS).round().astype(int))]


def draw(axes: Any, evaluation: Evaluation, row: int) -> None:
    assert evaluation.zero_shot is not None
    axes.imshow(np.asarray(evaluation.images.images[row]))
    for y, word, table in (
        (-0.12, "before", evaluation.zero_shot),
        (-0.27, "after", evaluation.probabilities),
    ):
        answer = int(table[row].argmax())
        right = answer == evaluation.labels[row]
        text = f"{word}: {evaluation.classes[answer]} {'✓' if right else '✗'}"
        axes.text(
            0.5,
            y,
            text,
            transform=axes.transAxes,
            ha="center",
            fontsize=8.5,
            color=GOOD if right else BAD,
        )
    axes.set_title(evaluation.classes[evaluation.labels[row]], fontsize=9.5, color=INK, pad=3)
    axes.axis("off")


def main(run: Path, out: Path) -> None:
    from matplotlib.figure import Figure

    fitted = load(run).fitted
    record = read_record(run / "run.json")
    test = load_openmoji()["test"]
    sets: Sets = [
        (Question(which, classes=which), half(test, which), "test") for which in ("base", "novel")
    ]
    evaluations, _ = evaluate(fitted, sets, Cache(fitted.backbone, hold=False))
    figure = Figure(figsize=(10, 4.8), dpi=120, facecolor="white")
    for line, (evaluation, which) in enumerate(zip(evaluations, ("base", "novel"), strict=True)):
        before = record.metric(which, zero_shot=True)
        after = record.metric(which)
        assert before is not None
        assert after is not None
        title = {
            "base": "Classes it was given images of",
            "novel": "Classes it was never given an image of",
        }[which]
        heading = f"{title}: {before:.0f} % right before, {after:.0f} % after"
        top = 0.955 - 0.5 * line
        figure.text(0.015, top, heading, fontsize=12.5, color=INK, weight="bold")
        grid = figure.add_gridspec(
            1, COLUMNS, left=0.01, right=0.99, top=top - 0.085, bottom=top - 0.335, wspace=0.05
        )
        for column, row in enumerate(picked(evaluation)):
            draw(figure.add_subplot(grid[0, column]), evaluation, row)
    figure.savefig(out)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
