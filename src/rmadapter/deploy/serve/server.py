"""Run the server: handle signals, reload changed models, and shut down without losing answers."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from rmadapter.deploy.serve.model import ServeOptions, open_served
from rmadapter.deploy.serve.requests import HEADERS
from rmadapter.deploy.serve.routes import create_app
from rmadapter.deploy.serve.service import Service
from rmadapter.deploy.sockets import serve_until_stopped
from rmadapter.errors import UserError
from rmadapter.support.files import sign
from rmadapter.support.terminal import escape

CONNECTIONS = 512  # open at once; beyond, uvicorn answers 503
PATIENCE = 20.0  # seconds in which the headers of a request must arrive
BACKLOG = 2048  # connections that wait to be accepted
EVERY = 2.0  # seconds between two looks at the models


def run(
    service: Service, options: Mapping[str, ServeOptions], listening: socket.socket,
    ready: Callable[[], None], *, key: str = "", cors: Sequence[str] = (), log: bool = False,
    hosts: Collection[str] | None = None,
) -> None:  # fmt: skip
    """Serve until SIGTERM or SIGINT; then accept nothing new, and answer what was accepted.

    options: of the models, by name. ready: called once requests are accepted. log: print a line on
    stderr for each request. hosts: as for `AccessMiddleware`. SIGHUP reloads the models.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        reloader = Reloader(service, options)
        # fails on Windows and outside the main thread
        with suppress(AttributeError, NotImplementedError, ValueError, RuntimeError):
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reloader.reload_all)
        reloading = asyncio.create_task(reloader.run())
        listening.listen(BACKLOG)
        ready()
        yield
        reloading.cancel()
        service.close()

    if log:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = uvicorn.Config(
        create_app(service, key, cors, lifespan, hosts),
        lifespan="on",
        http=PatientProtocol,  # by h11: others count headers and bodies differently
        ws="none",
        log_config=None,
        log_level="info" if log else "error",
        access_log=log,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        h11_max_incomplete_event_size=HEADERS,
        timeout_graceful_shutdown=int(2 * service.limits.seconds) + 1,
    )
    serve_until_stopped(config, listening)


class PatientProtocol(H11Protocol):
    """HTTP that closes a connection whose headers take longer than PATIENCE, which uvicorn does for
    none: a few hundred half-sent requests would lock others out."""

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        complete = self.conn.their_state is not h11.IDLE
        if complete and self._waiting:
            self._waiting.cancel()
            self._waiting = None
        elif not complete and not self._waiting and self.conn.trailing_data[0]:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting:
            self._waiting.cancel()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._waiting = self.loop.call_later(PATIENCE, self.transport.close)


class Reloader:
    """Reloads models that change on disk. The old one answers meanwhile, and goes on if loading
    fails. options: of the models, by name."""

    def __init__(
        self, service: Service, options: Mapping[str, ServeOptions], every: float = EVERY
    ) -> None:
        self._service, self._options, self._every = service, options, every
        self._loaded = {name: model.sign for name, model in service.models.items()}
        self._last = dict(self._loaded)
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
        """Reload what has changed; a run is complete if it has not changed since the last check."""
        for name, options in self._options.items():
            now = sign(options.folder)
            settled = now == self._last[name]
            self._last[name] = now
            if forced or (now is not None and settled and now != self._loaded[name]):
                self._loaded[name] = now  # even if loading fails: this is reported only once
                await self._load(name, options)

    async def _load(self, name: str, options: ServeOptions) -> None:
        try:
            model = await asyncio.to_thread(open_served, options)
        except Exception as error:  # whatever is wrong with the new one, keep the old one
            reason = (
                str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            )
            self._report(name, "refused", f"not reloaded, the old one keeps answering: {reason}")
        else:
            self._service.put(name, model)
            self._report(name, "loaded", "reloaded")

    def _report(self, name: str, outcome: str, text: str) -> None:
        self._service.counters.reloads.labels(name, outcome).inc()
        print(
            "rmadapter:", escape(" ".join(f"{name}: {text}".split())), file=sys.stderr, flush=True
        )
