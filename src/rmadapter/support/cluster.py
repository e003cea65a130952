"""A Ray cluster: connects to it, and shares work among workers that may die."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypeVar

from rmadapter.errors import UserError
from rmadapter.support.stop import STOPPED

Work = TypeVar("Work", bound=Hashable)
POLL_SECONDS = 0.5  # between looks at the workers
MAX_DEATHS = 3  # of workers on one piece of work, after which to give up


class Worker(Protocol):
    """What works on a node, and keeps what it needs between two pieces of work."""

    def do(self, work: Any) -> object:
        """Do a piece of work. Raises UserError for a node that lacks something."""


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

    Args:
        address: HOST:PORT of a cluster, or "auto"; "" starts one here.
        processors: Of a cluster started here; by default all.

    Raises:
        UserError: Ray is not installed, or cannot be reached or started.
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
            address or "local",
            log_to_driver=False,
            logging_level="ERROR",
            configure_logging=False,
            **options,
        )
    except Exception as error:  # OSError, RuntimeError, ValueError, and those of its authentication
        reason = " ".join(str(error).split())[:300]
        failure = "Ray could not be started here"
        if address:
            failure = f"--address {address}: no Ray cluster could be reached"
        raise UserError(f"{failure} ({reason})") from None
    try:
        yield
    except (KeyboardInterrupt, SystemExit):  # Ray turns Ctrl-C while it waits into exit code 1
        raise SystemExit(STOPPED) from None
    finally:
        ray.shutdown()


def shares(count: int, device: str = "auto") -> dict[str, float]:
    """Return the resources of each of some workers: the most whole processors, and the largest
    share of a GPU, with which all fit into the cluster.

    Args:
        count: Number of workers.
        device: Device of the workers, as in `Machine`.
    """
    nodes = [node["Resources"] for node in ray_module().nodes() if node["Alive"]]
    processors = [int(node.get("CPU", 0)) for node in nodes]
    gpus = sum(int(node.get("GPU", 0)) for node in nodes) if device != "cpu" else 0
    each = max(processors, default=1)
    while each > 1 and sum(available // each for available in processors) < count:
        each -= 1
    return {"num_cpus": max(each, 1), "num_gpus": 1 / -(-count // gpus) if gpus else 0}


def settle(folder: Path, threads: float) -> str:
    """Set up a worker: change to the user's folder, if it exists here, and set threads; returns the
    node's address."""
    import torch

    with suppress(OSError):
        os.chdir(folder)
    torch.set_num_threads(max(int(threads), 1))
    address: str = ray_module().util.get_node_ip_address()
    return address


class Host:
    """The actor in which a worker lives.

    Args:
        make: Makes the worker, on the node.
        home: Working folder of the user.
        threads: Number of threads.
    """

    def __init__(self, make: Callable[[], Worker], home: Path, threads: float) -> None:
        self.make = make
        self.node = settle(home, threads)

    def ready(self) -> None:
        """Make the worker, which may be slow."""
        self.worker = self._named(self.make)

    def do(self, work: object) -> object:
        """Do a piece of work."""
        return self._named(partial(self.worker.do, work))

    def _named(self, call: Callable[[], Any]) -> Any:
        """Call a function; its UserError names the node."""
        try:
            return call()
        except UserError as error:
            needs = "every node needs data, backbone and run at the same path"
            raise UserError(f"node {self.node}: {error}; {needs}") from None


def run_on_cluster(
    make: Callable[[], Worker],
    todo: Sequence[Work],
    size: int,
    device: str,
    address: str = "",
    pick: Callable[[Work | None, list[Work], Collection[Work]], Work] = lambda last, left, others: (
        left[0]
    ),
    send: Callable[[Work], object] = lambda work: work,
) -> Iterator[tuple[Work, Any] | None]:
    """Yield (work, result) as workers on a cluster do it, and None from time to time while nothing
    is done.

    If a worker dies, its work goes to another and a new one is hired, which waits if the cluster
    has no room.

    Args:
        make: Makes a worker, on its node.
        todo: Work to do.
        size: Most workers at a time.
        device: Device of the workers, as in `Machine`.
        address: Of the cluster, as for `connected`.
        pick: Chooses the next work for a worker from its last work, the work left, and that of
            the others.
        send: Returns what a worker is to do for a piece of work.

    Raises:
        UserError: The same work, or starting, kills `MAX_DEATHS` workers; and whatever a worker
            raises.
    """
    ray = ray_module()
    with connected(address):
        resources = shares(size, device)
        actor = ray.remote(Host).options(**resources)
        place = ray.put(make)
        hire = partial(actor.remote, place, Path.cwd(), resources["num_cpus"])
        yield from _share(hire, min(size, len(todo)), [*todo], pick, send)


def _share(
    hire: Callable[[], Any],
    size: int,
    left: list[Work],
    pick: Callable[[Work | None, list[Work], Collection[Work]], Work],
    send: Callable[[Work], object],
) -> Iterator[tuple[Work, Any] | None]:
    ray = ray_module()
    idle: list[Any] = []
    last: dict[Any, Work] = {}
    deaths: Counter[Work | None] = Counter()
    awaited: dict[Hashable, tuple[Any, Work | None]] = {}  # reference -> the actor and its work

    def start_worker() -> None:
        worker = hire()
        awaited[worker.ready.remote()] = worker, None

    try:
        for _ in range(size):
            start_worker()
        while left or any(work is not None for _, work in awaited.values()):
            done, _ = ray.wait(list(awaited), timeout=POLL_SECONDS)
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
    if deaths[work] >= MAX_DEATHS:
        when = "while starting" if work is None else f"on this, perhaps out of memory: {work}"
        reason = str(error).strip().splitlines()[-1].strip()[:300]
        raise UserError(f"{MAX_DEATHS} workers died {when} ({reason})")
