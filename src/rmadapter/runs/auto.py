"""Choose a method: judge candidates, from cheap to expensive, on the same folds of the shots."""

from __future__ import annotations

import math
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from rmadapter.artifacts.record import Candidate, Choice
from rmadapter.errors import UserError
from rmadapter.runs.folds import Folds, OutOfTime
from rmadapter.support.files import read_json, write_json
from rmadapter.support.terminal import note
from rmadapter.training.contract import Choices, NotApplicable

ERRORS = 2  # standard errors; by chance alone, one of several candidates is often ahead by one


def choose_once(folds: Folds, choices: Choices, file: Path) -> Choice:
    """Load the saved choice or choose now; timings may differ after a restart."""
    with suppress(UserError, ValidationError):
        return Choice.model_validate(read_json(file))
    choice = choose(folds, choices)
    write_json(file, choice.model_dump(mode="json"))
    return choice


def choose(folds: Folds, choices: Choices) -> Choice:
    """Choose the most preferred candidate whose accuracy over the folds is within two standard
    errors of the best.

    The standard error is that of the paired difference. Without folds, the most preferred candidate
    is chosen. Raises UserError if no candidate could be judged.
    """
    methods, minutes = choices
    if not folds:
        return Choice(chosen=next(iter(methods)), minutes=minutes)
    deadline, labels = time.monotonic() + 60 * minutes, np.array(folds.judged.labels)
    hits: dict[str, np.ndarray] = {}
    rows = {name: Candidate(name=name, title=method.title) for name, method in methods.items()}
    for place, (name, method) in enumerate(methods.items(), 1):
        note(f"auto: {name} ({place} of {len(methods)})")
        try:
            answers = folds.answers(method, name, deadline=deadline)
        except (OutOfTime, NotApplicable, UserError) as error:
            reason = str(error) or "would not finish in time"
            rows[name] = rows[name].model_copy(update={"reason": reason})
            continue
        hits[name] = answers.table.argmax(1) == labels
        figures = {"accuracy": 100 * float(hits[name].mean()), "seconds": round(answers.seconds, 1)}
        rows[name] = rows[name].model_copy(update=figures)
    if not hits:
        first = next(iter(rows.values()))
        raise UserError(
            f"auto: no candidate could be judged; the first, {first.name}: {first.reason}"
        )
    table = np.stack(list(hits.values()))
    for name, (points, deviation) in zip(hits, behind(table).T.tolist(), strict=True):
        rows[name] = rows[name].model_copy(update={"behind": points, "error": deviation})
    chosen = list(hits)[pick(table)]
    return Choice(
        chosen=chosen,
        folds=len(folds),
        images=len(labels),
        minutes=minutes,
        rows=tuple(rows.values()),
    )


def pick(hits: np.ndarray) -> int:
    """Return the place of the first candidate within two standard errors of the best.

    hits: [K, M] bool, whether a candidate is right about an image.
    """
    points, error = behind(hits)
    return int(np.flatnonzero(points <= ERRORS * error)[0])


def behind(hits: np.ndarray) -> np.ndarray:
    """Return [2, K]: how many points each candidate is behind the best, and the standard error of
    that difference."""
    best = hits[hits.mean(1).argmax()]
    lost = best.astype(float) - hits
    return 100 * np.stack([lost.mean(1), lost.std(1) / math.sqrt(hits.shape[1])])
