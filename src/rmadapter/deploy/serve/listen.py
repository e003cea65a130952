"""A server, signals, and an end that loses no answer."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import uvicorn

from rmadapter.deploy.serve.limits import CONNECTIONS, HEADERS
from rmadapter.deploy.serve.routes import create_app
from rmadapter.deploy.serve.served import Wish
from rmadapter.deploy.serve.service import Service
from rmadapter.deploy.serve.watch import Watch
from rmadapter.deploy.sockets import until_ended

BACKLOG = 2048  # connections that wait to be taken


def run(
    service: Service, wishes: Mapping[str, Wish], listening: socket.socket, ready: Callable[[], None], *,
    key: str = "", cors: Sequence[str] = (), log: bool = False,
) -> None:  # fmt: skip
    """Until SIGTERM or SIGINT. Then nothing new is taken, and what was taken is answered.

    ready: is called when requests are taken. log: whether each of them is a line on stderr. SIGHUP loads the models
    again.
    """

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        watch = Watch(service, wishes)
        with suppress(AttributeError, NotImplementedError, ValueError, RuntimeError):  # Windows, or no main thread
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, watch.ask)
        watching = asyncio.create_task(watch.run())
        listening.listen(BACKLOG)
        ready()
        yield
        watching.cancel()
        service.close()

    if log:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = uvicorn.Config(
        create_app(service, key, cors, lifespan),
        lifespan="on",
        http="h11",  # the others count headers and bodies otherwise
        ws="none",
        log_config=None,
        log_level="info" if log else "error",
        access_log=log,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        h11_max_incomplete_event_size=HEADERS,
        timeout_graceful_shutdown=int(2 * service.limits.seconds) + 1,
    )
    until_ended(config, listening)
