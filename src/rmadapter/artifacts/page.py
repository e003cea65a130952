"""Write pages of images, each an HTML file that needs no network and no script; among them
report.html, which says what a run changed."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from html import unescape
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from rmadapter import metrics
from rmadapter.artifacts.checkpoint import config_of
from rmadapter.artifacts.predictions import (
    Guess,
    Mistake,
    Neighbour,
    Predictions,
    read_mistakes,
    read_predictions,
)
from rmadapter.artifacts.record import MethodName, Record, Score, read_record
from rmadapter.artifacts.run_folder import RunFolder
from rmadapter.artifacts.summary import (
    MAX_NAMED,
    backbone_table,
    confusions,
    describe_backbones,
    describe_judged,
    describe_tie,
    how_many_right,
    judgement_table,
    level_table,
    promise_table,
)
from rmadapter.backbones.published import caveat
from rmadapter.data.fewshot import read_split
from rmadapter.data.formats.registry import images_root
from rmadapter.data.read import ImageSource, load_image
from rmadapter.errors import UserError
from rmadapter.methods import load_method, may_run
from rmadapter.settings import Machine, documentation, settings_of
from rmadapter.support.files import JsonObject, read_text, write_text
from rmadapter.support.html import (
    duration,
    loss_terms,
    reliability_diagram,
    risk_coverage,
    template,
)
from rmadapter.support.locks import exclusive
from rmadapter.task import Task
from rmadapter.training.contract import Method

THUMBNAIL_SIDE = 160  # pixels of the longer side
NEIGHBOUR_SIDE = 96  # the same, of a training image beside another
MAX_MATRIX_CLASSES = 25  # for which a matrix is readable; others have a list of confusions
MAX_NUMBERED_CLASSES = 16  # for which the counts in a matrix fit on a narrow screen
MAX_CONFUSIONS = 15  # rows in the list of confusions
SHOWN_CONFUSIONS = 8  # rows of that list shown in place of a matrix
IMAGES_PER_OUTCOME = 6
TRAINING_SET = -1  # number of the training images, which are no scored set
OUTCOMES = (  # name, meaning, (zero-shot is right, adapted is right)
    ("Gained", "only the adapted model is right", (False, True)),
    ("Lost", "only the untouched model is right", (True, False)),
    ("Both right", "", (True, True)),
    ("Both wrong", "", (False, False)),
)
# without a text encoder
OUTCOMES_ALONE = (("Wrong", "", (False, False)), ("Right", "", (False, True)))

Thumbnails: TypeAlias = Mapping[tuple[int, str], str]  # (number of the set, path) -> data: address
Facts: TypeAlias = dict[str, Any]  # values for the template


def write_html(path: Path, template_name: str, **values: object) -> None:
    """Render a template of the package and write it atomically; equal values give equal bytes.

    Templates escape values for HTML and may use the filters `percent`, `duration` and `count`.
    """
    page = template(template_name, percent=percent, duration=duration)
    write_text(path, page.render(values))


def percent(value: float | None, digits: int = 1, sign: bool = False) -> str:
    """Format a figure in percent with a true minus sign; a dash if there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return text.replace("-", "−")


def thumbnail(source: ImageSource | None, side: int = THUMBNAIL_SIDE) -> str:
    """Return an image as a data: address, its longer side at most `side` pixels; "" if it is
    unreadable or None."""
    if source is None:
        return ""
    try:
        data = small_jpeg(source, side)
    except UserError:
        return ""
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


def small_jpeg(source: ImageSource, side: int) -> bytes:
    """Return an image as a JPEG, which every browser draws.

    Args:
        source: The image.
        side: Pixels of the longer side at most.

    Raises:
        UserError: As for `load_image`.
    """
    small = load_image(source)
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80, optimize=True)
    return buffer.getvalue()


def neighbour_cards(neighbours: Iterable[Neighbour]) -> list[JsonObject]:
    """Return what a page shows of nearby images: their fields, and a small thumbnail as `src`."""
    return [
        {**near._asdict(), "src": thumbnail(near.source, NEIGHBOUR_SIDE)} for near in neighbours
    ]


