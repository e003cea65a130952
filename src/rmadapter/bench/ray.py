"""A Ray cluster: connects to it, shares work among workers that may die, and does the runs of
`bench --ray`.

A worker of a bench keeps the backbone and frozen activations between runs, and preferably gets runs
on the images that it holds. It needs the data and the backbone at the same path on every node, and
checks their digests; records are written by the command, as with the local engine.
"""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from rmadapter import __version__
from rmadapter.artifacts.record import Record
from rmadapter.bench.plan import Plan, Progress, finished_records
from rmadapter.bench.protocols import Job
from rmadapter.bench.runner import Display, in_order, make_record
from rmadapter.errors import UserError
from rmadapter.support.terminal import STOPPED

if TYPE_CHECKING:
    from rmadapter.runs.lab import Lab

Work = TypeVar("Work", bound=Hashable)
PAUSE = 0.5  # seconds between polls of the workers
TRIES = 3  # deaths of workers on one piece of work, after which to give up
SAME_PATH = "every node needs data and backbone at the same path"


class Call(Protocol):
    """A method of an actor. `remote` starts it and returns a reference to its result."""

    def remote(self, *arguments: object) -> Hashable: ...


class Actor(Protocol):
    """A worker on a node: `ready()` may be slow, `do(work)` returns a result."""

    ready: Call
    do: Call


