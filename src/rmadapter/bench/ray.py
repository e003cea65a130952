"""The runs of `bench --ray`, on the workers of a Ray cluster.

A worker keeps the backbone and frozen activations between runs, and preferably gets runs on the
images that it holds. It needs the data and the backbone at the same path on every node, and checks
their digests; records are written by the command, as with the local engine.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from rmadapter.artifacts.record import Record
from rmadapter.bench.plan import Plan, Progress, finished_records
from rmadapter.bench.protocols import Job
from rmadapter.bench.runner import Display, in_order, make_record
from rmadapter.errors import UserError
from rmadapter.support.cluster import run_on_cluster
from rmadapter.support.machine import version_of

if TYPE_CHECKING:
    from rmadapter.runs.lab import Lab


@dataclass(frozen=True)
class Needs:
    """What every node must have: the version of this package, and digests.

    Attributes:
        version: Version of this package.
        backbone: Digest of the backbone.
        data: Digests of each data set's splits.
    """

    version: str
    backbone: str
    data: dict[str, tuple[str, ...]]

    @classmethod
    def of(cls, lab: Lab, jobs: Collection[Job]) -> Needs:
        """Compute what the jobs need, from the data and backbone of this machine."""
        names = dict.fromkeys(name for job in jobs for name in job.datasets)
        digest = lab.backbone(next(iter(jobs)).task.backbone).digest
        data = {name: _digests(lab, name) for name in names}
        return cls(version_of("rmadapter"), digest, data)


def _digests(lab: Lab, name: str) -> tuple[str, ...]:
    return tuple(images.digest for _, images in sorted(lab.splits(name).items()))


class BenchWorker:
    """Does runs of a bench on a node. Raises UserError for another version of this package.

    Args:
        plan: The bench.
        finished: Records by key, as for `make_record`.
        needs: What the node must have.
    """

    def __init__(self, plan: Plan, finished: dict[str, Record], needs: Needs) -> None:
        self.plan, self.finished, self.needs = plan, finished, needs
        self.checked: set[str] = set()
        version = version_of("rmadapter")
        if version != needs.version:
            raise UserError(f"has rmadapter {version}, but needs {needs.version}")
        self.lab = plan.lab()
        if not plan.out.is_dir():  # no shared path: what memory cannot hold is computed again
            self.lab = replace(self.lab, folder=None)

    def do(self, work: Job) -> Record:
        """Do a job. Raises UserError if data or backbone differ from those of the driver."""
        backbone = self.lab.backbone(work.task.backbone)
        if backbone.digest != self.needs.backbone:
            raise UserError(
                f"its {backbone.name} has different weights from those where the command runs"
            )
        for name in {*work.datasets} - self.checked:
            if _digests(self.lab, name) != self.needs.data[name]:
                raise UserError(
                    f"its {name} holds different images from those where the command runs"
                )
            self.checked.add(name)
        self.plan.method(work)  # raises if its file is missing
        return make_record(work, self.plan, self.lab, self.finished)


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
    jobs = in_order(state.remaining())
    shared = replace(plan, out=plan.out.absolute(), root=plan.root.absolute())
    make = partial(BenchWorker, shared, finished_records(plan.out), Needs.of(lab, jobs))
    device = plan.machine.device
    for result in run_on_cluster(make, jobs, processes, device, address, next_job):
        if result:
            job, record = result
            record.save(plan.out / job.path)
        show("", None)