def thumbnails_of(page: Path) -> dict[tuple[int, str], str]:
    """Read the thumbnails of a run's page by number of the set and path, so that it can be written
    again without its images."""
    try:
        text = read_text(page, errors="replace") if page.is_file() else ""
    except UserError:  # far larger than any page
        return {}
    card = (
        r'<\w+ class="\w+" data-set="(-?\d+)" title="([^"]*)">\s*'
        r'<img src="(data:image/jpeg;base64,[\w+/=]+)"'
    )
    return {(int(number), unescape(file)): src for number, file, src in re.findall(card, text)}


# The page of a run


def write_run_page(
    path: Path,
    record: Record,
    predictions: Sequence[Predictions],
    history: Sequence[Mapping[str, float]],
    thumbnails: Thumbnails | None = None,
    wrong: Sequence[Mistake] = (),
    counts: Sequence[int] = (),
) -> None:
    """Write the page of a run atomically; the same input gives the same bytes.

    Args:
        path: File to write.
        record: Record of the run.
        predictions: One for each score of the record that has an accuracy, in the same order.
        history: Loss terms of every step; empty for a method that is not trained step by step.
        thumbnails: From `thumbnails_of`, for images that no longer exist.
        wrong: Mistakes on the first test set.
        counts: Training images of each class, if known.

    Raises:
        ValueError: Scores and predictions do not match.
    """
    known = thumbnails or {}
    answered = [number for number, score in enumerate(record.scores) if score.accuracy is not None]
    panels = [
        panel(number, record.scores[number], answers, known)
        for number, answers in zip(answered, predictions, strict=True)
    ]
    parts = {part["number"]: part for part in panels}
    write_html(
        path,
        "report.html.j2",
        record=record,
        caveat=caveat(record.backbone.name),
        given=describe_shots(record.task.shots, counts),
        judged=record.judgement and judgement_table(record.judgement, record.method),
        promises=record.judgement
        and record.judgement.promises
        and promise_table(record.judgement.promises),
        plain=_plain_lines(record, panels),
        tie=describe_tie(record),
        backbones=record.backbones
        and (*backbone_table(record.backbones), describe_backbones(record.backbones)),
        rows=[
            (score, parts.get(number, {}).get("change"), parts.get(number))
            for number, score in enumerate(record.scores)
        ],
        levels=level_table(record.scores),
        mean=record.metric("hm"),
        mean_zero_shot=record.metric("hm", zero_shot=True),
        # one set of figures judges a run; others stand in the table of all figures
        panels=panels[:1] if record.judgement else panels,
        reasons=mistake_cards(answered[0], predictions[0], wrong, known) if wrong else [],
        losses=loss_terms(history),
        settings=_settings(record),
    )


def rewrite_page(folder: Path) -> Path:
    """Write the page of a finished run again from its folder, and return its path. Images that are
    gone from the data are taken from the earlier page.

    Raises UserError for a folder without a run of this version, or with a damaged one.
    """
    run = RunFolder(folder)
    with exclusive(folder):
        run.check_sums([run.record])
        record = read_record(run.record)
        predictions, history = read_predictions(folder, record), _read_history(run.history)
        root = images_root(record.task.data, record.crops)
        wrong = read_mistakes(run.mistakes, predictions[0], root) if predictions else []
        thumbnails = thumbnails_of(run.page)
        counts = read_split(run.split).counts(record.task.classes) if run.split.is_file() else ()
        run.write_sums(without=[run.page])  # these fit the folder even if this is killed
        write_run_page(run.page, record, predictions, history, thumbnails, wrong, counts)
        run.write_sums()
    return run.page


def describe_shots(shots: int, counts: Sequence[int]) -> str:
    """Say how many training images a class had.

    Args:
        shots: Images asked for, 0 for all.
        counts: Training images of each class; empty if unknown.
    """
    least, most = (min(counts), max(counts)) if counts else (shots, shots)
    each = f"{most} image{'' if most == 1 else 's'} per class"
    if least < most:
        each = f"{least} to {each}"
    if shots:
        return each
    return f"all training images, {each}" if counts else "all training images"


