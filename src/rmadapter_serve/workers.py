"""Run a server in several processes behind one port (Linux).

The first process opens the models and is copied by `fork`, so that the weights are in memory once.
It answers nothing: it reloads changed models, starts workers with them, lets those with the old
models finish, and replaces workers that end. It has no threads of its own, which a copy would lack.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress

import uvicorn
from fastapi import FastAPI

from rmadapter.errors import UserError
from rmadapter.support.machine import give_back_memory
from rmadapter.support.terminal import note
from rmadapter_serve.model import ServedModel, ServeOptions
from rmadapter_serve.server import (
    EVERY,
    Access,
    Watch,
    config,
    reload,
    say_reloaded,
    tidy,
)  # fmt: skip
from rmadapter_serve.service import Limits, Service
from rmadapter_serve.sockets import share, stopped_quietly

SIGNALS = (
    {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD}
    if sys.platform != "win32"
    else set()
)
ENGINES = ("torch", "onnx")  # which a copy of a process can use, if they have no threads
YOUNG = 10.0  # seconds after its start in which the end of a worker means that none can work
MOST_DEATHS = 3  # of young workers, one after the other


def run_workers(
    count: int, models: dict[str, ServedModel], options: Mapping[str, ServeOptions],
    limits: Limits, listening: socket.socket, ready: Callable[[], None], access: Access,
) -> None:  # fmt: skip
    """Serve until SIGTERM or SIGINT, as `server.run`; SIGHUP reloads the models.

    models: opened with one thread each; reloaded ones replace them there, so that no old one is
    kept. Raises UserError for models that a copied process cannot use, and if workers cannot start.
    """
    _check(models)
    with _Parent(count, models, options, limits, listening, access) as parent:
        parent.start()
        ready()
        parent.run()


def _check(models: Mapping[str, ServedModel]) -> None:
    for name, model in models.items():
        engine, device = model.facts["engine"], model.facts.get("device", "cpu")
        if engine not in ENGINES or device != "cpu":
            raise UserError(
                f"--workers: {name} is run with {engine} on {device}, and workers need torch or "
                "onnx on a CPU; leave out --workers, or start several servers"
            )


class _Parent:
    """The process that starts the workers. Worker i accepts connections from socket i, which stays
    open here: connections that wait for one worker are accepted by the one that replaces it."""

    def __init__(
        self, count: int, models: dict[str, ServedModel], options: Mapping[str, ServeOptions],
        limits: Limits, listening: socket.socket, access: Access,
    ) -> None:  # fmt: skip
        self._models, self._options = models, options
        self._limits, self._access = limits, access
        self._watch = Watch(options, models)
        self._sockets = share(listening, count)
        self._born: dict[int, float] = {}  # process id -> when it was started
        self._slots: dict[int, int] = {}  # process id -> its socket
        self._old: set[int] = set()  # processes that finish what they have accepted
        self._deaths = 0

    def __enter__(self) -> _Parent:
        signal.signal(signal.SIGCHLD, lambda *_: None)  # else it might be ignored
        signal.pthread_sigmask(signal.SIG_BLOCK, {*SIGNALS, signal.SIGUSR1})  # workers take that
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        for each in self._sockets[1:]:
            each.close()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*SIGNALS, signal.SIGUSR1})

    def start(self) -> None:
        gc.collect()
        gc.freeze()  # else collecting garbage would write to pages that are shared
        for slot in range(len(self._sockets)):
            self._fork(slot)

    def run(self) -> None:
        """Reload and replace until SIGTERM or SIGINT."""
        while True:
            info = signal.sigtimedwait(SIGNALS, EVERY)
            number = info.si_signo if info else 0
            if number in (signal.SIGINT, signal.SIGTERM):
                return
            self._reap()
            if not self._old:  # at most one old model is in memory
                self._reload(forced=number == signal.SIGHUP)
            elif number == signal.SIGHUP:
                self._watch.force()

    def _reload(self, forced: bool) -> None:
        changed = self._watch.changed(forced)
        if not changed:
            return
        gc.unfreeze()
        loaded = []
        for name in changed:
            model = reload(name, self._options[name])
            if model is not None:
                self._models[name] = model
                loaded.append(name)
        if loaded:
            self._old = set(self._slots)
            del model
            gc.collect()
            give_back_memory()
            gc.freeze()
            for pid, slot in dict(self._slots).items():
                self._fork(slot)
                os.kill(pid, signal.SIGUSR1)
            for name in loaded:
                say_reloaded(name)

    def _fork(self, slot: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        pid = os.fork()
        if pid:
            self._born[pid], self._slots[pid] = time.monotonic(), slot
            return
        code = 1
        try:
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN if number == signal.SIGHUP else signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            work(self._models, self._limits, self._sockets[slot], self._access, parent)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def _reap(self) -> None:
        """Replace workers that have ended. Raises UserError if several end right after their
        start."""
        while self._slots:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            if pid not in self._slots:
                continue
            slot, born = self._slots.pop(pid), self._born.pop(pid)
            if pid in self._old:
                self._old.discard(pid)
                continue
            self._deaths = self._deaths + 1 if time.monotonic() - born < YOUNG else 0
            code = os.waitstatus_to_exitcode(status)
            how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
            if self._deaths >= MOST_DEATHS:
                raise UserError(f"{self._deaths} workers ended right after their start: one {how}")
            note(f"a worker {how}; another one takes its place")
            self._fork(slot)

    def _stop(self) -> None:
        """Let all workers finish what they have accepted; end those that do not."""
        for pid in self._slots:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        until = time.monotonic() + 2 * self._limits.seconds + 10
        while self._slots:
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if pid:
                self._slots.pop(pid, None)
            elif time.monotonic() > until:
                for pid in self._slots:
                    os.kill(pid, signal.SIGKILL)
                until = float("inf")
            else:
                time.sleep(0.05)


def work(
    models: Mapping[str, ServedModel], limits: Limits, listening: socket.socket, access: Access,
    parent: int,
) -> None:  # fmt: skip
    """Serve in a worker: until SIGTERM or SIGINT, or after SIGUSR1 until its clients have left.
    parent: the process without which it ends, too."""
    service = Service(models, limits)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        jobs = [asyncio.create_task(job) for job in (tidy(), _end_with(parent, server))]
        asyncio.get_running_loop().add_signal_handler(
            signal.SIGUSR1, lambda: jobs.append(asyncio.create_task(_drain(service, server)))
        )
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})  # it may have come already
        yield
        for job in jobs:
            job.cancel()
        service.close()

    server = uvicorn.Server(config(service, access, lifespan))
    stopped_quietly()
    server.run(sockets=[listening])


async def _end_with(parent: int, server: uvicorn.Server) -> None:
    while os.getppid() == parent:
        await asyncio.sleep(EVERY)
    server.should_exit = True


async def _drain(service: Service, server: uvicorn.Server) -> None:
    """Accept no connection; answer on those that are open, closing each after its answer, until
    there are none: idle ones are closed by uvicorn after five seconds."""
    service.draining = True
    while not server.started:
        await asyncio.sleep(0.05)
    for each in server.servers:
        each.close()
    while server.server_state.connections:
        await asyncio.sleep(0.1)
    server.should_exit = True
