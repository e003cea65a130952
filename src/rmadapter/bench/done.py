"""Which runs are done, read from the files in the results folder, which all processes that work
there share."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rmadapter.artifacts.record import ANSWERED, Record, read_record
from rmadapter.bench.plan import Plan
from rmadapter.bench.protocols import PROTOCOLS, Job
from rmadapter.errors import UserError
from rmadapter.methods.uses import named_sums
from rmadapter.settings import settings_of
from rmadapter.support.files import read_json

CHOOSE = "choose another --out, or delete that file"
CHANGED = f"its method, or what that learns from, has changed since {{}} was run: {CHOOSE}"


class Board:
    """The current records of a plan's jobs. A job that had failed before this was created is tried
    again."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.out, self.jobs = plan, plan.out, plan.jobs
        self._settled: set[Path] = set()
        self._told: set[Path] = set()
        self._old = {
            path: _stamp(path) for job in self.jobs if os.path.exists(path := self.out / job.path)
        }

    def settled(self, job: Job) -> bool:
        """Whether the job is done: it has an answer, or it failed after this was created and would
        fail again."""
        path = self.out / job.path
        record = None if path in self._settled else record_at(path)
        if record and (record.status in ANSWERED or _stamp(path) != self._old.get(path)):
            self._settled.add(path)
        return path in self._settled

    def left(self) -> list[Job]:
        return [job for job in self.jobs if not self.settled(job)]

    def news(self) -> Iterator[Record]:
        """Records written since the last call."""
        for job in self.jobs:
            path = self.out / job.path
            if path not in self._told and self.settled(job):
                self._told.add(path)
                yield read_record(path)

    def check(self) -> None:
        """Raise UserError for an answer made with other settings and for a file that is no record
        of this version."""
        common = {"precision": self.plan.machine.precision, "--crops": self.plan.crops}
        for job in self.jobs:
            found = record_at(self.out / job.path)
            if found is None and _foreign(self.out / job.path):
                raise UserError(
                    f"{self.out / job.path} is not a run record of this version: {CHOOSE}"
                )
            if found and found.status in ANSWERED:
                searched = {name: found.method.settings.get(name) for name in job.searched}
                pairs = (
                    (asdict(found.task), asdict(job.task)),
                    (found.method.settings, {**settings_of(self.plan.method(job)), **searched}),
                    ({"precision": found.precision, "--crops": found.crops}, common),
                )
                if other := next(filter(None, (_difference(*pair) for pair in pairs)), ""):
                    raise UserError(
                        f"{self.out / job.path} was run with a different value of {other}: {CHOOSE}"
                    )
                if found.method.sums and list(found.method.sums) != named_sums(
                    job.method, found.method.settings
                ):
                    raise UserError(CHANGED.format(self.out / job.path))


def record_at(path: Path) -> Record | None:
    """The record at a path, or None if there is no readable one."""
    try:
        return read_record(path)
    except UserError:
        return None


def _foreign(path: Path) -> bool:
    """Whether a file that is no record is still a JSON object, such as a record of another version,
    and not damaged."""
    try:
        return isinstance(read_json(path), dict)
    except UserError:
        return False


def answers(out: Path) -> dict[str, Record]:
    """Every finished record of a bench below `out` by its key, marked as copied from its path; a
    `fit` tests others."""
    found = {path.relative_to(out): record_at(path) for path in sorted(out.rglob("*.json"))}
    done = {
        path: r
        for path, r in found.items()
        if r and r.status == "finished" and r.protocol in PROTOCOLS
    }
    return {r.key: copied(r, path) for path, r in done.items()}


def copied(record: Record, path: Path) -> Record:
    return record.model_copy(update={"copied_from": record.copied_from or path.as_posix()})


def _stamp(path: Path) -> int:
    return path.stat().st_mtime_ns


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The name of the first setting that differs, or "". JSON has lists where we have tuples."""

    def plain(value: Any) -> Any:
        return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value

    return next((name for name in [*new, *old] if plain(old.get(name)) != plain(new.get(name))), "")