def _read_history(path: Path) -> list[dict[str, float]]:
    """Read the loss terms of every step. Raises UserError for a damaged file."""
    if not path.is_file():
        return []
    try:
        rows = list(csv.DictReader(read_text(path, "readable CSV").splitlines()))
        return [{name: float(value) for name, value in row.items() if value} for row in rows]
    except (csv.Error, ValueError, TypeError) as error:
        raise UserError(f"{path}: not the losses of a run ({error})") from None


def _settings(record: Record) -> list[Facts]:
    """List every setting with its meaning; `changed` if it differs from the default, which is known
    if the record has it or the method can be loaded again."""
    name, meaning = record.method.name, documentation(Task()) | documentation(Machine())
    defaults: dict[str, object] = {}
    method, published = _load_trusted(name), record.method.published
    if method is not None:
        own = documentation(method)
        meaning = own | {f"{name}.{setting}": text for setting, text in own.items()} | meaning
        published = published or settings_of(method)
    if published:
        plain = MethodName(name=name, settings=published)
        update = {"task": Task(), "precision": Machine().precision, "method": plain}
        defaults = config_of(record.model_copy(update=update))
    settings = []
    for setting, value in config_of(record).items():
        text = _json(value)
        settings.append(
            {
                "name": setting,
                "value": value if isinstance(value, str) else text,
                "changed": setting in defaults and text != _json(defaults[setting]),
                "text": meaning.get(setting, ""),
            }
        )
    return settings


def _load_trusted(name: str) -> Method | None:
    """Load a method; None if that fails, and if it would run code that only the record names."""
    with suppress(UserError):
        return load_method(name) if may_run(name) else None
    return None


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _change(predictions: Predictions) -> Facts | None:
    """Return the change of a score in points, with its interval and p-value, and the interval and
    the calibration error before; None if the untouched model does not answer."""
    if not predictions.has_zero_shot:
        return None
    before, after = predictions.right
    points, low, high, p = metrics.paired(before, after)
    return {
        "points": points,
        "low": low,
        "high": high,
        "p": p,
        "before": metrics.wilson(int(before.sum()), len(before)),
        "ece": metrics.calibration_error(predictions.zero_shot.probability, before),
    }


def _plain_lines(record: Record, panels: Sequence[Facts]) -> list[str]:
    """Return the sentences that the page begins with; none for a run that was not judged."""
    judged = record.judgement
    if not judged or not panels:
        return []
    return [how_many_right(judged), *describe_judged(judged, panels[0]["in_words"])]


def panel(number: int, score: Score, predictions: Predictions, thumbnails: Thumbnails) -> Facts:
    """Return what the page shows about one score.

    Args:
        number: Index of the score in the record.
        score: The score.
        predictions: The answers behind it.
        thumbnails: As for `write_run_page`.
    """
    pairs = confusions(predictions, MAX_CONFUSIONS)
    before, after = predictions.right
    curves = {"adapted": (predictions.answer.probability, after)}
    if predictions.has_zero_shot:
        curves = {"zero-shot": (predictions.zero_shot.probability, before), **curves}
    return {
        "number": number,
        "score": score,
        "change": _change(predictions),
        "after": metrics.wilson(int(after.sum()), len(after)),
        "ece": metrics.calibration_error(predictions.answer.probability, after),
        "outcomes": _outcomes(number, predictions, thumbnails),
        "per_class": _per_class(predictions),
        "matrix": _matrix(predictions) if len(predictions.classes) <= MAX_MATRIX_CLASSES else None,
        "pairs": pairs,
        "at_first": pairs[:SHOWN_CONFUSIONS],
        "in_words": pairs[:MAX_NAMED],
        "reliability": reliability_diagram(curves, f"reliability{number}"),
        "coverage": risk_coverage(curves, f"coverage{number}"),
    }


def _outcomes(number: int, predictions: Predictions, thumbnails: Thumbnails) -> list[Facts]:
    before, after = predictions.right
    outcomes = []
    kinds = OUTCOMES if predictions.has_zero_shot else OUTCOMES_ALONE
    for name, meaning, (zero_shot, adapted) in kinds:
        rows = np.flatnonzero((before == zero_shot) & (after == adapted))
        shown = rows[_spread(len(rows))].tolist()
        facts = {"name": name, "meaning": meaning, "n": len(rows)}
        facts["share"] = 100 * len(rows) / len(predictions.true)
        facts["cards"] = [_card(number, predictions, row, thumbnails) for row in shown]
        outcomes.append(facts)
    return outcomes


