"""Listen on an address of this machine, serve there until stopped, and tell its own host names from
others."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import signal
import socket
import threading
from collections.abc import Collection
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rmadapter import UserError

if TYPE_CHECKING:
    import uvicorn


BACKLOG = 2048  # connections that wait to be accepted
LAST_SECONDS = 2  # for the thread of a request, after the server has ended


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens: what connects waits until it is accepted.

    It listens at once, since two sockets can be bound to one address until one listens.

    Args:
        host: Name or address of this machine.
        port: The port; 0 for a free one.

    Raises:
        UserError: The address cannot be had.
    """
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return _listen(family, place)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"--host {host} --port {port}: cannot listen there ({reason}); choose another"
        ) from None


def share(bound: socket.socket, count: int) -> list[socket.socket]:
    """Return listening sockets of one address, the given one first; the system spreads connections
    among them (Linux). As the first one was bound without sharing and listens, a second server is
    still refused."""
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # type: ignore[attr-defined, unused-ignore]
    place = bound.getsockname()
    return [bound, *(_listen(bound.family, place, reuse_port=True) for _ in range(count - 1))]


def _listen(
    family: int, place: tuple[str | int | bytes, ...], reuse_port: bool = False
) -> socket.socket:
    """Return a socket that listens; one of all IPv6 addresses also takes IPv4, as by default on
    Linux."""
    both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
    return socket.create_server(
        place, family=family, backlog=BACKLOG, reuse_port=reuse_port, dualstack_ipv6=both
    )


def address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve_until_stopped(server: uvicorn.Server, listening: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT, and then return.

    A request whose thread goes on then, as nothing stops a thread, ends with the process: Python
    would wait for it.
    """
    from rmadapter_serve.stalled import serve

    if threading.current_thread() is not threading.main_thread():
        asyncio.run(serve(server, listening))
        return
    # uvicorn catches these signals, and raises them again when it is done
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    before = threading.enumerate()
    asyncio.run(serve(server, listening))
    for thread in threading.enumerate():
        if thread not in before and not thread.daemon:
            thread.join(LAST_SECONDS)
            if thread.is_alive():
                os._exit(0)


def is_known_host(host: str, names: Collection[str]) -> bool:
    """Return whether a header `Host` names this server: "localhost", an IP address or one of
    `names`, in lower case. Any other may be of a site that points its own name at this machine (DNS
    rebinding)."""
    name = part_of(f"//{host}", "hostname")
    return name in names or name == "localhost" or ip_address(name) is not None


def part_of(address: str, name: str) -> str:
    """Return a part of an address that a browser sent, such as "hostname"; "" if malformed."""
    try:
        return getattr(urlsplit(address), name) or ""
    except ValueError:
        return ""


def ip_address(name: str) -> IPv4Address | IPv6Address | None:
    """Return the IP address that a name is, or None."""
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
