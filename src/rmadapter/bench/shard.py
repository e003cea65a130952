"""Split a bench among the tasks of a job array: disjoint parts of about equal work that together
are the whole."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from rmadapter.bench.protocols import Job
from rmadapter.errors import UserError, quoted

AUTO = "auto"
WHOLE = 64  # shots that a run on all training images counts as
ASKED = 16  # shots that an evaluation on test images counts as


def shard(text: str, environment: Mapping[str, str]) -> tuple[int, int]:
    """(number of the part, from 1, number of parts). text: "2/8", or "auto" to use this task's
    place in a Slurm array.

    Raises UserError for any other text, and if this task's place in its array is not known.
    """
    if text == AUTO:
        return _task(environment)
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    number, count = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= count:
        raise UserError(
            f"--shard {quoted(text)}: write the part and the number of parts, such as 1/8, or auto"
        )
    return number, count


def _task(environment: Mapping[str, str]) -> tuple[int, int]:
    """This task's place in its Slurm array, whose numbers may start and step by any amount, but
    have no gaps."""
    if not in_array(environment):
        raise UserError(
            "--shard auto: this is not a task of a Slurm array (sbatch --array=0-7): write --shard 1/8"
        )
    names = ("ID", "MIN", "MAX", "STEP", "COUNT")
    try:
        place, least, most, step, count = (
            int(environment[f"SLURM_ARRAY_TASK_{name}"]) for name in names
        )
        gaps = (most - least) // step + 1 != count
    except (KeyError, ValueError, ZeroDivisionError):
        raise UserError(
            "--shard auto: Slurm does not give this task's place in its array: write --shard 1/8"
        ) from None
    if gaps:
        raise UserError(
            "--shard auto: the numbers of this array have gaps, so its parts are not clear: use --array=0-7"
        )
    return (place - least) // step + 1, count


def in_array(environment: Mapping[str, str]) -> bool:
    return "SLURM_ARRAY_TASK_ID" in environment


def part(jobs: Sequence[Job], number: int, count: int) -> list[Job]:
    """The jobs of one part, in the given order. Jobs on the same images are in the same part.

    The largest groups are assigned first, each to the part with the least work so far.
    """
    groups: dict[tuple[str, int, int], list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.images, []).append(job)
    work = {
        images: sum(ASKED + (job.task.shots or WHOLE) for job in group)
        for images, group in groups.items()
    }
    loads, mine = [0] * count, set()
    for images in sorted(groups, key=lambda images: -work[images]):
        least = loads.index(min(loads))
        loads[least] += work[images]
        if least == number - 1:
            mine.add(images)
    return [job for job in jobs if job.images in mine]