def _spread(n: int) -> np.ndarray:
    """Return at most IMAGES_PER_OUTCOME of 0..n-1, evenly spread: nobody picked them by hand."""
    return np.unique(np.linspace(0, n - 1, min(n, IMAGES_PER_OUTCOME)).round().astype(int))


def _per_class(predictions: Predictions) -> list[Facts]:
    """List the accuracy of each class, the largest gain first, classes without an image last."""
    true, n = predictions.true, len(predictions.classes)
    count = np.bincount(true, minlength=n)
    before = np.full(n, np.nan)
    if predictions.has_zero_shot:
        before = metrics.per_class_accuracy(true, predictions.zero_shot.which, n)
    after = metrics.per_class_accuracy(true, predictions.answer.which, n)
    keys = ("name", "n", "zero_shot", "adapted", "change")
    columns = zip(predictions.classes, count, before, after, after - before, strict=True)
    rows = [dict(zip(keys, row, strict=True)) for row in columns]
    full = [row for row in rows if row["n"]]
    full.sort(key=lambda row: (-np.nan_to_num(row["change"]), -row["adapted"], row["name"]))
    return full + [row for row in rows if not row["n"]]


def _matrix(predictions: Predictions) -> Facts:
    """Return for each class its name, its number of images, and for every answer the count and the
    share of the row."""
    classes = predictions.classes
    counts = metrics.confusion(predictions.true, predictions.answer.which, len(classes))
    totals = counts.sum(axis=1)
    shares = counts / np.maximum(totals, 1)[:, None]
    rows = [
        (name, int(total), list(zip(row.tolist(), parts.tolist(), strict=True)))
        for name, total, row, parts in zip(classes, totals, counts, shares, strict=True)
    ]
    return {"narrow": len(classes) > MAX_NUMBERED_CLASSES, "rows": rows}


def _card(number: int, predictions: Predictions, row: int, thumbnails: Thumbnails) -> Facts:
    """Return what the page shows of one image."""
    classes, true = predictions.classes, predictions.true[row]
    answers = []
    for name, guess in (("zero-shot", predictions.zero_shot), ("adapted", predictions.answer)):
        if guess.which[row] < 0:
            continue
        best, probability = int(guess.which[row]), 100 * float(guess.probability[row])
        answers.append((name, classes[best], best == true, probability))
    file = predictions.images[row]
    src = thumbnail(predictions.sources[row]) or thumbnails.get((number, file), "")
    return {"set": number, "file": file, "src": src, "true": classes[true], "answers": answers}


def mistake_cards(
    number: int, predictions: Predictions, wrong: Sequence[Mistake], thumbnails: Thumbnails
) -> list[Facts]:
    """Return what the page shows of mistakes: the image, the best two classes, the nearest training
    images."""
    classes = predictions.classes
    names = dict(zip(predictions.labels, classes, strict=True))
    cards = []
    for image, neighbours in wrong:
        row = predictions.images.index(image)
        near = neighbour_cards(neighbours)
        for card in near:
            card["label"] = names.get(str(card["label"]), card["label"])
            card["src"] = card["src"] or thumbnails.get((TRAINING_SET, card["image"]), "")
        cards.append(
            {
                "set": number,
                "image": image,
                "src": thumbnail(predictions.sources[row]) or thumbnails.get((number, image), ""),
                "true": classes[predictions.true[row]],
                "best": _guessed(classes, row, predictions.answer, predictions.second),
                "zero_shot": _guessed(classes, row, predictions.zero_shot),
                "neighbours": near,
            }
        )
    return cards


def _guessed(classes: Sequence[str], row: int, *guesses: Guess) -> list[tuple[str, float]]:
    """Return the classes of an image's guesses, each with its probability."""
    return [
        (classes[guess.which[row]], float(guess.probability[row]))
        for guess in guesses
        if guess.which[row] >= 0
    ]
