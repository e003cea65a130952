"""Which runs are done, according to the records in the results folder, which all processes that
work in it share."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from rmadapter.artifacts.record import ANSWERED, Record, read_record
from rmadapter.bench.plan import Plan
from rmadapter.bench.protocols import PROTOCOLS, Job
from rmadapter.errors import UserError
from rmadapter.methods.uses import named_sums
from rmadapter.settings import settings_of
from rmadapter.support.files import read_json

CHOOSE = "choose another --out, or delete that file"
CHANGED = f"the method, or a file that it reads, has changed since {{}} was run: {CHOOSE}"


class Progress:
    """The current records of a plan's jobs. A job that failed before this object was created is
    tried again."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._settled: set[Path] = set()
        self._reported: set[Path] = set()
        paths = [plan.out / job.path for job in plan.jobs]
        self._initial = {path: _modified(path) for path in paths if os.path.exists(path)}

    def settled(self, job: Job) -> bool:
        """Return whether the job is done: it has an answer, or it failed after this object was
        created and would fail again."""
        path = self.plan.out / job.path
        record = None if path in self._settled else record_or_none(path)
        if record and (record.status in ANSWERED or _modified(path) != self._initial.get(path)):
            self._settled.add(path)
        return path in self._settled

    def remaining(self) -> list[Job]:
        """Return the jobs that are not settled, in their order."""
        return [job for job in self.plan.jobs if not self.settled(job)]

    def new_records(self) -> Iterator[Record]:
        """Yield the records written since the last call."""
        for job in self.plan.jobs:
            path = self.plan.out / job.path
            if path not in self._reported and self.settled(job):
                self._reported.add(path)
                yield read_record(path)

    def check(self) -> None:
        """Raise UserError for a record made with other settings, and for a file that is no record
        of this version."""
        for job in self.plan.jobs:
            path = self.plan.out / job.path
            record = record_or_none(path)
            if record is None and _is_json_object(path):
                raise UserError(f"{path} is not a run record of this version: {CHOOSE}")
            if record and record.status in ANSWERED:
                self._check_record(record, job, path)

    def _check_record(self, record: Record, job: Job, path: Path) -> None:
        searched = {name: record.method.settings.get(name) for name in job.searched}
        settings = {**settings_of(self.plan.method(job)), **searched}
        machine = {"precision": self.plan.machine.precision, "--crops": self.plan.crops}
        changed = (
            _first_difference(asdict(record.task), asdict(job.task))
            or _first_difference(record.method.settings, settings)
            or _first_difference({"precision": record.precision, "--crops": record.crops}, machine)
        )
        if changed:
            raise UserError(f"{path} was run with a different value of {changed}: {CHOOSE}")
        sums = list(record.method.sums)
        if sums and sums != named_sums(job.method, record.method.settings):
            raise UserError(CHANGED.format(path))


def record_or_none(path: Path) -> Record | None:
    """Return the record at a path, or None if there is no readable one."""
    try:
        return read_record(path)
    except UserError:
        return None


def _is_json_object(path: Path) -> bool:
    """Return whether a file that is no record is still a JSON object, such as a record of another
    version, and not a damaged file."""
    try:
        return isinstance(read_json(path), dict)
    except UserError:
        return False


def finished_records(out: Path) -> dict[str, Record]:
    """Return every finished record of a bench below `out` by its key, marked as copied from its
    path. Records of `fit` do not count: they have other test sets."""
    records = {path.relative_to(out): record_or_none(path) for path in sorted(out.rglob("*.json"))}
    return {
        record.key: mark_copied(record, path)
        for path, record in records.items()
        if record and record.status == "finished" and record.protocol in PROTOCOLS
    }


def mark_copied(record: Record, path: Path) -> Record:
    """Return a copy of the record that says where its figures come from."""
    return record.model_copy(update={"copied_from": record.copied_from or path.as_posix()})


def _modified(path: Path) -> int:
    return path.stat().st_mtime_ns


def _first_difference(old: Mapping[str, object], new: Mapping[str, object]) -> str:
    """Return the name of the first setting that differs, or "". Lists equal tuples, as JSON has no
    tuples."""

    def plain(value: object) -> object:
        return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value

    return next((name for name in [*new, *old] if plain(old.get(name)) != plain(new.get(name))), "")
