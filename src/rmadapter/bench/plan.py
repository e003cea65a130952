"""The plan of a bench: its jobs, the settings of their methods, and which jobs are done according
to the records in the results folder, which all processes that work in it share.

`add_published_rows` adds rows "as published", with the constants that authors set for each data
set. `select_shard` gives each task of a job array its own part of the jobs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path, PurePath
from typing import NamedTuple, TypeAlias, TypedDict

import yaml

from rmadapter.artifacts.record import ANSWERED, Record, read_record
from rmadapter.artifacts.run_folder import RunFolder
from rmadapter.bench.protocols import PROTOCOLS, TUNED, Job
from rmadapter.data.catalog.sets import ELEVEN, find
from rmadapter.errors import UserError, quoted
from rmadapter.methods import changed_settings, load_method, name_with_settings
from rmadapter.methods.uses import named_sums
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import machine_of
from rmadapter.settings import Machine, configured, parse_overrides, settings_of
from rmadapter.support.files import read_json, user_path
from rmadapter.support.machine import shared_gpus
from rmadapter.task import (
    COMMON_SETTINGS,
    MACHINE_SETTINGS,
    TASK_SETTINGS,
    Task,
    check_views,
)
from rmadapter.training.contract import Method
from rmadapter.training.traits import PUBLISHED

AUTO_SHARD = "auto"
# shots per class that a run on all training images, and an evaluation, count as
ALL_IMAGES_SHOTS, EVALUATION_SHOTS = 64, 16
CHOOSE = "choose another --out, or delete that file"
CHANGED = "is of a method that has changed since, or that reads a file that has"

# set by the protocol, by --shots and by --seeds
PLANNED_SETTINGS = ("shots", "seed", "classes")
Settings: TypeAlias = dict[str, object]  # by name
MethodSettings: TypeAlias = "Mapping[str, Mapping[str, object]]"  # {method: {setting: value}}
Tune: TypeAlias = "Callable[[Method, Job, Lab], tuple[Method, str, float]]"


class Tuner(NamedTuple):
    """What searches for settings of methods, as an entry point of `rmadapter.tuners` names it.

    Attributes:
        settings: Returns the settings of a method, given with its name, that are searched for.
        tune: Returns the tuned method of a job, what it was judged by, and the seconds of the
            search.
    """

    settings: Callable[[Method, str], tuple[str, ...]]
    tune: Tune


def find_tuner() -> Tuner:
    """Return what searches for settings. Raises UserError if nothing that does is installed."""
    found = next(iter(entry_points(group="rmadapter.tuners")), None)
    if found is None:
        raise UserError("--tune: no package that searches for settings is installed")
    tuner: Tuner = found.load()
    return tuner


@dataclass(frozen=True)
class Plan:
    """All that a process needs to know to take part in a bench.

    Attributes:
        jobs: The runs.
        out: Folder for results.
        root: Folder of data sets.
        machine: Machine settings.
        values: Settings of methods, {method: {setting: value}}.
        outside: Whether listed files outside a data set's folder are read, as in `Lab`.
        crops: Whether boxes are used as images, as in `Lab`.
        tune: Searches settings for a job with trials, as in `Tuner`.
    """

    jobs: tuple[Job, ...]
    out: Path
    root: Path = Path()
    machine: Machine = field(default_factory=Machine)
    values: MethodSettings = field(default_factory=dict)
    outside: bool = False
    crops: bool = False
    tune: Tune | None = None

    def lab(self) -> Lab:
        """Return a lab that keeps activations in the results folder."""
        return Lab(
            self.machine,
            self.root,
            RunFolder(self.out).activations,
            keep=True,
            progress=False,
            outside=self.outside,
            crops=self.crops,
        )

    def method(self, job: Job) -> Method:
        """Return the method with the values of --set, overridden by those of the protocol."""
        return load_method(job.method, {**self.values.get(job.method, {}), **dict(job.values)})

    def remaining(self) -> list[Job]:
        """Return the jobs that are not done, in their order."""
        return Progress(self).remaining()

    def records(self) -> dict[Job, Record]:
        """Return the records that there are. Raises UserError for a damaged one."""
        paths = {job: self.out / job.path for job in self.jobs}
        return {job: read_record(path) for job, path in paths.items() if path.is_file()}


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

    def new_records(self) -> Iterator[tuple[Job, Record]]:
        """Yield the jobs whose records were written since the last call, with these."""
        for job in self.plan.jobs:
            path = self.plan.out / job.path
            if path not in self._reported and self.settled(job):
                self._reported.add(path)
                yield job, read_record(path)

    def check(self) -> None:
        """Raise UserError for a record made with other settings, and for a file that is no record
        of this version."""
        for job in self.plan.jobs:
            path = self.plan.out / job.path
            record = record_or_none(path)
            if record is None and _is_json_object(path):
                raise UserError(f"{path} is not a run record of this version: {CHOOSE}")
            changed = self._change(record, job) if record and record.status in ANSWERED else ""
            if changed:
                raise UserError(f"{path} {changed}: {CHOOSE}")

    def _change(self, record: Record, job: Job) -> str:
        """Say in what a record differs from the job; "" if in nothing."""
        searched = {name: record.method.settings.get(name) for name in job.searched}
        settings = {**settings_of(self.plan.method(job)), **searched}
        machine = {"precision": self.plan.machine.precision, "--crops": self.plan.crops}
        changed = (
            _first_difference(asdict(record.task), asdict(job.task))
            or _first_difference(record.method.settings, settings)
            or _first_difference({"precision": record.precision, "--crops": record.crops}, machine)
        )
        if changed:
            return f"was run with a different value of {changed}"
        sums = list(record.method.sums)
        other = sums and sums != named_sums(job.method, record.method.settings)
        return CHANGED if other else ""


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
    path. Records of `fit` do not count: they have other test sets. Raises UserError for an
    impossible path."""
    out = user_path(out)
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


