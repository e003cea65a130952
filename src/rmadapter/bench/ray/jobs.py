"""`bench --engine ray`: runs on the workers of a cluster; records are written here, as with the
local engine.

A worker keeps the backbone and frozen activations between runs, and preferably gets runs on the
images that it holds. It needs the data and the backbone at the same path on every node, and checks
their digests; it needs no results.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rmadapter.artifacts.record import Record
from rmadapter.bench.done import Board, answers
from rmadapter.bench.plan import Plan
from rmadapter.bench.protocols import Job
from rmadapter.bench.ray.cluster import connected, ray_module, settle, share, shares
from rmadapter.bench.runner import in_order, made
from rmadapter.errors import UserError


@dataclass(frozen=True)
class Expected:
    """What every node must have: digests of the backbone and of each data set's splits, and our
    version."""

    backbone: str
    data: dict[str, tuple[str, ...]]
    version: str

    @classmethod
    def of(cls, lab: Any, jobs: Collection[Job]) -> Expected:
        from rmadapter import __version__

        names = dict.fromkeys(name for job in jobs for name in _names(job))
        digest = lab.backbone(next(iter(jobs)).task.backbone).digest
        return cls(digest, {name: _digests(lab, name) for name in names}, __version__)


def _names(job: Job) -> list[str]:
    return [job.task.data, *(test.data for test in job.task.tests if test.data)]


def _digests(lab: Any, name: str) -> tuple[str, ...]:
    return tuple(images.digest for _, images in sorted(lab.splits(name).items()))


class Worker:
    """An actor on a node. home: the user's working folder."""

    def __init__(
        self, plan: Plan, known: dict[str, Record], expected: Expected, home: Path, threads: float
    ) -> None:
        self.plan, self.known, self.expected, self.checked = plan, known, expected, set[str]()
        self.node = settle(home, threads)
        self.lab: Any = None

    def ready(self) -> None:
        from rmadapter import __version__

        if __version__ != self.expected.version:
            raise UserError(
                f"node {self.node}: has rmadapter {__version__}, but needs {self.expected.version}"
            )
        self.lab = self.plan.lab()
        if not self.plan.out.is_dir():  # no shared path: what memory cannot hold is computed again
            self.lab.folder = None

    def do(self, job: Job) -> Record:
        try:
            backbone = self.lab.backbone(job.task.backbone)
            if backbone.digest != self.expected.backbone:
                raise UserError(
                    f"its {backbone.name} has different weights from those where the command runs"
                )
            for name in _names(job):
                if (
                    name not in self.checked
                    and _digests(self.lab, name) != self.expected.data[name]
                ):
                    raise UserError(
                        f"its {name} holds different images from those where the command runs"
                    )
                self.checked.add(name)
            self.plan.method(job)  # raises if its file is missing
        except UserError as error:
            raise UserError(
                f"node {self.node}: {error}; every node needs data and backbone at the same path"
            ) from None
        return made(job, self.plan, self.lab, self.known)


def near(last: Job | None, left: list[Job], others: Collection[Job]) -> Job:
    """The next run on the images that a worker holds, else on images that no other worker uses,
    else the first."""
    taken = {job.images for job in others}
    mine = (job for job in left if last and job.images == last.images)
    free = (job for job in left if job.images not in taken)
    return next(mine, None) or next(free, left[0])


def work(
    plan: Plan, board: Board, lab: Any, processes: int, look: Callable[..., Any], address: str = ""
) -> None:
    """Do the jobs that are left with `processes` workers on the cluster at `address`, as in
    `connected`."""
    ray = ray_module()
    jobs = in_order(board.left())
    expected = Expected.of(lab, jobs)
    with connected(address):
        own = shares(processes, plan.machine.device)
        plan = replace(plan, out=plan.out.absolute(), root=plan.root.absolute())
        given = [ray.put(part) for part in (plan, answers(plan.out), expected)]
        actor = ray.remote(Worker).options(**own)
        for found in share(
            lambda: actor.remote(*given, Path.cwd(), own["num_cpus"]), processes, jobs, near
        ):
            if found:
                job, record = found
                record.save(plan.out / job.path)
            look()
