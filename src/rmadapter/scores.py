"""The scores of a record as the command line prints them: a row or an object of JSON for every evaluated set."""

from __future__ import annotations

import json
from typing import Any

from rmadapter.console import note, table
from rmadapter.record import Record, Score

HEADER = ("accuracy in %", "images", "chance", "zero-shot", "adapted", "change")


def show(record: Record, as_json: bool) -> None:
    """All scores, with the harmonic mean of base and novel classes where there are the two."""
    mean, before = record.metric("hm"), record.metric("hm", zero_shot=True)
    if as_json:
        found = {score.title: summary(score) for score in record.scores}
        if mean is not None and before is not None:
            found["harmonic_mean"] = {"accuracy": mean, "zero_shot_accuracy": before}
        print(json.dumps(found))
        return
    rows = [*map(row, record.scores)]
    if mean is not None and before is not None:
        rows.append(["harmonic mean", "", "", f"{before:.1f}", f"{mean:.1f}", f"{mean - before:+.1f}"])
    table(HEADER, rows)
    for score in record.scores:
        if score.reason:
            note(f"{score.title}: {score.reason}")


def summary(score: Score) -> dict[str, Any]:
    return {
        "accuracy": score.accuracy,
        "zero_shot_accuracy": score.zero_shot,
        "chance": score.chance,
        "n_images": score.images,
        "n_classes": score.classes,
        **({"reason": score.reason} if score.reason else {}),
    }


def row(score: Score) -> list[str]:
    cells = [score.title, str(score.images), f"{score.chance:.1f}"]
    if score.accuracy is None or score.zero_shot is None:
        return [*cells, "-", "-", "-"]
    return [*cells, f"{score.zero_shot:.1f}", f"{score.accuracy:.1f}", f"{score.accuracy - score.zero_shot:+.1f}"]
