"""Who is let in, by the headers of a request, and what every answer forbids a browser."""

from __future__ import annotations

import pytest

pytest.importorskip("starlette", reason="pip install 'rmadapter[app]'")

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from rmadapter.deploy.app.host_check import Doors, refusal

NAMES = {"studio"}


@pytest.mark.parametrize(
    "host", ["localhost:8080", "127.0.0.1:8080", "[::1]:8080", "10.0.0.7", "studio:1"]
)
def test_by_name_or_number(host: str) -> None:
    assert refusal("POST", host, f"http://{host}", NAMES) == ""
    assert refusal("POST", host, None, NAMES) == ""


@pytest.mark.parametrize(
    "host", ["evil.example:8080", "localhost.evil.example", "", "[::1", "127.0.0.1.evil.example"]
)
def test_a_name_that_somebody_else_gave_this_machine(host: str) -> None:
    assert "address that the terminal shows" in refusal("GET", host, None, NAMES)


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://localhost:8081", "http://127.0.0.1:8080", "http://["],
)
def test_what_another_site_sends(origin: str) -> None:
    for method in ("POST", "PUT", "DELETE"):
        assert "Another site" in refusal(method, "localhost:8080", origin, NAMES)
    assert refusal("GET", "localhost:8080", origin, NAMES) == ""


def test_headers_of_every_answer() -> None:
    async def own(_: object) -> PlainTextResponse:
        return PlainTextResponse("in", headers={"Content-Security-Policy": "sandbox"})

    client = TestClient(
        Doors(Starlette(routes=[Route("/own", own, methods=["GET", "POST"])]), NAMES),
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
def test_who_may_show_it_in_a_frame(frames: list[str], ancestors: str) -> None:
    client = TestClient(Doors(Starlette(), NAMES, frames), "http://studio")
    assert (
        client.get("/")
        .headers["content-security-policy"]
        .endswith(f"; frame-ancestors {ancestors}")
    )
