"""Which requests are answered: keys, sizes of bodies, hosts and origins; headers of answers."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from rmadapter.deploy.access import AccessMiddleware, HostMiddleware, keys, refusal
from tests.helpers.serving import (
    Headers,
    HTTPException,
    Request,
    Response,
    Starlette,
    TestClient,
    Toy,
    running_service,
)  # fmt: skip

# Keys and bodies


class Inside:
    """An application that reads the whole body. refused: the error that it got instead."""

    refused: HTTPException | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            size = len(await Request(scope, receive).body())
        except HTTPException as error:
            self.refused = error
            await Response(status_code=error.status_code)(scope, receive, send)
            return
        await Response(str(size))(scope, receive, send)


def status_of(app: AccessMiddleware, *chunks: bytes, path: str = "/predict", **headers: str) -> int:
    """The status of a request whose body comes in parts."""
    return asyncio.run(_status_of(app, chunks, path, headers))


async def _status_of(
    app: AccessMiddleware, chunks: tuple[bytes, ...], path: str, headers: dict[str, str]
) -> int:
    parts = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    coming, sent = iter([*parts, {"type": "http.request", "body": b"", "more_body": False}]), []

    async def receive() -> Any:
        await asyncio.sleep(0)
        return next(coming)

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    await app({"type": "http", "method": "POST", "path": path, "headers": raw}, receive, send)
    return sent[0]["status"]


def test_body_size_is_limited_by_header_and_by_bytes() -> None:
    with running_service(Toy(), body=0.001) as service:
        app = AccessMiddleware(inside := Inside(), service.limits, service.counters)
        assert status_of(app, b"x" * 600, b"x" * 400) == 200
        assert status_of(app, b"x" * 600, b"x" * 401) == 413
        assert inside.refused is not None
        inside.refused = None
        assert status_of(app, content_length="1001") == 413
        assert inside.refused is None  # nothing was read
        assert status_of(app, content_length="9" * 5000) == 200  # its bytes count
        assert service.counters.total("rmadapter_requests", path="other", status="413") == 2
        assert app._held == 0


def test_bodies_of_all_requests_are_limited() -> None:
    async def many(app: AccessMiddleware) -> list[int]:
        parts = (b"x" * 500, b"x" * 500)
        return await asyncio.gather(*(_status_of(app, parts, "/predict", {}) for _ in range(20)))

    with running_service(Toy(), body=0.001) as service:
        app = AccessMiddleware(Inside(), service.limits, service.counters)
        statuses = asyncio.run(many(app))
        assert set(statuses) == {200, 429}
        assert status_of(app, b"x" * 1000) == 200


def test_only_the_key_is_accepted() -> None:
    with running_service(Toy()) as service:
        app = AccessMiddleware(Inside(), service.limits, service.counters, "secret:ü")
        basic = base64.b64encode("anybody:secret:ü".encode()).decode()
        assert status_of(app, authorization=f"Basic {basic}") == 200
        assert (
            status_of(app, x_api_key="secret:ü")
            == status_of(app, authorization="Bearer secret:ü")
            == 200
        )
        assert (
            status_of(app)
            == status_of(app, x_api_key="secret")
            == status_of(app, authorization="Basic ?")
            == 401
        )
        assert status_of(app, path="/health") == status_of(app, path="/ready") == 200
        app = AccessMiddleware(Inside(), service.limits, service.counters, "secret")
        assert (
            status_of(app, x_api_key="secret")
            == status_of(app, authorization="Bearer secret")
            == 200
        )
        for wrong in ("secret2", "secre", "", "SECRET"):
            assert (
                status_of(app, x_api_key=wrong)
                == status_of(app, authorization=f"Bearer {wrong}")
                == 401
            )
        assert status_of(app, path="/health/x") == 401


def test_key_that_is_not_text_is_compared_as_bytes() -> None:
    """As a variable of the environment may hold one."""
    with running_service(Toy()) as service:
        app = AccessMiddleware(
            Inside(),
            service.limits,
            service.counters,
            b"\xff\xfe".decode("utf-8", "surrogateescape"),
        )
        assert status_of(app) == status_of(app, x_api_key="y") == 401


def test_keys_of_a_request() -> None:
    assert list(keys(Headers({"x-api-key": "a", "authorization": "bearer b"}))) == [b"a", b"b"]
    assert list(keys(Headers({"authorization": "Digest b"}))) == [b""]


def test_clients_that_leave_count_as_499_and_bugs_as_500() -> None:
    async def leaves(*_: Any) -> None:
        return

    async def breaks(*_: Any) -> None:
        raise ZeroDivisionError

    with running_service(Toy()) as service:
        asyncio.run(AccessMiddleware(leaves, service.limits, service.counters)(
            {"type": "http", "path": "/", "headers": []}, None, None  # type: ignore[arg-type]
        ))  # fmt: skip
        assert service.counters.total("rmadapter_requests", status="499") == 1
        with pytest.raises(ZeroDivisionError):
            status_of(AccessMiddleware(breaks, service.limits, service.counters))
        assert service.counters.total("rmadapter_requests", status="500") == 1


# Hosts and origins

NAMES = {"studio"}


@pytest.mark.parametrize(
    "host", ["localhost:8080", "127.0.0.1:8080", "[::1]:8080", "10.0.0.7", "studio:1"]
)
def test_known_hosts_are_served(host: str) -> None:
    assert refusal("POST", host, f"http://{host}", NAMES) == ""
    assert refusal("POST", host, None, NAMES) == ""


@pytest.mark.parametrize(
    "host", ["evil.example:8080", "localhost.evil.example", "", "[::1", "127.0.0.1.evil.example"]
)
def test_unknown_hosts_are_refused(host: str) -> None:
    assert refusal("GET", host, None, NAMES)


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://localhost:8081", "http://127.0.0.1:8080", "http://["],
)
def test_other_origins_may_only_read(origin: str) -> None:
    for method in ("POST", "PUT", "DELETE"):
        assert refusal(method, "localhost:8080", origin, NAMES)
    assert refusal("GET", "localhost:8080", origin, NAMES) == ""


def test_headers_of_every_answer() -> None:
    async def own(_: object) -> PlainTextResponse:
        return PlainTextResponse("in", headers={"Content-Security-Policy": "sandbox"})

    client = TestClient(
        HostMiddleware(Starlette(routes=[Route("/own", own, methods=["GET", "POST"])]), NAMES),
        "http://studio",
    )
    assert client.get("/own").headers["content-security-policy"] == "sandbox"
    found = client.post("/own", headers={"origin": "http://evil.example"})
    assert (found.status_code, found.headers["x-content-type-options"]) == (403, "nosniff")
    assert "default-src 'self'" in client.get("/gone").headers["content-security-policy"]
    assert client.get("/own", headers={"host": "evil.example"}).status_code == 403


@pytest.mark.parametrize(
    ("frames", "ancestors"),
    [([], "'none'"), (["https://a.example", "http://b"], "https://a.example http://b")],
)
def test_frames_are_allowed_by_origin(frames: list[str], ancestors: str) -> None:
    client = TestClient(HostMiddleware(Starlette(), NAMES, frames), "http://studio")
    assert (
        client.get("/")
        .headers["content-security-policy"]
        .endswith(f"; frame-ancestors {ancestors}")
    )
