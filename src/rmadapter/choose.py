"""`--method auto`: candidates from cheap to dear, judged on the same folds of the shots; docs/auto.md says what it is
worth."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic.dataclasses import dataclass

from rmadapter import request
from rmadapter.console import note
from rmadapter.errors import UserError
from rmadapter.folds import Folds, OutOfTime
from rmadapter.method import Method, NotApplicable
from rmadapter.methods import AUTO, DEFAULT, load_method
from rmadapter.record import Candidate, Choice
from rmadapter.settings import STRICT, Machine, configured, option, parse_overrides
from rmadapter.task import Task, check_views

# In the order in which they are preferred and tried: the cheap ones first, and of these the best on the choosing sets.
CANDIDATES = (
    "linear-probe", "linear-probe-pair", "linear-probe-zero-shot", "tip-adapter-f", "zero-shot", "zero-shot-ensemble",
    "rmadapter", "mmrl",
)  # fmt: skip
FOR_FEW, FEW = "linear-probe-pair", 8  # which is preferred where a class has fewer images than that
ERRORS = 2  # standard errors; by chance alone, one of several candidates is often ahead by one


@dataclass(frozen=True, config=STRICT)
class Auto:
    """Settings of the choice."""

    minutes: float = option(10.0, "minutes for the choice; methods that would take longer are left out", gt=0)
    candidates: tuple[str, ...] = option(CANDIDATES, "methods to choose from, the preferred first", min_length=1)
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
    """The candidates in their order, but for `FOR_FEW`, where a class usually has so few images."""
    return sorted(candidates, key=lambda name: images >= FEW or name != FOR_FEW)


def asked(values: Mapping[str, Any], effort: str = "normal", data: str = "") -> Asked:
    """From flat names: of the task, of the machine, of `Auto`. Raises UserError for others, a method's among them."""
    task, machine, own = request.split(values, AUTO)
    auto = configured(Auto(effort=effort), own, AUTO)
    for name in auto.candidates:
        auto.method(name)
    return Asked(check_views(configured(Task(data=data), task)), request.machine_of(machine), auto)


def requested(
    method: str, config: Path | None, flags: Mapping[str, Any], sets: list[str] | None, effort: str = "normal",
    data: str = "", auto: bool = False,
) -> Any:  # fmt: skip
    """What the command line asks for: a file of settings, over it the flags that were given, and over them --set."""
    name, values = request.read_config(config)
    values |= {flag: value for flag, value in flags.items() if value is not None}
    values |= parse_overrides(sets or [])
    if auto and (method or name) == AUTO:
        return asked(values, effort, data)
    if flags.get("minutes") is not None:
        raise UserError("--minutes limits the choice of --method auto; other methods train as long as --effort says")
    return request.Request.make(values, method or name or DEFAULT, effort, data)


def choose(folds: Folds, auto: Auto) -> Choice:
    """The first, as they are preferred, whose accuracy over the folds is within two standard errors of the best one's.

    Where there is nothing to judge by, the first of all. The standard error is that of the difference, which is paired.
    Raises UserError when no candidate can be asked.
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
            row = row.model_copy(update=figures | dict(zip(("behind", "error"), by[name], strict=True)))
        rows.append(row)
    chosen = list(right)[pick(hits)]
    return Choice(chosen=chosen, folds=len(folds), images=len(labels), minutes=auto.minutes, rows=tuple(rows))


def pick(hits: np.ndarray) -> int:
    """hits: [K, M] bool, whether a candidate names an image; the place of the first that is within two standard errors
    of the best."""
    points, error = behind(hits)
    return int(np.flatnonzero(points <= ERRORS * error)[0])


def behind(hits: np.ndarray) -> np.ndarray:
    """[2, K]: by how many points each is behind the best, and the standard error of that difference."""
    best = hits[hits.mean(1).argmax()]
    lost = best.astype(float) - hits
    return 100 * np.stack([lost.mean(1), lost.std(1) / math.sqrt(hits.shape[1])])
