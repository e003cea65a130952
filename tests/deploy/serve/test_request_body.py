"""Files of a form and base64 in JSON; all else is refused in a sentence."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import pytest

from rmadapter.deploy.serve.options import Limits
from rmadapter.deploy.serve.request_body import read_uploads
from tests.helpers.serving import HTTPException, Request, Starlette, multipart


def read(body: bytes, kind: str, most: int = 3) -> list[tuple[str, bytes]]:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    scope = {
        "type": "http",
        "method": "POST",
        "headers": [(b"content-type", kind.encode())],
        "app": Starlette(),
    }
    return [
        tuple(one)
        for one in asyncio.run(read_uploads(Request(scope, receive), Limits(images=most)))
    ]  # type: ignore


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
    [(found, data)] = read(body.replace(b"NAME", name), f"{kind}; charset={codec}")
    assert (found, data) == ("?.png", b"1")


def test_truncated_form_is_refused() -> None:
    body, kind = multipart([("a.png", b"1"), ("b.png", b"2" * 100)])
    assert len(read(body, kind)) == 2
    for cut in (body[:-30], body[:-4]):
        assert refusal(cut, kind)[0] == 400


@pytest.mark.parametrize("boundary", ["boundary*=idna''%ff%fe", "boundary*0=x; boundary*=y"])
def test_unreadable_boundary_is_refused(boundary: str) -> None:
    code, told = refusal(b"--x--", f"multipart/form-data; {boundary}")
    assert code == 400
    assert told.startswith("not a ")


def test_base64_in_json() -> None:
    coded = base64.b64encode(b"1").decode()
    body = json.dumps({"images": [coded, f"data:image/png;base64,{coded}"]}).encode()
    assert read(body, "application/json; charset=utf-8") == [
        ("images[0]", b"1"),
        ("images[1]", b"1"),
    ]


def test_refused_bodies() -> None:
    assert refusal(b"x", "image/png")[0] == 415
    for body in (
        b"",
        b"{",
        b"[" * 100_000,
        b"[1]",
        b'{"images": 3}',
        b'{"images": [3]}',
        b'{"images": "abc"}',
        b"\xff",
    ):
        status, told = refusal(body)
        assert status == 400
        assert "multipart/form-data" in told
    assert refusal(b'{"images": ["a", "%%%"]}') == (400, "images[0]: not base64")
    assert refusal(b'{"images": ["\\u00e9"]}') == (400, "images[0]: not base64")
    assert refusal(b'{"images": []}')[1].startswith("no images received")
    assert refusal(*multipart([("a", b"1")], field="image"))[1].startswith("no images received")
    assert refusal(*multipart([("a", b"1")] * 4)) == (
        400,
        "4 images, but a request may have only 3: send several",
    )
    assert refusal(*multipart([("a", b"1")] * 9))[0] == 400
    assert refusal(b"nothing", "multipart/form-data; boundary=edge")[0] == 400
    assert refusal(b"nothing", "multipart/form-data")[0] == 400
    assert refusal(b"nothing", "multipart/form-data; boundary*=utf-8''%E2%82%AC")[0] == 400
