"""Requests are admitted by key and size, and counted; images come in a form or in JSON."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.helpers.serving import (
    Headers,
    HTTPException,
    Request,
    Response,
    Starlette,
    Toy,
    multipart,
    running_service,
)  # fmt: skip

from rmadapter_serve.requests import AccessMiddleware, keys, read_body  # isort: skip
from rmadapter_serve.limits import Limits  # isort: skip
from rmadapter_serve.service import Service  # isort: skip

# Keys and sizes


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


@pytest.fixture
def service() -> Iterator[Service]:
    """A service that takes bodies of at most 1,000 bytes."""
    with running_service(Toy(), body=0.001) as running:
        yield running


def guarded(service: Service, key: str = "", inside: Any = None) -> AccessMiddleware:
    return AccessMiddleware(inside or Inside(), service, key)


def status_of(app: AccessMiddleware, *chunks: bytes, path: str = "/predict", **headers: str) -> int:
    """Return the status of a request whose body comes in parts."""
    return asyncio.run(ask(app, chunks, path, headers))


async def ask(
    app: AccessMiddleware, chunks: tuple[bytes, ...], path: str, headers: dict[str, str]
) -> int:
    parts = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    coming = iter([*parts, {"type": "http.request", "body": b"", "more_body": False}])
    sent = []

    async def receive() -> Any:
        await asyncio.sleep(0)
        return next(coming)

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    await app({"type": "http", "method": "POST", "path": path, "headers": raw}, receive, send)
    return sent[0]["status"]


def test_body_size_is_limited_by_header_and_by_bytes(service: Service) -> None:
    inside = Inside()
    app = guarded(service, inside=inside)
    assert status_of(app, b"x" * 600, b"x" * 400) == 200
    assert status_of(app, b"x" * 600, b"x" * 401) == 413
    assert inside.refused is not None
    inside.refused = None
    assert status_of(app, content_length="1001") == 413
    assert inside.refused is None  # nothing was read
    assert status_of(app, content_length="9" * 5000) == 200  # its bytes count
    assert service.counters.total("rmadapter_requests", path="other", status="413") == 2
    assert app._held == 0


def test_bodies_of_all_requests_are_limited(service: Service) -> None:
    async def ask_at_once(app: AccessMiddleware) -> list[int]:
        parts = (b"x" * 500, b"x" * 500)
        return await asyncio.gather(*(ask(app, parts, "/predict", {}) for _ in range(20)))

    app = guarded(service)
    assert set(asyncio.run(ask_at_once(app))) == {200, 503}
    assert status_of(app, b"x" * 1000) == 200


def test_small_bodies_are_read_beside_many_large_ones(service: Service) -> None:
    async def ask_at_once(app: AccessMiddleware) -> list[int]:
        large = [ask(app, (b"x" * 100,) * 10, "/predict", {}) for _ in range(6)]
        small = [ask(app, (b"x" * 9,) * 10, "/predict", {}) for _ in range(12)]
        return await asyncio.gather(*large, *small)

    statuses = asyncio.run(ask_at_once(guarded(service)))
    assert 503 in statuses[:6]
    assert set(statuses[6:]) == {200}


@pytest.mark.parametrize("key", ["secret:ü", "secret"])
def test_key_is_accepted_in_three_headers(service: Service, key: str) -> None:
    app = guarded(service, key)
    basic = base64.b64encode(f"anybody:{key}".encode()).decode()
    assert status_of(app, x_api_key=key) == 200
    for word in (f"Bearer {key}", f"Basic {basic}"):
        assert status_of(app, authorization=word) == 200
    for path in ("/health", "/ready"):
        assert status_of(app, path=path) == 200  # without a key


def test_other_keys_are_refused(service: Service) -> None:
    app = guarded(service, "secret")
    for wrong in ("secret2", "secre", "", "SECRET"):
        assert status_of(app, x_api_key=wrong) == 401
        assert status_of(app, authorization=f"Bearer {wrong}") == 401
    assert status_of(app, authorization="Basic ?") == 401
    assert status_of(app) == 401
    assert status_of(app, path="/health/x") == 401
    # as a variable of the environment may hold it
    app = guarded(service, b"\xff\xfe".decode("utf-8", "surrogateescape"))
    assert status_of(app) == status_of(app, x_api_key="y") == 401


def test_other_host_names_are_refused_if_any_are_given(service: Service) -> None:
    for hosts in (None, ["birds.example"]):
        app = AccessMiddleware(Inside(), service, hosts=hosts)
        for host in ("localhost:8000", "127.0.0.1", "[::1]:80", "Birds.example:443"):
            assert status_of(app, host=host) == 200
        for host in ("evil.example", "localhost.evil.example", "", "127.0.0.1.evil", "[::1"):
            assert status_of(app, host=host) == (403 if hosts else 200)


def test_all_headers_of_a_request_are_limited(service: Service) -> None:
    app = guarded(service)
    assert status_of(app, x="y" * 16_000) == 200
    assert status_of(app, x="y" * 17_000) == 431
    assert status_of(app, **{f"x{number}": "y" * 100 for number in range(200)}) == 431
    assert status_of(app, path="/" + "a" * 17_000) == 431


def test_keys_of_a_request() -> None:
    assert list(keys(Headers({"x-api-key": "a", "authorization": "bearer b"}))) == [b"a", b"b"]
    assert list(keys(Headers({"authorization": "Digest b"}))) == [b""]


def test_clients_that_leave_count_as_499_and_bugs_as_500(service: Service) -> None:
    async def leave(*_: Any) -> None:
        return

    async def fail(*_: Any) -> None:
        raise ZeroDivisionError

    scope = {"type": "http", "path": "/", "headers": []}
    asyncio.run(guarded(service, inside=leave)(scope, None, None))  # type: ignore[arg-type]
    assert service.counters.total("rmadapter_requests", status="499") == 1
    with pytest.raises(ZeroDivisionError):
        status_of(guarded(service, inside=fail))
    assert service.counters.total("rmadapter_requests", status="500") == 1


# Images in a body


def read(body: bytes, kind: str, most: int = 3) -> list[tuple[str, bytes]]:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    headers = [(b"content-type", kind.encode())]
    scope = {"type": "http", "method": "POST", "headers": headers, "app": Starlette()}
    got = asyncio.run(read_body(Request(scope, receive), Limits(max_images=most)))
    return [(upload.name, upload.data) for upload in got.uploads]


def refusal(body: bytes, kind: str = "application/json") -> tuple[int, str]:
    with pytest.raises(HTTPException) as caught:
        read(body, kind)
    return caught.value.status_code, caught.value.detail


def test_files_of_a_form() -> None:
    files = [("a.png", b"1"), ("ü b.png", b"\0" * 2_000_000), ("x" * 999, b"3")]
    assert read(*multipart(files)) == [*files[:2], ("x" * 200, b"3")]


@pytest.mark.parametrize(
    ("codec", "name"), [("unicode_escape", rb"\ud800.png"), ("utf-7", b"+2AA-.png")]
)
def test_names_in_any_charset_fit_into_utf_8(codec: str, name: bytes) -> None:
    body, kind = multipart([("NAME", b"1")])
    assert read(body.replace(b"NAME", name), f"{kind}; charset={codec}") == [("?.png", b"1")]


def test_truncated_form_is_refused() -> None:
    body, kind = multipart([("a.png", b"1"), ("b.png", b"2" * 100)])
    assert len(read(body, kind)) == 2
    for cut in (body[:-30], body[:-4]):
        assert refusal(cut, kind)[0] == 400


def test_base64_in_json() -> None:
    coded = base64.b64encode(b"1").decode()
    body = json.dumps({"images": [coded, f"data:image/png;base64,{coded}"]}).encode()
    images = [("images[0]", b"1"), ("images[1]", b"1")]
    assert read(body, "application/json; charset=utf-8") == images


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[" * 100_000, b"[1]", b'{"images": 3}', b'{"images": [3]}',
     b'{"images": "abc"}', b"\xff"],
)  # fmt: skip
def test_json_of_another_shape_is_refused(body: bytes) -> None:
    status, message = refusal(body)
    assert status == 400
    assert "multipart/form-data" in message


FORM = "multipart/form-data"


@pytest.mark.parametrize(
    ("body", "kind", "status", "start"),
    [
        (b"x", "image/png", 415, "send "),
        (b'{"images": ["a", "%%%"]}', "application/json", 400, "images[0]: not base64"),
        (b'{"images": ["\\u00e9"]}', "application/json", 400, "images[0]: not base64"),
        (b'{"images": []}', "application/json", 400, "no images received"),
        (*multipart([("a", b"1")], field="image"), 400, "no images received"),
        (*multipart([("a", b"1")] * 4), 400, "4 images, but a request may have only 3"),
        (*multipart([("a", b"1")] * 9), 400, ""),
        (b"nothing", f"{FORM}; boundary=edge", 400, "not a "),
        (b"nothing", FORM, 400, "not a "),
        (b"nothing", f"{FORM}; boundary*=utf-8''%E2%82%AC", 400, "not a "),
        (b"--x--", f"{FORM}; boundary*=idna''%ff%fe", 400, "not a "),
        (b"--x--", f"{FORM}; boundary*0=x; boundary*=y", 400, "not a "),
    ],
)
def test_refused_bodies(body: bytes, kind: str, status: int, start: str) -> None:
    code, message = refusal(body, kind)
    assert code == status
    assert message.startswith(start)
