"""Close connections that make no progress, which the servers tried leave open.

uvicorn's `timeout_keep_alive` begins after an answer and ends with the first byte that follows, so
a connection without a request, with headers or with a body after its answer that come byte by byte,
and one that reads none of its answers, stays open. As many as `limit_concurrency` allows lock out
everyone else. hypercorn closes all of these but the last kind, which stops the whole server, and
granian leaves the first and the last open (research/studies/serve.md has what was measured).
"""

from __future__ import annotations

import asyncio
import socket
from typing import NamedTuple

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

STALL_SECONDS = 20.0  # seconds without progress
LOOKS = 10  # at each connection, in that time


class _Stall(NamedTuple):
    """A connection that waits for its client.

    Attributes:
        request: Its last request.
        unread: Bytes of answers that the client has not read.
        since: When the wait began.
    """

    request: RequestResponseCycle | None
    unread: int
    since: float


async def serve(
    server: uvicorn.Server, listening: socket.socket, patience: float = STALL_SECONDS
) -> None:
    """Serve until a signal or `server.should_exit`, and close stalled connections meanwhile."""
    closing = asyncio.create_task(_close_stalled(server, patience))
    await server.serve(sockets=[listening])
    closing.cancel()


async def _close_stalled(server: uvicorn.Server, patience: float) -> None:
    """Close connections that wait longer than `patience` seconds for their client, until
    cancelled."""
    clock = asyncio.get_running_loop().time
    stalls: dict[H11Protocol, _Stall] = {}
    while True:
        await asyncio.sleep(patience / LOOKS)
        now, before, stalls = clock(), stalls, {}
        for connection in list(server.server_state.connections):
            if not isinstance(connection, H11Protocol):
                continue
            request, unread = connection.cycle, connection.transport.get_write_buffer_size()
            if request is not None and not request.response_complete and not unread:
                continue  # the application's turn, which limits the time for bodies and answers
            last = before.get(connection)
            waits = last is not None and last.request is request and last.unread <= unread
            since = last.since if last and waits else now
            stalls[connection] = _Stall(request, unread, since)
            if now - since > patience:
                connection.transport.abort()
