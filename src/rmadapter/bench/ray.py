"""The runs of `bench --ray`, on the workers of a Ray cluster.

A worker keeps the backbone and frozen activations between runs, and preferably gets runs on the
images that it holds. It needs the data and the backbone at the same path on every node, and checks
their digests; records are written by the command, as with the local engine.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial

from rmadapter.artifacts.record import Record
from rmadapter.bench.plan import Plan, Progress, finished_records
from rmadapter.bench.protocols import Job
from rmadapter.bench.runner import Display, in_order, make_record
from rmadapter.errors import UserError
from rmadapter.runs.lab import Lab
from rmadapter.support.cluster import run_on_cluster
from rmadapter.support.machine import version_of


def digests_of(lab: Lab, jobs: Iterable[Job]) -> dict[str, object]:
    """Return the digests of what jobs read, which every node must have alike: of the weights of
    their backbones, and of the images of each split of their data sets."""
    found: dict[str, object] = {}
    for job in jobs:
        found[f"weights of {job.task.backbone}"] = lab.backbone(job.task.backbone).digest
        for name in job.datasets:
            splits = sorted(lab.splits(name).items())
            found[f"images of {name}"] = [images.digest for _, images in splits]
    return found


class BenchWorker:
    """Does runs of a bench on a node. Raises UserError for another version of this package.

    Args:
        plan: The bench.
        finished: Records by key, as for `make_record`.
        version: Version of this package that the command has.
        digests: Digests of what the jobs read where the command runs, as from `digests_of`.
    """

    def __init__(
        self,
        plan: Plan,
        finished: dict[str, Record],
        version: str,
        digests: Mapping[str, object],
    ) -> None:
        self.plan, self.finished, self.digests = plan, finished, digests
        here = version_of("rmadapter")
        if here != version:
            raise UserError(f"has rmadapter {here}, but needs {version}")
        self.lab = plan.lab()
        if not plan.out.is_dir():  # no shared path: what memory cannot hold is computed again
            self.lab = replace(self.lab, folder=None)

    def do(self, work: Job) -> Record:
        """Do a job. Raises UserError if data or backbone differ from those of the driver."""
        for name, digest in digests_of(self.lab, [work]).items():
            if digest != self.digests[name]:
                raise UserError(f"its {name} differ from those where the command runs")
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
    version = version_of("rmadapter")
    finished = finished_records(plan.out)
    make = partial(BenchWorker, shared, finished, version, digests_of(lab, jobs))
    device = plan.machine.device
    for result in run_on_cluster(make, jobs, processes, device, address, next_job):
        if result:
            job, record = result
            record.save(plan.out / job.path)
        show("", None)
