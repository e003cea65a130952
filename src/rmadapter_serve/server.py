"""Run the server: handle signals, reload changed models, and shut down without losing answers."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

import uvicorn
from fastapi import FastAPI

from rmadapter import UserError
from rmadapter.cli import escape
from rmadapter_serve.memory import give_back_memory, keep_little_memory
from rmadapter_serve.model import ServedModel, ServeOptions, open_served, sign
from rmadapter_serve.requests import HEADERS
from rmadapter_serve.routes import create_app
from rmadapter_serve.service import Service
from rmadapter_serve.sockets import serve_until_stopped

CONNECTIONS = 512  # open at once; beyond, uvicorn answers 503
EVERY = 2.0  # seconds between two looks at the models


class Access(NamedTuple):
    """Who may send requests, and whether each is printed on stderr.

    Attributes:
        key: As for `create_app`.
        cors: As for `create_app`.
        log: Whether a line is printed for each request.
        hosts: As for `create_app`.
    """

    key: str = ""
    cors: Sequence[str] = ()
    log: bool = False
    hosts: Collection[str] | None = None


def run(
    service: Service,
    options: Mapping[str, ServeOptions],
    listening: socket.socket,
    ready: Callable[[], None],
    access: Access,
) -> None:
    """Serve until SIGTERM or SIGINT; then accept nothing new, and answer what was accepted.
    SIGHUP reloads the models.

    Args:
        service: The models, opened.
        options: How to open each model again, by name.
        listening: Socket that clients connect to.
        ready: Called once requests are accepted.
        access: Who may send requests.
    """

    async def reload_models() -> None:
        reloader = Reloader(service, options)
        # fails on Windows and outside the main thread
        with suppress(AttributeError, NotImplementedError, ValueError, RuntimeError):
            asyncio.get_running_loop().add_signal_handler(
                signal.SIGHUP,  # type: ignore[attr-defined, unused-ignore]
                reloader.reload_all,
            )
        ready()
        await reloader.run()

    serve_until_stopped(make_server(service, access, reload_models), listening)


def make_server(
    service: Service, access: Access, job: Callable[[], Coroutine[None, None, None]]
) -> uvicorn.Server:
    """Return uvicorn's server for this process, which then keeps little freed memory.

    Args:
        service: The models; it is closed at the end.
        access: Who may send requests.
        job: Runs beside the server until that ends.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(each) for each in (job(), _give_back_memory())]
        yield
        for task in tasks:
            task.cancel()
        service.close()

    keep_little_memory()
    if access.log:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = uvicorn.Config(
        create_app(service, access.key, access.cors, lifespan, access.hosts),
        lifespan="on",
        http="h11",  # others count headers and bodies differently
        ws="none",
        log_config=None,
        log_level="info" if access.log else "error",
        access_log=access.log,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        h11_max_incomplete_event_size=HEADERS,
        timeout_graceful_shutdown=int(2 * service.limits.seconds) + 1,
    )
    return uvicorn.Server(config)


async def _give_back_memory() -> None:
    """Give back small pieces that images and old models took, which glibc keeps, until
    cancelled."""
    while True:
        await asyncio.sleep(EVERY)
        await asyncio.to_thread(give_back_memory)


# Reloading


class Watch:
    """Folders of models, which may change.

    Args:
        options: How to open each model, by name.
        models: The models as they were opened.
    """

    def __init__(
        self, options: Mapping[str, ServeOptions], models: Mapping[str, ServedModel]
    ) -> None:
        self._options = options
        self._loaded = {name: model.sign for name, model in models.items()}
        self._last = dict(self._loaded)

    def changed(self, forced: bool = False) -> list[str]:
        """Return the names of models that have changed since they were last returned, and have not
        since the last call, since a run is then complete; all names if `forced`."""
        names = []
        for name, options in self._options.items():
            now = sign(options.folder)
            settled = now == self._last[name]
            self._last[name] = now
            if forced or (now is not None and settled and now != self._loaded[name]):
                self._loaded[name] = now  # even if loading fails: this is reported only once
                names.append(name)
        return names


def reload(name: str, options: ServeOptions) -> ServedModel | None:
    """Open a changed model; if that fails, say what is wrong with it and return None."""
    try:
        return open_served(options)
    except Exception as error:
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        say(f"{name}: not reloaded, the old one keeps answering: {reason}")
        return None


def say(text: str) -> None:
    """Print a line on stderr, whatever a file's name may hold."""
    print("rmadapter:", escape(" ".join(text.split())), file=sys.stderr, flush=True)


class Reloader:
    """Reloads models that change on disk. The old one answers meanwhile, and goes on if loading
    fails.

    Args:
        service: The models, opened.
        options: How to open each model, by name.
        every: Seconds between two looks at their folders.
    """

    def __init__(
        self, service: Service, options: Mapping[str, ServeOptions], every: float = EVERY
    ) -> None:
        self._service, self._options, self._every = service, options, every
        self._watch = Watch(options, service.models)
        self._requested = asyncio.Event()

    def reload_all(self) -> None:
        """Reload all models soon, whether or not they look changed."""
        self._requested.set()

    async def run(self) -> None:
        """Check for changes until cancelled."""
        while True:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._requested.wait(), self._every)
            forced = self._requested.is_set()
            self._requested.clear()
            await self.check(forced)

    async def check(self, forced: bool = False) -> None:
        """Reload what has changed."""
        for name in self._watch.changed(forced):
            model = await asyncio.to_thread(reload, name, self._options[name])
            outcome = "refused" if model is None else "loaded"
            self._service.counters.reloads.labels(name, outcome).inc()
            if model is not None:
                self._service.put(name, model)
                del model
                say(f"{name}: reloaded")
                await self._service.settle()  # so that no more than two are in memory
