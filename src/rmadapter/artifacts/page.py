"""One self-contained HTML page that says what a run did: open it anywhere, no network, no
JavaScript."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rmadapter.artifacts.checkpoint import flat
from rmadapter.artifacts.mistakes import Mistake
from rmadapter.artifacts.page_sections import Thumbnails, panel, reasons
from rmadapter.artifacts.predictions import Predictions
from rmadapter.artifacts.record import MethodName, Record
from rmadapter.artifacts.summary import as_table, choice_table, told
from rmadapter.errors import UserError
from rmadapter.methods import load_method, may_run
from rmadapter.settings import Machine, documentation, settings_of
from rmadapter.support import plots
from rmadapter.support.files import write_text
from rmadapter.support.html import template
from rmadapter.task import Task


def write_page(
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
    thumbnails: from `panel.thumbnails_of`, for images that no longer exist
    wrong: mistakes on the first test set, with the nearest training images
    Raises ValueError if scores and predictions do not match.
    """
    answered = [number for number, score in enumerate(record.scores) if score.accuracy is not None]
    panels = [
        panel(number, record.scores[number], some, thumbnails or {})
        for number, some in zip(answered, found, strict=True)
    ]
    changes = {part["number"]: part["change"] for part in panels}
    html = template("report.html.j2", percent=percent, duration=plots.duration).render(
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
    write_text(path, html)


def _settings(record: Record) -> list[dict[str, Any]]:
    """Every setting with its meaning; `changed` if it differs from the default, which is known only
    if the method can be loaded again."""
    name, meaning, usual = record.method.name, documentation(Task()) | documentation(Machine()), {}
    if (method := _method(name)) is not None:
        own = documentation(method)
        meaning = own | {f"{name}.{setting}": text for setting, text in own.items()} | meaning
        plain = MethodName(name=name, settings=settings_of(method))
        usual = flat(
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
        for setting, value in flat(record).items()
    ]


def _method(name: str) -> Any:
    """The method; None if it cannot be loaded, and if that would run code that only the record
    names."""
    with suppress(UserError):
        return load_method(name) if may_run(name) else None
    return None


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def percent(value: float | None, digits: int = 1, sign: bool = False) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return text.replace("-", "−")