class PublishedSettings(TypedDict):
    """Constants of one method.

    Attributes:
        source: Where they were read.
        sets: {data set: {setting: value}}.
    """

    source: str
    sets: dict[str, dict[str, object]]


@cache
def published_settings() -> dict[str, PublishedSettings]:
    """Return the constants that authors set for each data set of the catalogue, by method."""
    text = (files("rmadapter.bench") / "per_set.yaml").read_text(encoding="utf-8")
    settings: dict[str, PublishedSettings] = yaml.safe_load(text)
    return settings


def dataset_constants(method: str, dataset: str) -> Mapping[str, object]:
    """Return the constants that a method's authors set for this data set; empty without any."""
    catalogued = find(PurePath(dataset).name)
    if method not in published_settings() or catalogued is None:
        return {}
    return published_settings()[method]["sets"].get(catalogued.key, {})


def add_published_rows(jobs: Sequence[Job], values: MethodSettings) -> Iterator[Job]:
    """Follow each job of a method that has constants for some sets by the same job with those of
    its own set.

    If the authors have no constants for one of the eleven sets, this row uses the one setting for
    all sets there, so that both rows average over the same sets. Other sets do not enter the row.

    Args:
        jobs: The jobs.
        values: As in `Plan`, for the label of the row.
    """
    constants = {
        job: dataset_constants(job.method, job.task.data) for job in jobs if not job.variant
    }
    with_constants = {job.method for job, found in constants.items() if found}
    for job in jobs:
        yield job
        dataset = find(PurePath(job.task.data).name)
        in_eleven = dataset is not None and dataset.key in ELEVEN
        if job in constants and job.method in with_constants and in_eleven:
            title = method_label(job.method, values.get(job.method, {}))
            label = f"{title}, {PUBLISHED} for each set"
            own = tuple(constants[job].items())
            yield replace(job, values=(*job.values, *own), variant=label)


def add_tuned_rows(
    jobs: Iterable[Job], trials: int, values: MethodSettings, tuner: Tuner
) -> Iterator[Job]:
    """Follow each job by its tuned variant if the method has settings to search for.

    Args:
        jobs: The jobs.
        trials: Number of trials.
        values: As in `Plan`.
        tuner: Names the settings.
    """
    for job in jobs:
        yield job
        method = load_method(job.method, {**values.get(job.method, {}), **dict(job.values)})
        searched = () if job.variant else tuner.settings(method, job.method)
        if searched:
            label = method_label(job.method, settings_of(method))
            variant = f"{label}, {TUNED} {trials} trials"
            yield replace(job, trials=trials, searched=searched, variant=variant)


def method_label(name: str, settings: Mapping[str, object]) -> str:
    """Return the title of a method with those of the settings that are not its own."""
    return name_with_settings(load_method(name).title, changed_settings(name, settings))


