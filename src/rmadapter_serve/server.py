"""Run the server: handle signals, reload changed models, and shut down without losing answers."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import NamedTuple

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from rmadapter.errors import UserError
from rmadapter.support.files import sign
from rmadapter.support.machine import give_back_memory, keep_little_memory
from rmadapter.support.terminal import escape
from rmadapter_serve.model import ServedModel, ServeOptions, open_served
from rmadapter_serve.requests import HEADERS
from rmadapter_serve.routes import create_app
from rmadapter_serve.service import Service
from rmadapter_serve.sockets import serve_until_stopped

CONNECTIONS = 512  # open at once; beyond, uvicorn answers 503
PATIENCE = 20.0  # seconds in which the headers of a request must arrive
EVERY = 2.0  # seconds between two looks at the models


Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


class Access(NamedTuple):
    """Who may send requests, and whether each is printed on stderr. key, cors, hosts: as for
    `create_app`."""

    key: str = ""
    cors: Sequence[str] = ()
    log: bool = False
    hosts: Collection[str] | None = None


def run(
    service: Service, options: Mapping[str, ServeOptions], listening: socket.socket,
    ready: Callable[[], None], access: Access,
) -> None:  # fmt: skip
    """Serve until SIGTERM or SIGINT; then accept nothing new, and answer what was accepted.

    options: of the models, by name. ready: called once requests are accepted. SIGHUP reloads the
    models.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        reloader = Reloader(service, options)
        # fails on Windows and outside the main thread
        with suppress(AttributeError, NotImplementedError, ValueError, RuntimeError):
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reloader.reload_all)
        jobs = [asyncio.create_task(job) for job in (reloader.run(), tidy())]
        ready()
        yield
        for job in jobs:
            job.cancel()
        service.close()

    serve_until_stopped(config(service, access, lifespan), listening)


def config(service: Service, access: Access, lifespan: Lifespan) -> uvicorn.Config:
    """Return how uvicorn serves in this process; it then keeps little freed memory."""
    keep_little_memory()
    if access.log:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    return uvicorn.Config(
        create_app(service, access.key, access.cors, lifespan, access.hosts),
        lifespan="on",
        http=PatientProtocol,  # by h11: others count headers and bodies differently
        ws="none",
        log_config=None,
        log_level="info" if access.log else "error",
        access_log=access.log,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        h11_max_incomplete_event_size=HEADERS,
        timeout_graceful_shutdown=int(2 * service.limits.seconds) + 1,
    )


async def tidy() -> None:
    """Give back small pieces that images and old models took, which glibc keeps, until
    cancelled."""
    while True:
        await asyncio.sleep(EVERY)
        await asyncio.to_thread(give_back_memory)


class PatientProtocol(H11Protocol):
    """HTTP that closes a connection whose headers take longer than PATIENCE, or the rest of a body
    after its answer, and one that reads nothing of its answers for as long. uvicorn does so for
    none: a few hundred such connections would lock others out."""

    _waiting: asyncio.TimerHandle | None = None  # for headers or a body
    _unread: asyncio.TimerHandle | None = None  # for an answer to be read

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        complete = self.conn.their_state is not h11.IDLE and not self._answered_early
        if complete and self._waiting:
            self._waiting.cancel()
            self._waiting = None
        elif not complete and not self._waiting and self.conn.trailing_data[0]:
            self._wait()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._answered_early and not self._waiting:
            self._wait()
        if self.transport.is_closing():
            self._wait_for_reading()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._wait_for_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait_for_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread and not self.transport.is_closing():
            self._unread.cancel()
            self._unread = None

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._waiting, self._unread):
            if timer:
                timer.cancel()
        super().connection_lost(exc)

    @property
    def _answered_early(self) -> bool:
        """Whether the answer was sent before the whole body had arrived."""
        return self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY

    def _wait(self) -> None:
        self._waiting = self.loop.call_later(PATIENCE, self._close)

    def _close(self) -> None:
        self.transport.close()
        self._wait_for_reading()

    def _wait_for_reading(self) -> None:
        if not self._unread:
            self._check_reading(self.transport.get_write_buffer_size() + 1)

    def _check_reading(self, before: int) -> None:
        """End the connection unless some of an answer was read since the last check: nothing is
        added to it meanwhile. before: bytes that were left then."""
        left = self.transport.get_write_buffer_size()
        if left < before:
            self._unread = self.loop.call_later(PATIENCE, self._check_reading, left)
        else:
            self.transport.abort()


# Reloading


class Watch:
    """Folders of models, which may change. options: of the models, by name."""

    def __init__(
        self, options: Mapping[str, ServeOptions], models: Mapping[str, ServedModel]
    ) -> None:
        self._options = options
        self._loaded = {name: model.sign for name, model in models.items()}
        self._last = dict(self._loaded)
        self._forced = False

    def force(self) -> None:
        """Let the next `changed` return all names."""
        self._forced = True

    def changed(self, forced: bool = False) -> list[str]:
        """Return the names of models that have changed since they were last returned, and have not
        since the last call: a run is then complete. forced: return all names."""
        names = []
        forced, self._forced = forced or self._forced, False
        for name, options in self._options.items():
            now = sign(options.folder)
            settled = now == self._last[name]
            self._last[name] = now
            if forced or (now is not None and settled and now != self._loaded[name]):
                self._loaded[name] = now  # even if loading fails: this is reported only once
                names.append(name)
        return names


def reload(name: str, options: ServeOptions) -> ServedModel | None:
    """Open a changed model, and say so; return None if that fails, whatever is wrong with it."""
    try:
        model = open_served(options)
    except Exception as error:
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        _say(name, f"not reloaded, the old one keeps answering: {reason}")
        return None
    return model


def say_reloaded(name: str) -> None:
    _say(name, "reloaded")


def _say(name: str, text: str) -> None:
    print("rmadapter:", escape(" ".join(f"{name}: {text}".split())), file=sys.stderr, flush=True)


class Reloader:
    """Reloads models that change on disk. The old one answers meanwhile, and goes on if loading
    fails. options: of the models, by name."""

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
            forced = True
            try:
                await asyncio.wait_for(self._requested.wait(), self._every)
            except asyncio.TimeoutError:
                forced = False
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
                say_reloaded(name)
                await self._service.settle()  # so that no more than two are in memory
