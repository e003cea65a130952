"""The page of a run: report.html says what the adaptation changed, with images, confusions, classes
and confidence."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rmadapter import metrics
from rmadapter.artifacts.checkpoint import config_of
from rmadapter.artifacts.mistakes import Mistake, read_mistakes
from rmadapter.artifacts.page import neighbour_cards, thumbnail, thumbnails_of, write_html
from rmadapter.artifacts.predictions import Predictions, read_predictions
from rmadapter.artifacts.record import MethodName, Record, Score, read_record
from rmadapter.artifacts.run_folder import RunFolder
from rmadapter.artifacts.summary import as_table, choice_table, told
from rmadapter.data.formats.registry import images_root
from rmadapter.errors import UserError
from rmadapter.methods import load_method, may_run
from rmadapter.settings import Machine, documentation, settings_of
from rmadapter.support import plots
from rmadapter.support.files import read_text
from rmadapter.support.locks import exclusive
from rmadapter.task import Task

MATRIX_LIMIT = (
    25  # most classes for which a matrix is readable; beyond, only its largest entries are listed
)
NUMBERS = 16  # most classes for which the counts in it fit on a narrow screen
PAIRS = 15  # most rows in the list of confusions
AT_FIRST = 8  # of these, shown in place of a matrix
IN_WORDS = 3  # of these, told in a sentence
PER_OUTCOME = 6  # images shown for each outcome
TRAINING = -1  # number of the training images, which are no scored set
OUTCOMES = (  # name, what it means, (zero-shot is right, adapted is right)
    ("Gained", "only the adapted model is right", (False, True)),
    ("Lost", "only the untouched model is right", (True, False)),
    ("Both right", "", (True, True)),
    ("Both wrong", "", (False, False)),
)

Thumbnails = Mapping[tuple[int, str], str]  # (number of the set, path) -> data: address


def write_run_page(
    path: Path,
    record: Record,
    found: Sequence[Predictions],
    history: Sequence[Mapping[str, float]],
    thumbnails: Thumbnails | None = None,
    wrong: Sequence[Mistake] = (),
) -> None:
    """Write the page atomically; the same input gives the same bytes.

    found: one for each score of the record that has an accuracy, in the same order
    history: loss terms of every step; empty for a method that is not trained step by step
    thumbnails: from `page.thumbnails_of`, for images that no longer exist
    wrong: mistakes on the first test set, with the nearest training images
    Raises ValueError if scores and predictions do not match.
    """
    answered = [number for number, score in enumerate(record.scores) if score.accuracy is not None]
    panels = [
        panel(number, record.scores[number], some, thumbnails or {})
        for number, some in zip(answered, found, strict=True)
    ]
    changes = {part["number"]: part["change"] for part in panels}
    write_html(
        path,
        "report.html.j2",
        record=record,
        judged=record.judgement and as_table(record.judgement),
        choice=record.choice and (*choice_table(record.choice), told(record.choice)),
        rows=[(score, changes.get(number)) for number, score in enumerate(record.scores)],
        mean=record.metric("hm"),
        mean_zero_shot=record.metric("hm", zero_shot=True),
        panels=panels,
        reasons=reasons(answered[0], found[0], wrong, thumbnails or {}) if wrong else [],
        losses=plots.loss_terms(history),
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
        found, history = read_predictions(folder, record), _history(run.history)
        root = images_root(record.task.data, record.crops)
        wrong = read_mistakes(run.mistakes, found[0], root) if found else []
        thumbnails = thumbnails_of(run.page)
        run.write_sums(without=[run.page])  # these fit the folder even if this is killed
        write_run_page(run.page, record, found, history, thumbnails, wrong)
        run.write_sums()
    return run.page


def _history(path: Path) -> list[dict[str, float]]:
    """Read the loss terms of every step. Raises UserError for a damaged file."""
    if not path.is_file():
        return []
    try:
        rows = list(csv.DictReader(read_text(path, "readable CSV").splitlines()))
        return [{name: float(value) for name, value in row.items() if value} for row in rows]
    except (csv.Error, ValueError, TypeError) as error:
        raise UserError(f"{path}: not the losses of a run ({error})") from None


def _settings(record: Record) -> list[dict[str, Any]]:
    """Every setting with its meaning; `changed` if it differs from the default, which is known only
    if the method can be loaded again."""
    name, meaning, usual = record.method.name, documentation(Task()) | documentation(Machine()), {}
    if (method := _method(name)) is not None:
        own = documentation(method)
        meaning = own | {f"{name}.{setting}": text for setting, text in own.items()} | meaning
        plain = MethodName(name=name, settings=settings_of(method))
        usual = config_of(
            record.model_copy(
                update={"task": Task(), "precision": Machine().precision, "method": plain}
            )
        )
    return [
        {
            "name": setting,
            "value": value if isinstance(value, str) else _json(value),
            "changed": setting in usual and _json(value) != _json(usual[setting]),
            "text": meaning.get(setting, ""),
        }
        for setting, value in config_of(record).items()
    ]


def _method(name: str) -> Any:
    """The method; None if it cannot be loaded, and if that would run code that only the record
    names."""
    with suppress(UserError):
        return load_method(name) if may_run(name) else None
    return None


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True)
class Change:
    """The change of a score, in points, with its 95 % interval and McNemar's p. before, after:
    Wilson intervals of the two accuracies, in percent. ece_zero_shot, ece: their calibration
    errors."""

    points: float
    low: float
    high: float
    p: float
    before: tuple[float, float]
    after: tuple[float, float]
    ece_zero_shot: float
    ece: float

    @classmethod
    def of(cls, found: Predictions) -> Change:
        before, after = found.right
        wilson = [metrics.wilson(int(right.sum()), len(right)) for right in (before, after)]
        sure = (found.zero_shot.probability, found.answer.probability)
        errors = [
            metrics.calibration_error(p, right)
            for p, right in zip(sure, (before, after), strict=True)
        ]
        points, low, high, p = metrics.paired(before, after)
        return cls(points, low, high, p, wilson[0], wilson[1], errors[0], errors[1])

    @property
    def verdict(self) -> str:
        """What the interval says about the adapted model; follows its name in a sentence."""
        if self.low > 0:
            return "is better than the untouched model"
        return (
            "is worse than the untouched model"
            if self.high < 0
            else "may be no better than the untouched model"
        )


def panel(number: int, score: Score, found: Predictions, thumbnails: Thumbnails) -> dict[str, Any]:
    """Everything about one score. number: its index in the record."""
    pairs = _pairs(found)
    return {
        "number": number,
        "score": score,
        "change": Change.of(found),
        "outcomes": _outcomes(number, found, thumbnails),
        "per_class": _per_class(found),
        "matrix": _matrix(found) if len(found.classes) <= MATRIX_LIMIT else None,
        "pairs": pairs,
        "at_first": pairs[:AT_FIRST],
        "in_words": pairs[:IN_WORDS],
        "reliability": plots.reliability_diagram(
            {
                "zero-shot": (found.zero_shot.probability, found.right[0]),
                "adapted": (found.answer.probability, found.right[1]),
            },
            f"reliability{number}",
        ),
    }


def _outcomes(number: int, found: Predictions, thumbnails: Thumbnails) -> list[dict[str, Any]]:
    before, after = found.right
    outcomes = []
    for name, meaning, (zero_shot, adapted) in OUTCOMES:
        members = np.flatnonzero((before == zero_shot) & (after == adapted))
        cards = [_card(number, found, int(i), thumbnails) for i in members[_spread(len(members))]]
        share = 100 * len(members) / len(found.true)
        outcomes.append(
            {"name": name, "meaning": meaning, "n": len(members), "share": share, "cards": cards}
        )
    return outcomes


def _spread(n: int) -> np.ndarray:
    """At most PER_OUTCOME of 0..n-1, evenly spread: nobody picked them by hand."""
    return np.unique(np.linspace(0, n - 1, min(n, PER_OUTCOME)).round().astype(int))


def _per_class(found: Predictions) -> list[dict[str, Any]]:
    """Accuracy of each class, the largest gain first; those without an image come last."""
    n = len(found.classes)
    count = np.bincount(found.true, minlength=n)
    guesses = (found.zero_shot, found.answer)
    before, after = (metrics.per_class_accuracy(found.true, guess.which, n) for guess in guesses)
    columns = zip(found.classes, count, before, after, after - before, strict=True)
    keys = ("name", "n", "zero_shot", "adapted", "change")
    rows = [dict(zip(keys, row, strict=True)) for row in columns]
    full = sorted(
        (row for row in rows if row["n"]),
        key=lambda row: (-row["change"], -row["adapted"], row["name"]),
    )
    return full + [row for row in rows if not row["n"]]


def _pairs(found: Predictions) -> list[dict[str, Any]]:
    """The most common mistakes of the adapted model, and how often the untouched model made the
    same."""
    n, names = len(found.classes), found.classes
    true, said, counts = metrics.confusions(found.true, found.answer.which, n)
    largest = np.argsort(-counts, kind="stable")[:PAIRS]
    total = np.bincount(found.true, minlength=n)
    return [
        {
            "true": names[t],
            "said": names[s],
            "n": count,
            "before": int(((found.true == t) & (found.zero_shot.which == s)).sum()),
            "total": total[t],
        }
        for t, s, count in zip(true[largest], said[largest], counts[largest], strict=True)
    ]


def _matrix(found: Predictions) -> dict[str, Any]:
    """rows: for each class its name, number of images, and count and share of the row for every
    answer."""
    counts = metrics.confusion(found.true, found.answer.which, len(found.classes))
    totals = counts.sum(axis=1)
    shares = counts / np.maximum(totals, 1)[:, None]
    rows = zip(found.classes, totals.tolist(), counts.tolist(), shares.tolist(), strict=True)
    return {
        "narrow": len(found.classes) > NUMBERS,
        "rows": [
            (name, total, list(zip(some, parts, strict=True))) for name, total, some, parts in rows
        ],
    }


def _card(number: int, found: Predictions, i: int, thumbnails: Thumbnails) -> dict[str, Any]:
    """What the page shows of one image."""
    answers = []
    for name, guess in (("zero-shot", found.zero_shot), ("adapted", found.answer)):
        best = int(guess.which[i])
        answers.append(
            (name, found.classes[best], best == found.true[i], 100 * float(guess.probability[i]))
        )
    file, true = found.images[i], found.classes[found.true[i]]
    src = thumbnail(found.sources[i]) or thumbnails.get((number, file), "")
    return {"set": number, "file": file, "src": src, "true": true, "answers": answers}


def reasons(
    number: int, found: Predictions, wrong: Sequence[Mistake], thumbnails: Thumbnails
) -> list[dict[str, Any]]:
    """What the page shows of mistakes: the image, the best two classes, the nearest training
    images."""
    names = dict(zip(found.labels, found.classes, strict=True))
    cards = []
    for image, neighbours in wrong:
        i = found.images.index(image)
        near = neighbour_cards(neighbours)
        for card in near:
            card["label"] = names.get(str(card["label"]), card["label"])
            card["src"] = card["src"] or thumbnails.get((TRAINING, card["image"]), "")
        adapted, zero_shot = (
            [
                (found.classes[guess.which[i]], float(guess.probability[i]))
                for guess in guesses
                if guess.which[i] >= 0
            ]
            for guesses in ((found.answer, found.second), (found.zero_shot,))
        )
        src = thumbnail(found.sources[i]) or thumbnails.get((number, image), "")
        card = {"set": number, "image": image, "src": src, "true": found.classes[found.true[i]]}
        cards.append({**card, "best": adapted, "zero_shot": zero_shot, "neighbours": near})
    return cards
