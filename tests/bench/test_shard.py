"""Parts of a bench: every run in one of them, and no task of an array that takes another's."""

from __future__ import annotations

import pytest

from rmadapter.bench.protocols import expand
from rmadapter.bench.shard import in_array, part, shard
from rmadapter.errors import UserError


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7])
def test_parts_are_disjoint_whole_and_of_about_the_same_work(count: int) -> None:
    jobs = expand("few-shot", ["a", "b", "c"], ["mma", "coop"], [1, 2, 3], [1, 2, 4, 8, 16])
    parts = [part(jobs, number, count) for number in range(1, count + 1)]
    assert sorted(str(job) for one in parts for job in one) == sorted(map(str, jobs))
    for one in parts:
        assert one == [job for job in jobs if job in one]  # in their order
        assert {job.images for job in one}.isdisjoint(
            {job.images for other in parts for job in other if other != one}
        )
    work = [sum(16 + job.task.shots for job in one) for one in parts]
    assert max(work) - min(work) <= 2 * (16 + 16)  # one group


def test_more_parts_than_groups_leave_some_empty() -> None:
    jobs = expand("base-to-novel", ["a", "b"], seeds=[1])
    assert [len(part(jobs, number, 3)) for number in (1, 2, 3)] == [3, 3, 0]


def array(place: int, numbers: str) -> dict[str, str]:
    """What Slurm 23 sets for a task of sbatch --array=..., as its documents have it."""
    found: list[int] = []
    step = 1
    for word in numbers.split(","):
        span, _, given = word.partition(":")
        first, _, last = span.partition("-")
        step = int(given or 1)
        found += range(int(first), int(last or first) + 1, step)
    values = {"ID": place, "MIN": min(found), "MAX": max(found), "STEP": step, "COUNT": len(found)}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


@pytest.mark.parametrize(
    ("text", "environment", "found"),
    [
        ("2/8", {}, (2, 8)),
        ("1/1", array(3, "0-7"), (1, 1)),
        ("auto", array(0, "0-7"), (1, 8)),
        ("auto", array(7, "0-7"), (8, 8)),
        ("auto", array(3, "1-4"), (3, 4)),
        ("auto", array(14, "10-20:4"), (2, 3)),
        ("auto", array(6, "6"), (1, 1)),
    ],
)
def test_which_part_it_is(text: str, environment: dict[str, str], found: tuple[int, int]) -> None:
    assert shard(text, environment) == found
    assert in_array(environment) == bool(environment)


@pytest.mark.parametrize(
    ("text", "environment", "words"),
    [
        ("0/8", {}, r"--shard '0/8': write the part and the number of parts"),
        ("9/8", {}, "as 1/8, or auto"),
        ("first", {}, "as 1/8, or auto"),
        ("auto", {}, r"not a task of a Slurm array \(sbatch --array=0-7\): write --shard 1/8"),
        ("auto", array(3, "3,5,6"), "have gaps"),
        ("auto", {"SLURM_ARRAY_TASK_ID": "3"}, "does not give this task's place"),
    ],
)
def test_what_is_no_part(text: str, environment: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        shard(text, environment)
