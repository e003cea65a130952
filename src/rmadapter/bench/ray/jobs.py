"""`bench --engine ray`: runs on the workers of a cluster; records are written here, as with the
local engine.

A worker keeps the backbone and frozen activations between runs, and preferably gets runs on the
images that it holds. It needs the data and the backbone at the same path on every node, and checks
their digests; it needs no results.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from rmadapter.artifacts.record import Record
from rmadapter.bench.plan import Plan
from rmadapter.bench.progress import Progress, finished_records
from rmadapter.bench.protocols import Job
from rmadapter.bench.ray.cluster import SAME_PATH, connected, ray_module, settle, share, shares
from rmadapter.bench.runner import Display, in_order, make_record
from rmadapter.errors import UserError
from rmadapter.runs.lab import Lab


@dataclass(frozen=True)
class Expected:
    """What every node must have: digests of the backbone and of each data set's splits, and the
    version of this package."""

    backbone: str
    data: dict[str, tuple[str, ...]]
    version: str

    @classmethod
    def of(cls, lab: Lab, jobs: Collection[Job]) -> Expected:
        """Compute what the jobs need, from the data and backbone of this machine."""
        from rmadapter import __version__

        names = dict.fromkeys(name for job in jobs for name in _data_sets(job))
        digest = lab.backbone(next(iter(jobs)).task.backbone).digest
        return cls(digest, {name: _digests(lab, name) for name in names}, __version__)


def _data_sets(job: Job) -> list[str]:
    return [job.task.data, *(test.data for test in job.task.tests if test.data)]


def _digests(lab: Lab, name: str) -> tuple[str, ...]:
    return tuple(images.digest for _, images in sorted(lab.splits(name).items()))


class Worker:
    """An actor on a node. finished: as in `make_record`. home: the user's working folder."""

    def __init__(
        self, plan: Plan, finished: dict[str, Record], expected: Expected, home: Path,
        threads: float,
    ) -> None:  # fmt: skip
        self.plan, self.finished, self.expected = plan, finished, expected
        self.checked: set[str] = set()
        self.node = settle(home, threads)
        self.lab = Lab()

    def ready(self) -> None:
        """Prepare for runs. Raises UserError for another version of this package."""
        from rmadapter import __version__

        if __version__ != self.expected.version:
            raise UserError(
                f"node {self.node}: has rmadapter {__version__}, but needs {self.expected.version}"
            )
        self.lab = self.plan.lab()
        if not self.plan.out.is_dir():  # no shared path: what memory cannot hold is computed again
            self.lab.folder = None

    def do(self, job: Job) -> Record:
        """Do a job. Raises UserError if data or backbone differ from those of the driver."""
        try:
            backbone = self.lab.backbone(job.task.backbone)
            if backbone.digest != self.expected.backbone:
                raise UserError(
                    f"its {backbone.name} has different weights from those where the command runs"
                )
            for name in _data_sets(job):
                if name in self.checked:
                    continue
                if _digests(self.lab, name) != self.expected.data[name]:
                    raise UserError(
                        f"its {name} holds different images from those where the command runs"
                    )
                self.checked.add(name)
            self.plan.method(job)  # raises if its file is missing
        except UserError as error:
            raise UserError(f"node {self.node}: {error}; {SAME_PATH}") from None
        return make_record(job, self.plan, self.lab, self.finished)


def next_job(last: Job | None, left: list[Job], others: Collection[Job]) -> Job:
    """Return the next run on the images that a worker holds, else on images that no other worker
    uses, else the first."""
    in_use = {job.images for job in others}
    same = (job for job in left if last and job.images == last.images)
    free = (job for job in left if job.images not in in_use)
    return next(same, None) or next(free, left[0])


def work(
    plan: Plan, state: Progress, lab: Lab, processes: int, show: Display, address: str = ""
) -> None:
    """Do the remaining jobs with `processes` workers on the cluster at `address`, as in
    `connected`."""
    ray = ray_module()
    jobs = in_order(state.remaining())
    expected = Expected.of(lab, jobs)
    with connected(address):
        resources = shares(processes, plan.machine.device)
        plan = replace(plan, out=plan.out.absolute(), root=plan.root.absolute())
        arguments = [ray.put(part) for part in (plan, finished_records(plan.out), expected)]
        actor = ray.remote(Worker).options(**resources)

        def hire() -> object:
            return actor.remote(*arguments, Path.cwd(), resources["num_cpus"])

        for result in share(hire, processes, jobs, next_job):
            if result:
                job, record = result
                record.save(plan.out / job.path)
            show()
