"""Addresses that can be had, and those that cannot; how a server ends there,
tests/rmadapter_serve/test_server.py has."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from rmadapter.errors import UserError
from rmadapter_serve.sockets import address, bind, share


def test_unavailable_address() -> None:
    with bind("127.0.0.1", 0) as one:
        port = one.getsockname()[1]
        assert address(one) == f"http://127.0.0.1:{port}"
        with pytest.raises(UserError, match=rf"--port {port}: .*\(Address already"):
            bind("127.0.0.1", port)
    with pytest.raises(UserError, match=r"--host 192\.0\.2\.1"):
        bind("192.0.2.1", 1)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux spreads connections")
def test_sockets_of_one_address_share_its_connections_and_refuse_others() -> None:
    with bind("127.0.0.1", 0) as first:
        sockets = share(first, 3)
        assert len({each.getsockname() for each in sockets}) == 1
        for each in sockets:
            each.settimeout(0.01)
        clients = [socket.create_connection(first.getsockname()) for _ in range(60)]
        accepted = [0, 0, 0]
        for place, each in enumerate(sockets):
            try:
                while True:
                    each.accept()[0].close()
                    accepted[place] += 1
            except TimeoutError:
                pass
        assert sum(accepted) == 60
        assert min(accepted) > 0
        with pytest.raises(UserError, match=r"\(Address already"):
            bind("127.0.0.1", first.getsockname()[1])
        for each in (*clients, *sockets[1:]):
            each.close()


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_ipv6_address() -> None:
    try:
        bound = bind("::1", 0)
    except UserError as error:
        pytest.skip(str(error))
    with bound:
        assert address(bound).startswith("http://[::1]:")


STUCK = """
import time
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.routing import Route
from rmadapter_serve.sockets import bind, serve_until_stopped

async def endpoint(_):
    print("stuck", flush=True)
    await run_in_threadpool(time.sleep, 600)

app = Starlette(routes=[Route("/", endpoint)])
listening = bind("127.0.0.1", 0)
print(listening.getsockname()[1], flush=True)
settings = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)
serve_until_stopped(uvicorn.Server(settings), listening)
"""


@pytest.mark.ci
@pytest.mark.skipif(os.name != "posix", reason="SIGTERM is of POSIX")
def test_a_server_ends_though_the_thread_of_a_request_goes_on() -> None:
    with subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, text=True) as one:
        try:
            assert one.stdout is not None
            port = int(one.stdout.readline())
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert one.stdout.readline() == "stuck\n"
                one.terminate()
                assert one.wait(60) == 0
        finally:
            one.kill()
