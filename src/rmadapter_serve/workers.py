"""Run a server in several processes behind one port (Linux).

The first process opens the models and is copied by `fork`, so that the weights are in memory once.
The workers of uvicorn and hypercorn start Python anew, those of granian each load the application,
so every one would open the models itself (research/studies/serve.md has what uvicorn's take). The
first process answers nothing: it reloads changed models,
starts workers with them, lets those with the old models finish, and replaces workers that end. It
has no threads of its own, which a copy would lack.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from multiprocessing.process import BaseProcess
from typing import NamedTuple

from rmadapter import UserError
from rmadapter_serve.limits import Limits
from rmadapter_serve.memory import give_back_memory
from rmadapter_serve.model import ServedModel, ServeOptions
from rmadapter_serve.server import EVERY, Access, Watch, make_server, reload, say
from rmadapter_serve.service import Service
from rmadapter_serve.sockets import serve_until_stopped, share

assert sys.platform == "linux"  # as the command line has made sure

SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1}
ENGINES = ("torch", "onnx")  # which a copy of a process can use, if they have no threads
YOUNG = 10.0  # seconds after its start in which the end of a worker means that none can work
MAX_DEATHS = 3  # of young workers, one after the other


def run_workers(
    models: dict[str, ServedModel],
    options: Mapping[str, ServeOptions],
    limits: Limits,
    listening: socket.socket,
    ready: Callable[[], None],
    access: Access,
) -> None:
    """Serve until SIGTERM or SIGINT, as `server.run`; SIGHUP reloads the models.

    Args:
        models: Opened with one thread each; reloaded ones replace them there, so that no old one
            is kept.
        options: How to open each model again, by name.
        limits: Of each worker.
        listening: Socket that clients connect to.
        ready: Called once requests are accepted.
        access: Who may send requests.

    Raises:
        UserError: Models that a copied process cannot use, or workers that cannot start.
    """
    for name, model in models.items():
        engine, device = model.facts["engine"], model.facts.get("device", "cpu")
        if engine not in ENGINES or device != "cpu":
            raise UserError(
                f"--workers: {name} is run with {engine} on {device}, and workers need torch or "
                "onnx on a CPU; leave out --workers, or start several servers"
            )
    parent = _Parent(models, options, limits, access)
    sockets = share(listening, limits.workers)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # else it might be ignored
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        parent.start(sockets)
        ready()
        parent.run()
    finally:
        parent.stop()
        for each in sockets[1:]:
            each.close()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


class _Worker(NamedTuple):
    """A process that serves.

    Attributes:
        process: The process.
        listening: Socket that it accepts connections from.
        born: When it was started.
    """

    process: BaseProcess
    listening: socket.socket
    born: float


class _Parent:
    """The process that starts the workers. Each accepts connections from a socket of its own, which
    stays open here: connections that wait for one worker are accepted by the one that replaces
    it."""

    def __init__(
        self,
        models: dict[str, ServedModel],
        options: Mapping[str, ServeOptions],
        limits: Limits,
        access: Access,
    ) -> None:
        self._models, self._options = models, options
        self._limits, self._access = limits, access
        self._watch = Watch(options, models)
        self._workers: list[_Worker] = []
        self._old: list[_Worker] = []  # they finish what they have accepted
        self._deaths = 0

    def start(self, sockets: Iterable[socket.socket]) -> None:
        """Start a worker for each socket."""
        gc.collect()
        give_back_memory()
        gc.freeze()  # else collecting garbage would write to pages that are shared
        self._workers = [self._fork(each) for each in sockets]

    def _fork(self, listening: socket.socket) -> _Worker:
        arguments = (self._models, self._limits, listening, self._access)
        process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
        process.start()
        return _Worker(process, listening, time.monotonic())

    def run(self) -> None:
        """Reload and replace until SIGTERM or SIGINT."""
        forced = False
        while True:
            info = signal.sigtimedwait(SIGNALS, EVERY)
            number = info.si_signo if info else 0
            if number in (signal.SIGINT, signal.SIGTERM):
                return
            forced = forced or number == signal.SIGHUP
            self._replace_dead()
            if not self._old:  # at most one old model is in memory
                self._reload(forced)
                forced = False

    def _reload(self, forced: bool) -> None:
        """Start workers with the models that have changed, and let the others finish."""
        loaded: dict[str, ServedModel] = {}
        for name in self._watch.changed(forced):
            model = reload(name, self._options[name])
            if model is not None:
                loaded[name] = model
        if not loaded:
            return
        gc.unfreeze()
        self._models.update(loaded)
        self._old = self._workers
        self.start(worker.listening for worker in self._old)
        for worker in self._old:
            if worker.process.is_alive() and worker.process.pid:
                os.kill(worker.process.pid, signal.SIGUSR1)
        for name in loaded:
            say(f"{name}: reloaded")

    def _replace_dead(self) -> None:
        """Replace workers that have ended. Raises UserError if several end right after their
        start."""
        self._old = [worker for worker in self._old if worker.process.is_alive()]
        for place, worker in enumerate(self._workers):
            if worker.process.is_alive():
                continue
            self._deaths = self._deaths + 1 if time.monotonic() - worker.born < YOUNG else 0
            code = worker.process.exitcode or 0
            how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
            if self._deaths >= MAX_DEATHS:
                raise UserError(f"{self._deaths} workers ended right after their start: one {how}")
            say(f"a worker {how}; another one takes its place")
            self._workers[place] = self._fork(worker.listening)

    def stop(self) -> None:
        """Let all workers finish what they have accepted; end those that do not."""
        processes = [worker.process for worker in (*self._workers, *self._old)]
        for process in processes:
            process.terminate()
        until = time.monotonic() + 2 * self._limits.seconds + 10
        for process in processes:
            process.join(max(until - time.monotonic(), 0))
            process.kill()
            process.join()


def work(
    models: Mapping[str, ServedModel], limits: Limits, listening: socket.socket, access: Access
) -> None:
    """Serve in a worker: until SIGTERM or SIGINT, after SIGUSR1 until its clients have left, or
    until its parent ends.

    Args:
        models: The models, opened by the parent.
        limits: Of this worker.
        listening: Socket that its clients connect to.
        access: Who may send requests.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the parent reloads
    service = Service(models, limits)

    def drain() -> None:
        service.draining = True

    async def obey() -> None:
        """Wait for the parent's end, or until all clients have left: idle connections are closed
        by uvicorn after five seconds, others by `service.draining` after their next answer."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, drain)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # uvicorn's handlers are in place
        parent = multiprocessing.parent_process()
        while parent is not None and parent.is_alive():
            await asyncio.sleep(0.1)
            if service.draining and server.started:
                for each in server.servers:
                    each.close()
                if not server.server_state.connections:
                    break
        server.should_exit = True

    server = make_server(service, access, obey)
    serve_until_stopped(server, listening)
