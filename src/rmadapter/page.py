"""One self-contained HTML page that says what a run did: open it anywhere, no network, no JavaScript."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rmadapter import metrics, plots
from rmadapter.checkpoint import flat
from rmadapter.data.images import load_image
from rmadapter.errors import UserError
from rmadapter.files import write_text
from rmadapter.methods import load_method
from rmadapter.record import Evaluation, MethodName, Record, Score
from rmadapter.settings import Machine, documentation, settings_of
from rmadapter.show import as_table, choice_table, told
from rmadapter.task import Task

if TYPE_CHECKING:
    from rmadapter.data.images import ImageSet

MATRIX_LIMIT = 100  # classes beyond which a confusion matrix is unreadable and only its largest entries are listed
PAIRS = 15  # rows of that list
PER_OUTCOME = 6  # test images shown for each outcome
AT_FIRST = 3  # test images of each of the first two sets, on the first screen
THUMBNAIL = 160  # pixels of the longer side
OUTCOMES = (  # name, what it means, (zero-shot is right, adapted is right)
    ("Gained", "only the adapted model is right", (False, True)),
    ("Lost", "only the untouched model is right", (True, False)),
    ("Both wrong", "", (False, False)),
    ("Both right", "", (True, True)),
)


@dataclass(frozen=True)
class Row:
    """A score and what its answers add to it: change and half its interval, calibration errors, all in points."""

    score: Score
    change: float = math.nan
    interval: float = math.nan
    ece_zero_shot: float = math.nan
    ece: float = math.nan


def write_page(
    path: Path, record: Record, evaluations: Sequence[Evaluation], history: Sequence[Mapping[str, float]]
) -> None:
    """Write the page atomically; the same input gives the same bytes.

    evaluations: behind those scores of the record that have an accuracy, in their order
    history: loss terms of every step, empty for a method that is not trained step by step
    Raises ValueError when scores and evaluations do not belong together.
    """
    answered = [number for number, score in enumerate(record.scores) if score.accuracy is not None]
    behind = dict(zip(answered, evaluations, strict=True))
    rows = [_row(score, behind.get(number)) for number, score in enumerate(record.scores)]
    html = template("report.html.j2", percent=percent, count=lambda n: f"{n:,}", duration=plots.duration).render(
        record=record,
        judged=record.judgement and as_table(record.judgement),
        choice=record.choice and (*choice_table(record.choice), told(record.choice)),
        rows=rows,
        mean=record.metric("hm"),
        mean_zero_shot=record.metric("hm", zero_shot=True),
        at_first=[card for e in evaluations[:2] for card in _at_first(e)],
        sections=[_section(number, rows[number], e) for number, e in behind.items()],
        losses=plots.loss_terms(history),
        settings=_settings(record),
    )
    write_text(path, html)


def _right(e: Evaluation) -> tuple[np.ndarray, np.ndarray]:
    """Which images [N] the untouched model names, and which the adapted one does."""
    return e.zero_shot.argmax(1) == e.labels, e.probabilities.argmax(1) == e.labels


def _row(score: Score, e: Evaluation | None) -> Row:
    if e is None:
        return Row(score)
    before, after = _right(e)
    change = 100 * (after.astype(float) - before)
    errors = (metrics.expected_calibration_error(table, e.labels) for table in (e.zero_shot, e.probabilities))
    return Row(score, float(change.mean()), metrics.confidence_interval(change), *errors)


def _at_first(e: Evaluation) -> list[dict[str, Any]]:
    """Images that the two models call differently, or any where there are none."""
    differ = np.flatnonzero(e.zero_shot.argmax(1) != e.probabilities.argmax(1))
    rows = differ if len(differ) else np.arange(len(e.labels))
    return [_card(e, int(i)) for i in rows[_spread(len(rows), AT_FIRST)]]


def _section(number: int, row: Row, e: Evaluation) -> dict[str, Any]:
    """Everything the page says about one evaluation."""
    before, after = _right(e)
    outcomes = []
    for name, meaning, (zero_shot, adapted) in OUTCOMES:
        members = np.flatnonzero((before == zero_shot) & (after == adapted))
        cards = [_card(e, int(i)) for i in members[_spread(len(members), PER_OUTCOME)]]
        share = 100 * len(members) / len(e.labels)
        outcomes.append({"name": name, "meaning": meaning, "n": len(members), "share": share, "cards": cards})
    readable = len(e.classes) <= MATRIX_LIMIT
    return {
        "number": number,
        "row": row,
        "outcomes": outcomes,
        "per_class": _per_class(e),
        "matrix": plots.confusion_layout(e.labels, e.probabilities.argmax(1), e.classes) if readable else None,
        "pairs": _pairs(e),
        "reliability": plots.reliability_diagram(e.probabilities, e.zero_shot, e.labels, f"reliability{number}"),
    }


def _spread(n: int, wanted: int) -> np.ndarray:
    """At most `wanted` of 0..n-1, evenly spread: nobody picked them by hand."""
    return np.unique(np.linspace(0, n - 1, min(n, wanted)).round().astype(int))


def _per_class(e: Evaluation) -> list[dict[str, Any]]:
    """Accuracy of each class, the largest gain first; those without an image come last."""
    n = len(e.classes)
    count = np.bincount(e.labels, minlength=n)
    before, after = (metrics.per_class_accuracy(e.labels, p.argmax(1), n) for p in (e.zero_shot, e.probabilities))
    columns = zip(e.classes, count, before, after, after - before, strict=True)
    keys = ("name", "n", "zero_shot", "adapted", "change")
    rows = [dict(zip(keys, row, strict=True)) for row in columns]
    full = sorted((row for row in rows if row["n"]), key=lambda row: (-row["change"], -row["adapted"], row["name"]))
    return full + [row for row in rows if not row["n"]]


def _pairs(e: Evaluation) -> list[dict[str, Any]]:
    """The most common mistakes of the adapted model, and how often the untouched model made the same."""
    n = len(e.classes)
    after, before = (metrics.confusion(e.labels, p.argmax(1), n) for p in (e.probabilities, e.zero_shot))
    total = after.sum(axis=1)
    wrong = after - np.diag(after.diagonal())
    largest = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
    found = [divmod(int(index), n) for index in largest]
    return [
        {"true": e.classes[t], "said": e.classes[s], "n": wrong[t, s], "before": before[t, s], "total": total[t]}
        for t, s in found
        if wrong[t, s]
    ]


def _card(e: Evaluation, i: int) -> dict[str, Any]:
    """What the page shows of one image."""
    answers = []
    for name, row in (("zero-shot", e.zero_shot[i]), ("adapted", e.probabilities[i])):
        best = int(row.argmax())
        answers.append((name, e.classes[best], best == e.labels[i], 100 * float(row[best])))
    true = e.classes[e.labels[i]]
    return {"file": e.images.name(i), "src": thumbnail(e.images, i), "true": true, "answers": answers}


def thumbnail(images: ImageSet, index: int, side: int = THUMBNAIL) -> str:
    """The image as a data: address, its longer side of at most `side` pixels; nothing when the file has gone since."""
    try:
        image = load_image(images.images[index])
    except UserError:
        return ""
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _settings(record: Record) -> list[dict[str, Any]]:
    """Every setting with its meaning; `changed` when it is not the default, which only a method that can be loaded
    again tells."""
    name, meaning, usual = record.method.name, documentation(Task()) | documentation(Machine()), {}
    with suppress(UserError):
        method = load_method(name)
        own = documentation(method)
        meaning = own | {f"{name}.{setting}": text for setting, text in own.items()} | meaning
        plain = MethodName(name=name, settings=settings_of(method))
        usual = flat(record.model_copy(update={"task": Task(), "precision": Machine().precision, "method": plain}))
    return [
        {
            "name": setting,
            "value": value if isinstance(value, str) else _json(value),
            "changed": setting in usual and _json(value) != _json(usual[setting]),
            "text": meaning.get(setting, ""),
        }
        for setting, value in flat(record).items()
    ]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def template(name: str, **filters: Any) -> Any:
    """A template of the package, which escapes what it is given and refuses what it is not given."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("rmadapter", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    return environment.get_template(name)


def percent(value: float | None, digits: int = 1, sign: bool = False) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return text.replace("-", "−")
