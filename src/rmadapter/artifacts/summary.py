"""Say how good a run is: sentences and tables for its page and for the screen, or JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from rmadapter import metrics
from rmadapter.answers.taxonomy import level_name
from rmadapter.artifacts.predictions import Predictions, read_predictions
from rmadapter.artifacts.record import Judgement, MethodName, Record, Score
from rmadapter.artifacts.run_folder import RunFolder
from rmadapter.artifacts.value import BackboneChoice, Promise
from rmadapter.methods import name_with_settings
from rmadapter.support.escape import escape
from rmadapter.support.terminal import note, table

SCORE_COLUMNS = ["accuracy in %", "images", "chance", "zero-shot", "adapted", "change"]
PROBE = "linear-probe"
HeadAndRows: TypeAlias = tuple[list[str], list[list[str]]]  # for the screen and pages
WEAK_POINTS = 10.0  # percentage points below the accuracy from which a class is called weak
MAX_NAMED = 3  # classes, and mistakes, that a sentence names


# On the screen


def print_sentences(record: Record, judged: Judgement, run: Path) -> None:
    """Print in plain sentences how good a run is.

    Args:
        record: Record of the run.
        judged: Its judgement.
        run: Folder of the run, which has its answers.
    """
    for text in judged.doubts:
        note(text)
    mistakes = confusions(read_predictions(run, record)[0], MAX_NAMED)
    first = f"{how_many_right(judged)}, judged {judged.how}"
    for line in (first, *describe_judged(judged, mistakes), describe_tie(record)):
        if line:
            print(escape(line))
    _print_balanced(record.scores)
    if record.backbones:
        print(describe_backbones(record.backbones))


def print_record(record: Record, as_json: bool, run: Path | None = None) -> None:
    """Print how good a run is, with doubts about it, and one row per evaluated set.

    Args:
        record: Record of the run.
        as_json: Whether to print JSON.
        run: Folder of the run, for JSON.
    """
    judged = record.judgement
    for text in judged.doubts if judged else ():
        note(text)
    if as_json:
        print(json.dumps(_record_json(record, run)))
        return
    if record.backbones:
        table(*backbone_table(record.backbones))
        print(describe_backbones(record.backbones))
    if judged:
        _print_judgement(record, judged)
    levels = level_table(record.scores)
    if levels[1]:
        table(*levels)
    if judged and len(record.scores) == 1:
        return
    if record.method.changed and not judged:
        print(name_with_settings(record.method.name, record.method.changed))
    rows = [_score_row(score) for score in record.scores]
    mean, before = record.metric("hm"), record.metric("hm", zero_shot=True)
    if mean is not None and before is not None:
        figures = [f"{before:.1f}", f"{mean:.1f}", f"{mean - before:+.1f}"]
        rows.append(["harmonic mean", "", "", *figures])
    if rows:
        table(SCORE_COLUMNS, rows)
        _print_balanced(record.scores)
    else:
        print("not evaluated: there were no images to evaluate on")
    for score in record.scores:
        if score.reason:
            note(f"{score.title}: {score.reason}")


def _print_judgement(record: Record, judged: Judgement) -> None:
    """Print how the methods of a run compare on images that none of them has seen."""
    table(*judgement_table(judged, record.method))
    if record.method.changed:
        print(name_with_settings(record.method.name, record.method.changed))
    together = f", of {judged.groups:,} groups" if judged.groups else ""
    print(f"judged {judged.how}; Wilson intervals{together}")
    if judged.promises:
        table(*promise_table(judged.promises))
    for sentence in describe_judged(judged, ()):
        print(escape(sentence))
    tie = describe_tie(record)
    if tie:
        print(tie)


def print_score(score: Score, as_json: bool, promises: Sequence[Promise] = ()) -> None:
    """Print a single set, and what prediction sets keep of their promises there."""
    if as_json:
        measured = [promise.model_dump(mode="json") for promise in promises]
        print(json.dumps(_score_json(score) | ({"promises": measured} if measured else {})))
        return
    table(SCORE_COLUMNS, [_score_row(score)])
    _print_balanced([score])
    levels = level_table([score])
    if levels[1]:
        table(*levels)
    if promises:
        table(*promise_table(promises))


def _print_balanced(scores: Sequence[Score]) -> None:
    """Print the balanced accuracy of each set whose classes have unequal numbers of images."""
    for score in scores:
        rate = score.balanced
        if rate and rate.differs:
            counts = f"{rate.fewest:,} to {rate.most:,} images of a class"
            print(escape(f"{score.title}: balanced accuracy {rate.text} %, {counts}"))


def _record_json(record: Record, run: Path | None) -> dict[str, object]:
    facts: dict[str, object] = {}
    if run:
        facts |= {"run": str(run), "report": str(RunFolder(run).page)}
    for score in record.scores:
        facts[score.title] = _score_json(score)
    mean, before = record.metric("hm"), record.metric("hm", zero_shot=True)
    if mean is not None and before is not None:
        facts["harmonic_mean"] = {"accuracy": mean, "zero_shot_accuracy": before}
    parts = {"backbones": record.backbones, "judgement": record.judgement}
    for name, part in parts.items():
        if part:
            facts[name] = part.model_dump(mode="json")
    return facts


def _score_json(score: Score) -> dict[str, object]:
    facts: dict[str, object] = {
        "accuracy": score.accuracy,
        "zero_shot_accuracy": score.zero_shot,
        "chance": score.chance,
        "n_images": score.images,
        "n_classes": score.classes,
    }
    if score.balanced:
        facts["balanced_accuracy"] = score.balanced.model_dump()
    if score.levels:
        facts["levels"] = [level.model_dump(mode="json") for level in score.levels]
    return {**facts, "reason": score.reason} if score.reason else facts


def _score_row(score: Score) -> list[str]:
    cells = [score.title, str(score.images), f"{score.chance:.1f}"]
    if score.accuracy is None:
        return [*cells, "-", "-", "-"]
    return [*cells, *_before_and_after(score.zero_shot, score.accuracy)]


def _before_and_after(before: float | None, after: float) -> list[str]:
    """Return the cells of two rates and the change."""
    if before is None:
        return ["-", f"{after:.1f}", "-"]
    return [f"{before:.1f}", f"{after:.1f}", f"{after - before:+.1f}"]


# Sentences


class Confusion(NamedTuple):
    """Images of one class that are answered with another.

    Attributes:
        true: Class of the images.
        said: The answer.
        n: Number of these images.
        before: How many of them the untouched model answers so.
        total: Number of images of the class.
    """

    true: str
    said: str
    n: int
    before: int
    total: int


def confusions(predictions: Predictions, most: int) -> list[Confusion]:
    """Return the most common mistakes of the adapted model, the largest first.

    Args:
        predictions: Answers on a set.
        most: Number of mistakes at most.
    """
    names, truth = predictions.classes, predictions.true
    true, said, counts = metrics.confusions(truth, predictions.answer.which, len(names))
    total = np.bincount(truth, minlength=len(names))
    found = []
    for place in np.argsort(-counts, kind="stable")[:most]:
        t, s = true[place], said[place]
        before = int(((truth == t) & (predictions.zero_shot.which == s)).sum())
        found.append(Confusion(names[t], names[s], int(counts[place]), before, int(total[t])))
    return found


def how_many_right(judged: Judgement) -> str:
    """Say how many of 100 images are sorted right, with the 95 % interval."""
    ours = judged.fitted
    return (
        f"{ours.accuracy:.0f} of 100 of your images will be sorted right "
        f"({ours.low:.0f} to {ours.high:.0f})"
    )


def weak_classes(judged: Judgement) -> str:
    """Name the classes that are much weaker than all together, the weakest first; "" if there are
    none."""
    ours = judged.fitted
    pairs = [
        (recall, name)
        for recall, name in zip(ours.recalls, judged.classes, strict=True)
        if recall is not None and recall <= ours.accuracy - WEAK_POINTS
    ]
    pairs.sort(key=lambda pair: pair[0])
    named = [f"{name} ({recall:.0f} of 100)" for recall, name in pairs[:MAX_NAMED]]
    more = f" and {len(pairs) - MAX_NAMED} more" if len(pairs) > MAX_NAMED else ""
    return ", ".join(named) + more


def broken_promises(judged: Judgement) -> list[str]:
    """Return a sentence for each error that these images show to be broken."""
    return [
        f"a promised error of {promise.error:g} % was not kept: {promise.missed:.1f} % of these "
        f"images were missed ({promise.low:.1f} to {promise.high:.1f})"
        for promise in judged.promises
        if promise.is_broken
    ]


def describe_judged(judged: Judgement, mistakes: Sequence[Confusion]) -> list[str]:
    """Return plain sentences that follow `how_many_right`: weak classes, mistakes, what simpler
    models do, and broken promises.

    Args:
        judged: What the run's judgement found.
        mistakes: The most common mistakes, at most `MAX_NAMED`.
    """
    weak = weak_classes(judged)
    lines = [f"weak classes: {weak}" if weak else "no class is much weaker than the others"]
    if mistakes:
        named = [f"{one.true} taken for {one.said} ({one.n} of {one.total})" for one in mistakes]
        lines.append(f"most common mistakes: {', '.join(named)}")
    others = {row.name: f"{row.accuracy:.0f}" for row in judged.rows if row.p is not None}
    if others:
        named = [f"{name} {rate}" for name, rate in others.items()]
        lines.append(f"for comparison, of 100: {', '.join(named)}")
    return lines + broken_promises(judged)


def describe_backbones(choice: BackboneChoice) -> str:
    """Say in a sentence how the backbone was chosen."""
    judged = [row for row in choice.rows if row.accuracy is not None]
    if len(choice.rows) < 2 or not judged:
        return f"backbone: {choice.chosen}, the first that can be used"
    return (
        f"backbone: {choice.chosen}, on which the linear probe is most accurate, by "
        f"{choice.folds}-fold cross-validation of {choice.images:,} training images"
    )


def backbone_table(choice: BackboneChoice) -> HeadAndRows:
    """Return a row for each backbone that was tried."""
    rows = []
    for row in choice.rows:
        name = f"{row.name} (chosen)" if row.name == choice.chosen else row.name
        speed = "" if row.images_per_second is None else f"{row.images_per_second:,.1f}"
        size = "" if row.megabytes is None else f"{row.megabytes:,.0f}"
        accuracy = "-" if row.accuracy is None else f"{row.accuracy:.1f}"
        rows.append([name, accuracy, speed, size, row.licence, row.reason])
    reasons = any(row.reason for row in choice.rows)
    header = ["backbone", "probe, %", "images/s here", "MB", "licence", "why not judged"]
    return (header, rows) if reasons else (header[:-1], [row[:-1] for row in rows])


def describe_tie(record: Record) -> str:
    """Say that a linear probe may do as well as a trained method that is not significantly better;
    return "" where it is, where the probe is significantly better, and without a probe."""
    judged, seconds = record.judgement, record.seconds.get(PROBE)
    probe = next((row for row in judged.rows if row.name == PROBE), None) if judged else None
    if not judged or not probe or probe.p is None or seconds is None or not record.parameters:
        return ""
    if judged.verdict(probe) != "tied":
        return ""
    rates = f"{probe.accuracy:.1f} against {judged.fitted.accuracy:.1f} %, p = {probe.p:.2g}"
    time = f"{seconds:.1f}" if seconds < 10 else f"{seconds:.0f}"
    return f"a linear probe may be as good ({rates}) and trains in {time} s: --method {PROBE}"


def level_table(scores: Sequence[Score]) -> HeadAndRows:
    """Return a row for each level of a taxonomy above the labels, of each set; without columns for
    zero-shot where a backbone without text gives no such answer."""
    compared = any(level.zero_shot is not None for score in scores for level in score.levels)
    shown = slice(0, 3) if compared else slice(1, 2)
    rows = []
    for score in scores:
        for level in score.levels:
            figures = _before_and_after(level.zero_shot, level.accuracy)[shown]
            rows.append([score.title, level_name(level.level), f"{level.groups:,}", *figures])
    figures = ["zero-shot", "adapted", "change"][shown]
    return ["accuracy in %", "level", "groups", *figures], rows


def promise_table(promises: Sequence[Promise]) -> HeadAndRows:
    """Return a row for each promised error."""
    rows = []
    for promise in promises:
        missed = f"{promise.missed:.1f} ({promise.low:.1f} to {promise.high:.1f})"
        right = "-" if promise.right is None else f"{promise.right:.1f}"
        figures = [f"{promise.labels:.1f}", f"{promise.answered:.1f}", right]
        if promise.wrong is not None:
            figures += [f"{share:.1f}" for share in promise.levels[1:]]
            figures.append(f"{promise.wrong:.1f}")
        rows.append([f"{promise.error:g}", missed, *figures])
    columns = ["missed in %", "classes per image", "answered in %", "of these right"]
    if promises and promises[0].wrong is not None:
        above = range(1, len(promises[0].levels))
        columns += [f"answered by a {level_name(level)}" for level in above]
        columns.append("wrong answers in %")
    return ["promised error in %", *columns], rows


def judgement_table(judged: Judgement, method: MethodName) -> HeadAndRows:
    """Return a row for guessing, for the most frequent class and for each judged method, by the
    name that `--method` takes.

    Args:
        judged: The judgement.
        method: The method that was fitted.
    """
    chance, majority = f"{100 / len(judged.classes):.1f}", f"{judged.majority:.1f}"
    uneven = judged.uneven
    blank = [""] * (4 if uneven else 3)
    balanced = [""] * uneven
    rows = [["guessing", chance, *blank], ["always the most frequent class", majority, *blank]]
    for row in judged.rows:
        interval = f"{row.low:.1f} to {row.high:.1f}"
        rates = [f"{row.macro_f1:.1f}", f"{row.calibration_error:.1f}"]
        name = method.name if row.p is None else row.name
        if uneven:
            balanced = [row.balanced.text if row.balanced else "-"]
        rows.append([name, f"{row.accuracy:.1f}", interval, *balanced, *rates])
    more = ["balanced accuracy"] * uneven
    columns = ["accuracy in %", "95 % interval", *more, "macro F1", "calibration error"]
    return [f"{judged.images:,} images", *columns], rows
