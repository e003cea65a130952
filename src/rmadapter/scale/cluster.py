"""A Ray cluster: how it is reached, what each worker of it gets, and how work is shared among workers that may die."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from rmadapter.console import STOPPED
from rmadapter.errors import UserError, nearest

T = TypeVar("T")
Engine = Annotated[str, typer.Option(help="local, or ray: on a Ray cluster; needs the extra `ray`.")]
Address = Annotated[str, typer.Option(help="HOST:PORT of a Ray cluster, or auto; by default one is started here.")]
ENGINES = ("local", "ray")
PAUSE = 0.5  # seconds between two looks at what the workers have done
TRIES = 3  # workers that one piece of work may lose


def is_ray(engine: str, address: str = "", workers: int = 1) -> bool:
    """Raises UserError for an engine that does not exist, and for an address or workers of none."""
    if engine not in ENGINES:
        raise UserError(f"--engine {engine!r}{nearest(engine, ENGINES)}")
    if address and engine != "ray":
        raise UserError("--address needs --engine ray")
    if workers > 1 and engine != "ray":
        raise UserError("--jobs needs --engine ray")
    return engine == "ray"


def ray_module() -> Any:
    """Raises UserError where it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would tell its makers
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its coming default, which else is a warning
    try:
        import ray
    except ImportError:
        raise UserError("--engine ray needs Ray: run `pip install 'rmadapter[ray]'`") from None
    return ray


@contextmanager
def connected(address: str = "", processors: int | None = None) -> Iterator[None]:
    """Within the block Ray is there: that of an address, or one on this machine, which ends with the block and lets
    nobody in without the token that Ray makes. One that the process is in already stays. processors: of a cluster that
    is started; by default all.

    Raises UserError when Ray is not installed, or nobody answers at the address.
    """
    ray = ray_module()
    if ray.is_initialized():
        yield
        return
    own = {} if address else {"num_cpus": processors, "include_dashboard": False}
    host, _, port = address.rpartition(":")
    try:
        if port.isdigit():  # Ray would try for minutes, and then end the process
            socket.create_connection((host, int(port)), timeout=5).close()
        ray.init(address or "local", log_to_driver=False, logging_level="ERROR", configure_logging=False, **own)
    except Exception as error:  # OSError, RuntimeError, ValueError, and those of its authentication
        reason = " ".join(str(error).split())[:300]
        where = f"--address {address}: no Ray cluster could be reached" if address else "Ray could not be started here"
        raise UserError(f"{where} ({reason})") from None
    try:
        yield
    except (KeyboardInterrupt, SystemExit):  # Ctrl-C while Ray waits, which makes an exit with 1 of it
        raise SystemExit(STOPPED) from None
    finally:
        ray.shutdown()


def shares(count: int, device: str = "auto") -> dict[str, float]:
    """What each of `count` workers gets of the cluster: the most processors, as whole ones, and the largest part of a
    GPU that all of them fit with. device: as `Machine` has it."""
    nodes = [node["Resources"] for node in ray_module().nodes() if node["Alive"]]
    processors = [int(node.get("CPU", 0)) for node in nodes]
    graphics = [int(node.get("GPU", 0)) for node in nodes] if device != "cpu" else []
    own = (n for n in range(max(processors, default=1), 0, -1) if sum(p // n for p in processors) >= count)
    found: dict[str, float] = {"num_cpus": next(own, 1), "num_gpus": 0}
    if total := sum(graphics):
        found["num_gpus"] = 1 / -(-count // total)
    return found


def share(
    hire: Callable[[], Any], size: int, todo: Sequence[T], pick: Callable[[T | None, list[T], Collection[T]], T],
    send: Callable[[T], Any] = lambda work: work,
) -> Iterator[tuple[T, Any] | None]:  # fmt: skip
    """Each piece of work and what it gave, as they are done, and None now and then while nothing is.

    hire: a new worker, an actor with `ready()`, which takes its time, and `do(work)`. size: how many at most.
    pick(what it did last, what is left, what the others do): the next for a worker, which gets `send` of it. What a
    worker had that dies goes to another, and a new one is hired, which waits where the cluster has no room for it.

    Raises UserError for work, or a start, that loses `TRIES` workers, and whatever a worker raises.
    """
    ray = ray_module()
    left, idle, lost, last = list(todo), [], Counter[Any](), dict[Any, T]()
    at: dict[Any, tuple[Any, T | None]] = {}  # what is awaited -> the worker, and what it does
    try:
        at |= {(worker := hire()).ready.remote(): (worker, None) for _ in range(min(size, len(left)))}
        while left or any(work is not None for _, work in at.values()):
            done, _ = ray.wait(list(at), timeout=PAUSE)
            for ref in done:
                worker, work = at.pop(ref)
                try:
                    found = ray.get(ref)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause if isinstance(error.cause, UserError) else error from None
                except ray.exceptions.RayError as error:
                    _count(lost, work, error)
                    left = left if work is None else [work, *left]
                    ray.kill(worker)  # it may be out of reach alone
                    worker = hire()
                    at[worker.ready.remote()] = worker, None
                    continue
                lost.pop(None, None)
                idle.append(worker)
                if work is not None:
                    last[worker] = work
                    yield work, found
            while idle and left:
                worker = idle.pop()
                work = pick(last.get(worker), left, [work for _, work in at.values() if work is not None])
                left.remove(work)
                at[worker.do.remote(send(work))] = worker, work
            if not done:
                yield None
    finally:
        for worker in (*idle, *(worker for worker, _ in at.values())):
            with suppress(Exception):  # the cluster may be gone
                ray.kill(worker)


def _count(lost: Counter[Any], work: Any, error: Exception) -> None:
    """None is the start of a worker, which counts until anything goes well."""
    lost[work] += 1
    if lost[work] >= TRIES:
        what = "while starting" if work is None else f"on this, perhaps out of memory: {work}"
        raise UserError(f"{TRIES} workers died {what} ({str(error).strip().splitlines()[-1].strip()[:300]})")


def at_home(folder: Path, threads: float) -> str:
    """In a worker: be where the user is, if there is such a folder here, with a number of threads. The node's name."""
    import torch

    with suppress(OSError):
        os.chdir(folder)
    torch.set_num_threads(max(int(threads), 1))
    return ray_module().util.get_node_ip_address()
