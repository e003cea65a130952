"""Run the server, handle signals, and shut down without losing answers."""

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
from rmadapter.deploy.serve.model import Wish
from rmadapter.deploy.serve.reload import Watch
from rmadapter.deploy.serve.routes import create_app
from rmadapter.deploy.serve.service import Service
from rmadapter.deploy.sockets import until_ended

BACKLOG = 2048  # connections that wait to be accepted


def run(
    service: Service, wishes: Mapping[str, Wish], listening: socket.socket, ready: Callable[[], None], *,
    key: str = "", cors: Sequence[str] = (), log: bool = False,
) -> None:  # fmt: skip
    """Serve until SIGTERM or SIGINT; then accept nothing new, and answer what was accepted.

    ready: called once requests are accepted. log: print a line on stderr for each request. SIGHUP
    reloads the models.
    """

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        watch = Watch(service, wishes)
        with suppress(
            AttributeError, NotImplementedError, ValueError, RuntimeError
        ):  # Windows, or no main thread
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
        http="h11",  # others count headers and bodies differently
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
