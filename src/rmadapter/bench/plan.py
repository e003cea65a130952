"""The plan of a bench: its jobs, the settings of their methods, and the share of one process.

`add_published_rows` adds rows "as published", with the constants that authors set for each data
set. `select_shard` gives each task of a job array its own part of the jobs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, TypeAlias, TypedDict

import yaml

from rmadapter.artifacts.run_folder import RunFolder
from rmadapter.bench.protocols import Job
from rmadapter.data.catalog.sets import ELEVEN, find
from rmadapter.errors import UserError, quoted
from rmadapter.methods.uses import PUBLISHED
from rmadapter.settings import Machine

if TYPE_CHECKING:
    from rmadapter.runs.lab import Lab
    from rmadapter.training.contract import Method

AUTO = "auto"
ALL_IMAGES = 64  # shots per class that a run on all training images counts as
EVALUATION = 16  # shots per class that an evaluation on the test images counts as

Tuner: TypeAlias = "Callable[[Method, Job, Lab], tuple[Method, str, float]]"


@dataclass(frozen=True)
class Plan:
    """All that a process needs to know to take part in a bench.

    values: settings of methods, {method: {setting: value}}. outside, crops: as in `Lab`. tune:
    searches settings for a job with trials; returns the method, a sentence on the search and its
    seconds.
    """

    jobs: tuple[Job, ...]
    out: Path
    root: Path = Path()
    machine: Machine = field(default_factory=Machine)
    values: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    outside: bool = False
    crops: bool = False
    tune: Tuner | None = None

    def lab(self) -> Lab:
        """Return a lab that keeps activations in the results folder."""
        from rmadapter.runs.lab import Lab

        return Lab(
            self.machine, self.root, RunFolder(self.out).activations, keep=True, progress=False,
            outside=self.outside, crops=self.crops,
        )  # fmt: skip

    def method(self, job: Job) -> Method:
        """Return the method with the values of --set, overridden by those of the protocol."""
        from rmadapter.methods import load_method

        return load_method(job.method, {**self.values.get(job.method, {}), **dict(job.values)})


class PublishedSettings(TypedDict):
    """Constants of one method. source: where they were read. sets: {data set: {setting: value}}."""

    source: str
    sets: dict[str, dict[str, object]]


@cache
def published_settings() -> dict[str, PublishedSettings]:
    """Return the constants that authors set for each data set of the catalogue, by method."""
    text = (files("rmadapter") / "assets/per_set.yaml").read_text(encoding="utf-8")
    settings: dict[str, PublishedSettings] = yaml.safe_load(text)
    return settings


def dataset_constants(method: str, dataset: str) -> Mapping[str, object]:
    """Return the constants that a method's authors set for this data set; empty without any."""
    catalogued = find(PurePath(dataset).name)
    if method not in published_settings() or catalogued is None:
        return {}
    return published_settings()[method]["sets"].get(catalogued.key, {})


def add_published_rows(jobs: Iterable[Job]) -> Iterator[Job]:
    """Follow each job of a method that has constants for some sets by the same job with those of
    its own set.

    If the authors have no constants for one of the eleven sets, this row uses the one setting for
    all sets there, so that both rows average over the same sets. Other sets do not enter the row.
    """
    from rmadapter.methods import load_method

    planned = list(jobs)
    with_constants = {
        job.method
        for job in planned
        if not job.variant and dataset_constants(job.method, job.task.data)
    }
    for job in planned:
        yield job
        dataset = find(PurePath(job.task.data).name)
        in_eleven = dataset is not None and dataset.key in ELEVEN
        if job.method in with_constants and not job.variant and in_eleven:
            label = f"{load_method(job.method).title}, {PUBLISHED} for each set"
            constants = dataset_constants(job.method, job.task.data)
            yield replace(job, values=(*job.values, *constants.items()), variant=label)


def parse_shard(text: str, environment: Mapping[str, str]) -> tuple[int, int]:
    """Return (number of the part, from 1, number of parts).

    text: "2/8", or "auto" to use this task's place in a Slurm array. Raises UserError for any other
    text, and if this task's place in its array is not known.
    """
    if text == AUTO:
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
    if not in_array(environment):
        raise UserError(
            "--shard auto: this is not a task of a Slurm array (sbatch --array=0-7): "
            "write --shard 1/8"
        )
    names = ("ID", "MIN", "MAX", "STEP", "COUNT")
    try:
        place, first, last, step, count = (
            int(environment[f"SLURM_ARRAY_TASK_{name}"]) for name in names
        )
        gaps = (last - first) // step + 1 != count
    except (KeyError, ValueError, ZeroDivisionError):
        raise UserError(
            "--shard auto: Slurm does not set this task's place in its array: write --shard 1/8"
        ) from None
    if gaps:
        raise UserError(
            "--shard auto: the numbers of this array have gaps, so its parts are ambiguous: "
            "use --array=0-7"
        )
    return (place - first) // step + 1, count


def in_array(environment: Mapping[str, str]) -> bool:
    """Return whether this process is a task of a Slurm array."""
    return "SLURM_ARRAY_TASK_ID" in environment


def select_shard(jobs: Sequence[Job], number: int, count: int) -> list[Job]:
    """Return the jobs of part `number` (from 1) of `count`, in their order.

    Parts are disjoint and about equal in work. Jobs on the same images are in the same part: the
    largest groups are assigned first, each to the part with the least work so far.
    """
    groups: dict[tuple[str, int, int], list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.images, []).append(job)
    work = {
        images: sum(EVALUATION + (job.task.shots or ALL_IMAGES) for job in group)
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
