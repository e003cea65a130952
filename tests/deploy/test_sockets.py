"""Addresses that can be had, and those that cannot; how a server ends there,
tests/deploy/serve/test_server.py has."""

from __future__ import annotations

import socket

import pytest

from rmadapter.deploy.sockets import address, bind
from rmadapter.errors import UserError


def test_unavailable_address() -> None:
    with bind("127.0.0.1", 0) as one:
        one.listen()
        port = one.getsockname()[1]
        assert address(one) == f"http://127.0.0.1:{port}"
        with pytest.raises(UserError, match=rf"--port {port}: .*\(Address already"):
            bind("127.0.0.1", port)
    with pytest.raises(UserError, match=r"--host 192\.0\.2\.1"):
        bind("192.0.2.1", 1)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_ipv6_address() -> None:
    try:
        bound = bind("::1", 0)
    except UserError as error:
        pytest.skip(str(error))
    with bound:
        assert address(bound).startswith("http://[::1]:")
