"""What the command line says about a run: tables, or the same as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmadapter.support.terminal import note, table

if TYPE_CHECKING:
    from rmadapter.artifacts.record import Choice, Judgement, Record, Score

HEADER = ["accuracy in %", "images", "chance", "zero-shot", "adapted", "change"]


def show(record: Record, as_json: bool, run: Path | None = None) -> None:
    """Print how good a run is, with doubts about it, and one row per evaluated set. run: its
    folder, for JSON."""
    judged = record.judgement
    for text in judged.doubts if judged else ():
        note(text)
    found = {score.title: _summary(score) for score in record.scores}
    mean, before = record.metric("hm"), record.metric("hm", zero_shot=True)
    if mean is not None and before is not None:
        found["harmonic_mean"] = {"accuracy": mean, "zero_shot_accuracy": before}
    if as_json:
        parts = {"choice": record.choice, "judgement": judged}
        where = {"run": str(run), "report": str(run / "report.html")} if run else {}
        more = {name: part.model_dump(mode="json") for name, part in parts.items() if part}
        print(json.dumps({**where, **found, **more}))
        return
    if record.choice:
        table(*choice_table(record.choice))
        print(told(record.choice))
    if judged:
        table(*as_table(judged))
        print(f"judged {judged.how}; Wilson intervals")
        print(f"lowest recall: {lowest(judged)}")
    if judged and len(record.scores) == 1:
        return
    rows = [_row(score) for score in record.scores]
    if mean is not None and before is not None:
        rows.append(
            ["harmonic mean", "", "", f"{before:.1f}", f"{mean:.1f}", f"{mean - before:+.1f}"]
        )
    if rows or not record.scores:
        table(HEADER, rows)
    for score in record.scores:
        if score.reason:
            note(f"{score.title}: {score.reason}")


def show_score(score: Score, as_json: bool) -> None:
    """Print a single set."""
    if as_json:
        print(json.dumps(_summary(score)))
    else:
        table(HEADER, [_row(score)])


def _summary(score: Score) -> dict[str, Any]:
    """A score for JSON."""
    return {
        "accuracy": score.accuracy,
        "zero_shot_accuracy": score.zero_shot,
        "chance": score.chance,
        "n_images": score.images,
        "n_classes": score.classes,
        **({"reason": score.reason} if score.reason else {}),
    }


def _row(score: Score) -> list[str]:
    """A score as a row below `HEADER`."""
    cells = [score.title, str(score.images), f"{score.chance:.1f}"]
    if score.accuracy is None or score.zero_shot is None:
        return [*cells, "-", "-", "-"]
    return [
        *cells,
        f"{score.zero_shot:.1f}",
        f"{score.accuracy:.1f}",
        f"{score.accuracy - score.zero_shot:+.1f}",
    ]


def told(choice: Choice) -> str:
    """How `auto` came to its choice."""
    if not choice.rows:
        return f"auto: {choice.chosen}; there are too few images per class to choose by"
    return (
        f"auto: {choice.chosen}, the first within two standard errors of the best, by {choice.folds}-fold "
        f"cross-validation of {choice.images:,} training images"
    )


def choice_table(choice: Choice) -> tuple[list[str], list[list[str]]]:
    """Header and rows, for the screen and the page."""
    rows = []
    for row in choice.rows:
        name = f"{row.name} (chosen)" if row.name == choice.chosen else row.name
        if row.accuracy is None or row.behind is None or row.error is None:
            rows.append([name, "-", row.reason, ""])
        else:
            rows.append(
                [
                    name,
                    f"{row.accuracy:.1f}",
                    f"{row.behind:.1f} ± {row.error:.1f}",
                    f"{row.seconds or 0:.0f}",
                ]
            )
    return ["method", "accuracy in %", "behind the best", "seconds"], rows


def lowest(found: Judgement) -> str:
    """The three classes with the lowest recall, as "ant 0 %, cat 50 %"; ties in the order of the
    classes."""
    recalls = [
        (recall, name)
        for recall, name in zip(found.own.recalls, found.classes, strict=True)
        if recall is not None
    ]
    return ", ".join(
        f"{name} {recall:.0f} %" for recall, name in sorted(recalls, key=lambda pair: pair[0])[:3]
    )


def as_table(found: Judgement) -> tuple[list[str], list[list[str]]]:
    """Header and rows, for the screen and the page."""
    plain = {"guessing": 100 / len(found.classes), "always the most frequent class": found.majority}
    rows = [[name, f"{value:.1f}", "", "", ""] for name, value in plain.items()]
    for row in found.rows:
        rates = [f"{value:.1f}" for value in (row.accuracy, row.macro_f1, row.calibration_error)]
        rows.append([row.name, rates[0], f"{row.low:.1f} to {row.high:.1f}", *rates[1:]])
    return [
        f"{found.images:,} images",
        "accuracy in %",
        "95 % interval",
        "macro F1",
        "calibration error",
    ], rows
