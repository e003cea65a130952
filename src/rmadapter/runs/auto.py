"""`--method auto`: judge candidates, from cheap to expensive, on the same folds of the shots;
docs/auto.md says what it is worth."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic.dataclasses import dataclass

from rmadapter.artifacts.record import Candidate, Choice
from rmadapter.errors import UserError
from rmadapter.methods import AUTO, DEFAULT, load_method
from rmadapter.runs import request
from rmadapter.runs.folds import Folds, OutOfTime
from rmadapter.settings import STRICT, Machine, configured, option, parse_overrides
from rmadapter.support.terminal import note
from rmadapter.task import Task, check_views
from rmadapter.training.contract import Method, NotApplicable

# In order of preference and of trial: the cheap ones first, and among these the best on the
# choosing sets.
CANDIDATES = (
    "linear-probe", "linear-probe-pair", "linear-probe-zero-shot", "tip-adapter-f", "zero-shot", "zero-shot-ensemble",
    "rmadapter", "mmrl",
)  # fmt: skip
FOR_FEW, FEW = "linear-probe-pair", 8  # preferred if classes usually have fewer images than FEW
ERRORS = 2  # standard errors; by chance alone, one of several candidates is often ahead by one


@dataclass(frozen=True, config=STRICT)
class Auto:
    """Settings of the choice."""

    minutes: float = option(
        10.0, "minutes for the choice; methods that would take longer are left out", gt=0
    )
    candidates: tuple[str, ...] = option(
        CANDIDATES, "methods to choose from, the preferred first", min_length=1
    )
    effort: str = option("normal", "effort of the candidates")

    def method(self, name: str) -> Method:
        return load_method(name, effort=self.effort)


class Asked(NamedTuple):
    """A `Request` whose method is yet to be chosen."""

    task: Task
    machine: Machine
    method: Auto
    name: str = AUTO


def preferred(candidates: Sequence[str], images: float) -> list[str]:
    """The candidates in their order, but `FOR_FEW` first if a class usually has fewer than `FEW`
    images."""
    return sorted(candidates, key=lambda name: images >= FEW or name != FOR_FEW)


def asked(values: Mapping[str, Any], effort: str = "normal", data: str = "") -> Asked:
    """From flat names: of the task, the machine and `Auto`. Raises UserError for others, including
    a method's."""
    task, machine, own = request.split(values, AUTO)
    auto = configured(Auto(effort=effort), own, AUTO)
    for name in auto.candidates:
        auto.method(name)
    return Asked(check_views(configured(Task(data=data), task)), request.machine_of(machine), auto)


def requested(
    method: str, config: Path | None, flags: Mapping[str, Any], sets: list[str] | None, effort: str = "normal",
    data: str = "", auto: bool = False,
) -> Any:  # fmt: skip
    """What the command line asks for: a file of settings, overridden by flags, which --set
    overrides."""
    name, values = request.read_config(config, (method,))
    if effort != "normal" and (method or name) != AUTO:
        values = request.without_length(values, method or name or DEFAULT)
    values |= {flag: value for flag, value in flags.items() if value is not None}
    values |= parse_overrides(sets or [])
    if auto and (method or name) == AUTO:
        return asked(values, effort, data)
    if flags.get("minutes") is not None:
        raise UserError(
            "--minutes limits the choice of --method auto; other methods train as long as --effort says"
        )
    return request.Request.make(values, method or name or DEFAULT, effort, data)


def choose(folds: Folds, auto: Auto) -> Choice:
    """Choose the most preferred candidate whose accuracy over the folds is within two standard
    errors of the best.

    The standard error is that of the paired difference. Without folds, the most preferred candidate
    is chosen. Raises UserError if no candidate could be judged.
    """
    candidates = preferred(auto.candidates, float(np.median(np.bincount(folds.images.labels))))
    if not folds:
        return Choice(chosen=candidates[0], minutes=auto.minutes)
    deadline, labels = time.monotonic() + 60 * auto.minutes, np.array(folds.judged.labels)
    right, seconds, reasons = {}, {}, {}
    for place, name in enumerate(candidates, 1):
        note(f"auto: {name} ({place} of {len(candidates)})")
        try:
            found = folds.answers(auto.method(name), name, deadline=deadline)
        except (OutOfTime, NotApplicable, UserError) as error:
            reasons[name] = str(error) or "would not finish in time"
            continue
        right[name], seconds[name] = found.table.argmax(1) == labels, round(found.seconds, 1)
    if not right:
        name, reason = next(iter(reasons.items()))
        raise UserError(f"auto: no candidate could be judged; the first, {name}: {reason}")
    hits = np.stack(list(right.values()))
    by = dict(zip(right, behind(hits).T.tolist(), strict=True))
    rows = []
    for name in candidates:
        row = Candidate(name=name, title=auto.method(name).title, reason=reasons.get(name, ""))
        if name in right:
            figures = {"accuracy": 100 * float(right[name].mean()), "seconds": seconds[name]}
            row = row.model_copy(
                update=figures | dict(zip(("behind", "error"), by[name], strict=True))
            )
        rows.append(row)
    chosen = list(right)[pick(hits)]
    return Choice(
        chosen=chosen, folds=len(folds), images=len(labels), minutes=auto.minutes, rows=tuple(rows)
    )


def pick(hits: np.ndarray) -> int:
    """The place of the first candidate within two standard errors of the best. hits: [K, M] bool,
    whether a candidate names an image."""
    points, error = behind(hits)
    return int(np.flatnonzero(points <= ERRORS * error)[0])


def behind(hits: np.ndarray) -> np.ndarray:
    """[2, K]: how many points each candidate is behind the best, and the standard error of that
    difference."""
    best = hits[hits.mean(1).argmax()]
    lost = best.astype(float) - hits
    return 100 * np.stack([lost.mean(1), lost.std(1) / math.sqrt(hits.shape[1])])
