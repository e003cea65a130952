"""Addresses that can be had, and those that cannot; how a server ends there,
tests/deploy/serve/test_listen.py has."""

from __future__ import annotations

import socket

import pytest

from rmadapter.deploy.sockets import address, bound
from rmadapter.errors import UserError


def test_an_address_that_cannot_be_had() -> None:
    with bound("127.0.0.1", 0) as one:
        one.listen()
        port = one.getsockname()[1]
        assert address(one) == f"http://127.0.0.1:{port}"
        with pytest.raises(
            UserError,
            match=rf"--host 127.0.0.1 --port {port}: cannot listen there \(Address already",
        ):
            bound("127.0.0.1", port)
    with pytest.raises(UserError, match=r"--host 192.0.2.1 --port 1: cannot listen there"):
        bound("192.0.2.1", 1)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_an_address_of_ipv6() -> None:
    try:
        found = bound("::1", 0)
    except UserError as error:
        pytest.skip(str(error))
    with found:
        assert address(found).startswith("http://[::1]:")