def ray_module() -> ModuleType:
    """Import Ray. Raises UserError if it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report usage to its makers
    # its future default; avoids a warning
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise UserError("--ray needs Ray: run `pip install 'rmadapter[ray]'`") from None
    module: ModuleType = ray
    return module


@contextmanager
def connected(address: str = "", processors: int | None = None) -> Iterator[None]:
    """Connect to Ray for the block: at the address, or on this machine, started for the block and
    closed to anyone without the token that Ray creates. An existing connection of the process is
    kept.

    processors: of a cluster started here; by default all. Raises UserError if Ray is not installed
    or cannot be reached or started.
    """
    ray = ray_module()
    if ray.is_initialized():
        yield
        return
    options = {} if address else {"num_cpus": processors, "include_dashboard": False}
    host, _, port = address.rpartition(":")
    try:
        if port.isdigit():  # Ray would retry for minutes, then end the process
            socket.create_connection((host, int(port)), timeout=5).close()
        ray.init(
            address or "local", log_to_driver=False, logging_level="ERROR",
            configure_logging=False, **options,
        )  # fmt: skip
    except Exception as error:  # OSError, RuntimeError, ValueError, and those of its authentication
        reason = " ".join(str(error).split())[:300]
        failure = (
            f"--address {address}: no Ray cluster could be reached"
            if address
            else "Ray could not be started here"
        )
        raise UserError(f"{failure} ({reason})") from None
    try:
        yield
    except (KeyboardInterrupt, SystemExit):  # Ray turns Ctrl-C while it waits into exit code 1
        raise SystemExit(STOPPED) from None
    finally:
        ray.shutdown()


def shares(count: int, device: str = "auto") -> dict[str, float]:
    """Return the resources of each of `count` workers: the most whole processors, and the largest
    share of a GPU, with which all fit into the cluster. device: as in `Machine`."""
    nodes = [node["Resources"] for node in ray_module().nodes() if node["Alive"]]
    processors = [int(node.get("CPU", 0)) for node in nodes]
    gpus = sum(int(node.get("GPU", 0)) for node in nodes) if device != "cpu" else 0
    each = max(processors, default=1)
    while each > 1 and sum(available // each for available in processors) < count:
        each -= 1
    return {"num_cpus": max(each, 1), "num_gpus": 1 / -(-count // gpus) if gpus else 0}


def share(
    hire: Callable[[], Actor], size: int, todo: Sequence[Work],
    pick: Callable[[Work | None, list[Work], Collection[Work]], Work],
    send: Callable[[Work], object] = lambda work: work,
) -> Iterator[tuple[Work, Any] | None]:  # fmt: skip
    """Yield (work, result) as work is done, and None from time to time while nothing is.

    hire: starts a worker. size: most workers at a time. pick(its last work, work left, work of the
    others): the next work for a worker, which is passed `send(work)`. If a worker dies, its work
    goes to another and a new one is hired, which waits if the cluster has no room.

    Raises UserError if the same work, or starting, kills `TRIES` workers, and whatever a worker
    raises.
    """
    ray = ray_module()
    left = list(todo)
    idle: list[Actor] = []
    last: dict[Actor, Work] = {}
    deaths: Counter[Work | None] = Counter()
    awaited: dict[Hashable, tuple[Actor, Work | None]] = {}  # reference -> the worker and its work

    def start_worker() -> None:
        worker = hire()
        awaited[worker.ready.remote()] = worker, None

    try:
        for _ in range(min(size, len(left))):
            start_worker()
        while left or any(work is not None for _, work in awaited.values()):
            done, _ = ray.wait(list(awaited), timeout=PAUSE)
            for reference in done:
                worker, work = awaited.pop(reference)
                try:
                    result = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause if isinstance(error.cause, UserError) else error from None
                except ray.exceptions.RayError as error:
                    _count_death(deaths, work, error)
                    left = left if work is None else [work, *left]
                    ray.kill(worker)  # it may only be unreachable
                    start_worker()
                    continue
                deaths.pop(None, None)
                idle.append(worker)
                if work is not None:
                    last[worker] = work
                    yield work, result
            while idle and left:
                worker = idle.pop()
                others = [work for _, work in awaited.values() if work is not None]
                work = pick(last.get(worker), left, others)
                left.remove(work)
                awaited[worker.do.remote(send(work))] = worker, work
            if not done:
                yield None
    finally:
        for worker in (*idle, *(worker for worker, _ in awaited.values())):
            with suppress(Exception):  # the cluster may be gone
                ray.kill(worker)


def _count_death(deaths: Counter[Work | None], work: Work | None, error: Exception) -> None:
    """Count a dead worker; work None means its start. Starts are counted until any call
    succeeds."""
    deaths[work] += 1
    if deaths[work] >= TRIES:
        when = "while starting" if work is None else f"on this, perhaps out of memory: {work}"
        reason = str(error).strip().splitlines()[-1].strip()[:300]
        raise UserError(f"{TRIES} workers died {when} ({reason})")


def settle(folder: Path, threads: float) -> str:
    """Set up a worker: change to the user's folder, if it exists here, and set threads; returns the
    node's address."""
    import torch

    with suppress(OSError):
        os.chdir(folder)
    torch.set_num_threads(max(int(threads), 1))
    address: str = ray_module().util.get_node_ip_address()
    return address


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
        names = dict.fromkeys(name for job in jobs for name in job.datasets)
        digest = lab.backbone(next(iter(jobs)).task.backbone).digest
        return cls(digest, {name: _digests(lab, name) for name in names}, __version__)


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

    def ready(self) -> None:
        """Prepare for runs. Raises UserError for another version of this package."""
        if __version__ != self.expected.version:
            raise UserError(
                f"node {self.node}: has rmadapter {__version__}, but needs {self.expected.version}"
            )
        self.lab = self.plan.lab()
        if not self.plan.out.is_dir():  # no shared path: what memory cannot hold is computed again
            self.lab = replace(self.lab, folder=None)

    def do(self, job: Job) -> Record:
        """Do a job. Raises UserError if data or backbone differ from those of the driver."""
        try:
            backbone = self.lab.backbone(job.task.backbone)
            if backbone.digest != self.expected.backbone:
                raise UserError(
                    f"its {backbone.name} has different weights from those where the command runs"
                )
            for name in job.datasets:
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

        hire = partial(actor.remote, *arguments, Path.cwd(), resources["num_cpus"])
        for result in share(hire, processes, jobs, next_job):
            if result:
                job, record = result
                record.save(plan.out / job.path)
            show()