def parse_shard(text: str, environment: Mapping[str, str]) -> tuple[int, int]:
    """Return (number of the part, from 1, number of parts).

    Args:
        text: "2/8", or "auto" to use this task's place in a Slurm array.
        environment: Variables that Slurm sets for a task.

    Raises:
        UserError: The text is another one, or this task's place in its array is not known.
    """
    if text == AUTO_SHARD:
        return _slurm_shard(environment)
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    number, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= count:
        raise UserError(
            f"--shard {quoted(text)}: write the part and the number of parts, such as 1/8, or auto"
        )
    return number, count


def _slurm_shard(environment: Mapping[str, str]) -> tuple[int, int]:
    """Return this task's place in its Slurm array, whose numbers may start and step by any amount
    but have no gaps."""
    names = ("ID", "MIN", "MAX", "STEP", "COUNT")
    try:
        place, first, last, step, count = (
            int(environment[f"SLURM_ARRAY_TASK_{name}"]) for name in names
        )
        gaps = (last - first) // step + 1 != count
    except (KeyError, ValueError, ZeroDivisionError):
        raise UserError(
            "--shard auto: this is not a task of a Slurm array (sbatch --array=0-7), or Slurm does "
            "not set its place in its array: write --shard 1/8"
        ) from None
    if gaps:
        raise UserError(
            "--shard auto: the numbers of this array have gaps, so its parts are ambiguous: "
            "use --array=0-7"
        )
    return (place - first) // step + 1, count


def worker_count(device: str, jobs: int, per_gpu: int = 0) -> int:
    """Return the number of worker processes.

    Args:
        device: Device of the bench.
        jobs: Number of processes.
        per_gpu: Number of processes per GPU, which replaces `jobs`.

    Raises:
        UserError: There is no GPU to share.
    """
    if not per_gpu:
        return jobs
    devices = shared_gpus(device)
    if not devices:
        raise UserError("--jobs-per-gpu: there is no GPU to share; give --jobs instead")
    return per_gpu * len(devices)


def select_shard(jobs: Sequence[Job], number: int, count: int) -> list[Job]:
    """Return the jobs of part `number` (from 1) of `count`, in their order.

    Parts are disjoint and about equal in work. Jobs on the same images are in the same part: the
    largest groups are assigned first, each to the part with the least work so far.
    """
    groups: dict[tuple[str, int, int, str], list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.images, []).append(job)
    work = {
        images: sum(EVALUATION_SHOTS + (job.task.shots or ALL_IMAGES_SHOTS) for job in group)
        for images, group in groups.items()
    }
    loads = [0] * count
    selected = set()
    for images in sorted(groups, key=lambda images: -work[images]):
        lightest = loads.index(min(loads))
        loads[lightest] += work[images]
        if lightest == number - 1:
            selected.add(images)
    return [job for job in jobs if job.images in selected]


# Settings


def of_run(method: str, values: dict[str, object]) -> dict[str, object]:
    """Convert the values of a run's config.yaml for a bench. A file that names no method is for a
    bench already."""
    if not method:
        return values
    kept = {name: value for name, value in values.items() if name not in PLANNED_SETTINGS}
    return {
        name if name in COMMON_SETTINGS or "." in name else f"{method}.{name}": value
        for name, value in kept.items()
    }


def configure(
    values: Mapping[str, object], templates: str, sets: list[str] | None
) -> tuple[Task, Machine, dict[str, Settings]]:
    """Apply --templates and --set to values of settings.

    Args:
        values: Values by name.
        templates: Prompt template; "" or "dataset" for none.
        sets: What --set says.

    Returns:
        What is common to all tasks, the machine, and {method: {setting: value}}.
    """
    own_templates = {} if templates in ("", "dataset") else {"templates": templates}
    task, machine, own = common_and_own({**values, **own_templates, **parse_overrides(sets or [])})
    return check_views(configured(Task(), task)), machine_of(machine), own


def common_and_own(values: Settings) -> tuple[Settings, Settings, dict[str, Settings]]:
    """Split settings into the tasks', the machine's and {method: {setting: value}}. Raises
    UserError for others."""
    own: dict[str, Settings] = {}
    for name, value in values.items():
        method, dot, setting = name.rpartition(".")
        if dot:
            own.setdefault(method, {})[setting] = value
        elif name not in COMMON_SETTINGS or name in PLANNED_SETTINGS:
            common = ", ".join(other for other in COMMON_SETTINGS if other not in PLANNED_SETTINGS)
            raise UserError(
                f"--set {name}: write METHOD.{name} for a method's setting; the common ones are "
                f"{common}"
            )
    task = {name: value for name, value in values.items() if name in TASK_SETTINGS}
    machine = {name: value for name, value in values.items() if name in MACHINE_SETTINGS}
    return task, machine, own
