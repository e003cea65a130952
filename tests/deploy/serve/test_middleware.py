"""Keys, sizes of bodies, and what is counted."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest

from rmadapter.deploy.serve.middleware import Door, keys
from tests.helpers.answering import Headers, HTTPException, Request, Response, Toy, serviced


class Inside:
    """What lies behind the door: reads the whole body. refused: what the door told it then."""

    refused: HTTPException | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            size = len(await Request(scope, receive).body())
        except HTTPException as error:
            self.refused = error
            await Response(status_code=error.status_code)(scope, receive, send)
            return
        await Response(str(size))(scope, receive, send)


def through(door: Door, *chunks: bytes, path: str = "/predict", **headers: str) -> int:
    """The status of a request whose body comes in parts."""
    return asyncio.run(_through(door, chunks, path, headers))


async def _through(
    door: Door, chunks: tuple[bytes, ...], path: str, headers: dict[str, str]
) -> int:
    parts = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    coming, sent = iter([*parts, {"type": "http.request", "body": b"", "more_body": False}]), []

    async def receive() -> Any:
        await asyncio.sleep(0)
        return next(coming)

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    await door({"type": "http", "method": "POST", "path": path, "headers": raw}, receive, send)
    return sent[0]["status"]


def test_a_body_is_too_large_by_its_header_and_by_its_bytes() -> None:
    with serviced(Toy(), body=0.001) as service:
        door = Door(inside := Inside(), service.limits, service.counters)
        assert through(door, b"x" * 600, b"x" * 400) == 200
        assert through(door, b"x" * 600, b"x" * 401) == 413
        assert inside.refused is not None
        inside.refused = None
        assert through(door, content_length="1001") == 413
        assert inside.refused is None  # nothing was read
        assert through(door, content_length="9" * 5000) == 200  # its bytes count
        assert service.counters.total("rmadapter_requests", path="other", status="413") == 2
        assert door._held == 0


def test_all_bodies_together_are_bounded() -> None:
    async def many(door: Door) -> list[int]:
        parts = (b"x" * 500, b"x" * 500)
        return await asyncio.gather(*(_through(door, parts, "/predict", {}) for _ in range(20)))

    with serviced(Toy(), body=0.001) as service:
        door = Door(Inside(), service.limits, service.counters)
        statuses = asyncio.run(many(door))
        assert set(statuses) == {200, 429}
        assert through(door, b"x" * 1000) == 200


def test_a_key_opens_and_nothing_else_does() -> None:
    with serviced(Toy()) as service:
        door = Door(Inside(), service.limits, service.counters, "secret:ü")
        basic = base64.b64encode("anybody:secret:ü".encode()).decode()
        assert through(door, authorization=f"Basic {basic}") == 200
        assert (
            through(door, x_api_key="secret:ü")
            == through(door, authorization="Bearer secret:ü")
            == 200
        )
        assert (
            through(door)
            == through(door, x_api_key="secret")
            == through(door, authorization="Basic ?")
            == 401
        )
        assert through(door, path="/health") == through(door, path="/ready") == 200
        door = Door(Inside(), service.limits, service.counters, "secret")
        assert (
            through(door, x_api_key="secret") == through(door, authorization="Bearer secret") == 200
        )
        for wrong in ("secret2", "secre", "", "SECRET"):
            assert (
                through(door, x_api_key=wrong)
                == through(door, authorization=f"Bearer {wrong}")
                == 401
            )
        assert through(door, path="/health/x") == 401


def test_a_key_that_is_no_text_is_compared_as_bytes() -> None:
    """As a variable of the environment may hold one."""
    with serviced(Toy()) as service:
        door = Door(
            Inside(),
            service.limits,
            service.counters,
            b"\xff\xfe".decode("utf-8", "surrogateescape"),
        )
        assert through(door) == through(door, x_api_key="y") == 401


def test_keys_of_a_request() -> None:
    assert list(keys(Headers({"x-api-key": "a", "authorization": "bearer b"}))) == [b"a", b"b"]
    assert list(keys(Headers({"authorization": "Digest b"}))) == [b""]


def test_who_left_is_counted_as_that_and_a_bug_as_500() -> None:
    async def leaves(*_: Any) -> None:
        return

    async def breaks(*_: Any) -> None:
        raise ZeroDivisionError

    with serviced(Toy()) as service:
        asyncio.run(Door(leaves, service.limits, service.counters)(
            {"type": "http", "path": "/", "headers": []}, None, None  # type: ignore[arg-type]
        ))  # fmt: skip
        assert service.counters.total("rmadapter_requests", status="499") == 1
        with pytest.raises(ZeroDivisionError):
            through(Door(breaks, service.limits, service.counters))
        assert service.counters.total("rmadapter_requests", status="500") == 1
