"""The page's server without a browser: visitors, limits and errors."""

from __future__ import annotations

import errno
import io
import threading
import zipfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("starlette", reason="pip install 'rmadapter[app]'")

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from rmadapter.backbones import Backbone
from rmadapter.deploy.app import server as module
from rmadapter.deploy.app.jobs import Jobs
from rmadapter.deploy.app.server import HostMiddleware, Visitors, build, refusal
from rmadapter.deploy.app.session import Shared

ADDRESS = "http://127.0.0.1:8080"


@pytest.fixture
def client(tiny_clip: Backbone) -> Iterator[TestClient]:
    with TestClient(build(Shared(tiny_clip, Jobs())), ADDRESS) as found:
        found.get("/")
        yield found


def another(client: TestClient) -> TestClient:
    """Another browser at the same server."""
    found = TestClient(client.app, ADDRESS)
    found.get("/")
    return found


def put(client: TestClient, what: str, data: bytes, **words: str) -> Any:
    return client.put(f"/api/{what}", content=data, params=words)


def told(response: Any, status: int = 400) -> str:
    assert response.status_code == status
    return str(response.json()["error"])


def classes(client: TestClient) -> dict[str, int]:
    return {one["label"]: one["images"] for one in client.get("/api/state").json()["classes"]}


def named(client: TestClient, *names: str) -> None:
    assert client.post("/api/classes", json={"names": names}).json() is None
    assert client.post("/api/names").json() is None


def test_page_and_assets(client: TestClient) -> None:
    page = client.get("/")
    assert "<title>Make your own image classifier</title>" in page.text
    assert "script-src" not in page.headers["content-security-policy"]
    for name, kind in (
        ("page.mjs", "text/javascript"),
        ("parts.mjs", "text/javascript"),
        ("style.css", "text/css"),
    ):
        assert client.get(f"/{name}").headers["content-type"].startswith(kind)
    for path in ("/index.html", "/../site.py", "/api", "/report/x"):
        assert client.get(path).status_code == 404


def test_cookie_is_hidden_from_scripts_and_other_sites(client: TestClient) -> None:
    cookie = TestClient(client.app, ADDRESS).get("/").headers["set-cookie"]
    assert cookie.startswith("rmadapter-app-8080=")
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert "set-cookie" not in client.get("/").headers
    stranger = TestClient(client.app, ADDRESS, cookies={"rmadapter-app-8080": "guess"})
    for response in (
        stranger.get("/api/state"),
        stranger.get("/report"),
        stranger.get("/download/model"),
    ):
        assert "reload it" in told(response)
    assert "reload it" in told(put(stranger, "image", b"", label="a"))


def test_concurrent_visitors_are_separate(client: TestClient, colors: Path) -> None:
    other = another(client)

    def work(who: TestClient, label: str) -> None:
        for image in sorted((colors / "train" / label).iterdir()):
            assert (
                put(who, "image", image.read_bytes(), label=label, name=image.name).status_code
                == 200
            )
        named(who, f"{label} thing")

    threads = [
        threading.Thread(target=work, args=pair) for pair in ((client, "red"), (other, "blue"))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert classes(client) == {"red": 6, "red thing": 0}
    assert classes(other) == {"blue": 6, "blue thing": 0}
    image = (colors / "test/red/0.png").read_bytes()
    for who, label in ((client, "red"), (other, "blue")):
        answers = put(who, "ask", image, name="x.png").json()
        assert {one["label"] for one in answers} == {label, f"{label} thing"}
        with zipfile.ZipFile(io.BytesIO(who.get("/download/model").content)) as file:
            assert label in file.read("model/model.json").decode()


def test_errors_are_one_line(
    client: TestClient, colors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_IMAGE", 100)
    monkeypatch.setattr(module, "MOST_ZIP", 50)
    assert told(put(client, "image", b"x" * 101, label="a", name="big.png")).startswith(
        "big.png: larger than the 100"
    )
    assert told(put(client, "zip", b"x" * 51, name="big.zip")).startswith(
        "big.zip: larger than the 50"
    )
    assert told(put(client, "zip", b"no", name="../evil.zip")).startswith(
        "evil.zip: not a readable zip file"
    )
    assert told(put(client, "image", b"no", label="a", name="bad.png")).startswith(
        "bad.png: not an image"
    )
    assert told(put(client, "ask", b"no", name="bad.png")).startswith("There is no classifier yet")
    assert "at least two classes" in told(client.post("/api/train", json={"method": "auto"}))
    for wanted in ({}, {"names": "a"}, {"names": []}, {"names": [1]}):
        assert told(client.post("/api/classes", json=wanted)) == "names: give at least one"
    assert "method is missing" in told(client.post("/api/train"))
    for body in (b"{", b"[1]", b"[" * 50_000, b"\xff"):
        assert "JSON" in told(client.post("/api/classes", content=body))
    assert "larger than the 100,000 bytes" in told(
        client.post("/api/classes", content=b" " * 100_001)
    )
    assert "there is no report" in told(client.get("/report"))
    assert "no classifier" in told(client.get("/download/web"))
    assert classes(client) == {}


def test_full_disk(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_: object) -> AsyncIterator[bytes]:
        raise OSError(errno.ENOSPC, "No space left on device")
        yield b""

    monkeypatch.setattr(module, "read_parts", full)
    assert told(put(client, "zip", b"x", name="a.zip")).startswith("a.zip: ")
    assert classes(client) == {}


def test_client_that_leaves_early(client: TestClient) -> None:
    sent: list[Any] = []
    cookie = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
    headers = [(b"host", b"127.0.0.1:8080"), (b"cookie", cookie.encode())]
    scope = {
        "type": "http",
        "method": "PUT",
        "path": "/api/image",
        "query_string": b"label=a",
        "headers": headers,
    }
    scope |= {
        "server": ("127.0.0.1", 8080),
        "scheme": "http",
        "root_path": "",
        "http_version": "1.1",
    }
    messages = iter(
        [{"type": "http.request", "body": b"half", "more_body": True}, {"type": "http.disconnect"}]
    )

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message)

    client.portal.call(client.app, scope, receive, send)  # type: ignore[union-attr]
    assert sent[0]["status"] == 400
    [session] = [visit.session for visit in client.app.state.visitors._visits.values()]  # type: ignore[attr-defined]
    assert not list(session.folder.iterdir())


def test_other_sites_are_refused(client: TestClient) -> None:
    evil = {"origin": "http://evil.example"}
    assert "Another site" in told(
        client.post("/api/classes", json={"names": ["a"]}, headers=evil), 403
    )
    assert "at the address" in told(client.get("/api/state", headers={"host": "evil.example"}), 403)
    assert (
        client.post("/api/classes", json={"names": ["a"]}, headers={"origin": ADDRESS}).status_code
        == 200
    )
    assert classes(client) == {"a": 0}


def test_uploaded_report_runs_nothing(client: TestClient, finished: Path) -> None:
    """It may hold anything: none of it runs."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        for path in finished.iterdir():
            if path.name not in ("SHA256SUMS", "report.html"):
                file.write(path, f"model/{path.name}")
        file.writestr("model/report.html", "<script>alert(1)</script>")
    assert put(client, "zip", data.getvalue(), name="x.zip").json() == {"opened": "x", "bad": []}
    report = client.get("/report")
    assert report.text == "<script>alert(1)</script>"
    assert report.headers["content-security-policy"].startswith("sandbox; default-src 'none'")
    assert client.get("/api/judged").json()["rows"][-1]["name"].startswith("after: ")


def test_folders_are_removed_at_the_end(tiny_clip: Backbone) -> None:
    with TestClient(build(Shared(tiny_clip, Jobs())), ADDRESS) as client:
        client.get("/")
        named(client, "red", "blue")
        root = client.app.state.visitors.root  # type: ignore[attr-defined]
        assert [*root.glob("*/model-1/model.json")]
    assert not root.exists()


# Visitors


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_visitors_and_strangers(tmp_path: Path) -> None:
    shared: Any = SimpleNamespace()
    visitors = Visitors(tmp_path, shared, 10)
    one, two = visitors.add(), visitors.add()
    mine, other = visitors.session(one), visitors.session(two)
    assert mine is not None
    assert other is not None
    assert mine is visitors.session(one)
    assert mine.folder != other.folder
    assert one not in str(mine.folder)
    assert visitors.session(None) is visitors.session("") is visitors.session("guess") is None
    visitors.remove(one)
    assert visitors.session(one) is None
    assert (mine.folder.exists(), other.folder.exists()) == (False, True)


def test_idle_visitors_are_removed(tmp_path: Path) -> None:
    shared: Any = SimpleNamespace()
    clock = Clock()
    visitors = Visitors(tmp_path, shared, 10, clock)
    away, here, busy = (visitors.add() for _ in range(3))
    at_work = visitors.session(busy)
    assert at_work is not None
    job: Any = SimpleNamespace(ended=False)
    at_work.job = job
    clock.now = 8
    assert visitors.session(here)
    clock.now = 11
    visitors.sweep()
    assert visitors.session(away) is None
    assert visitors.session(here)
    assert visitors.session(busy)
    assert len([*tmp_path.iterdir()]) == 2


def test_active_visitors_stay_longest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when another site's page, or a monitor, asks for the page again and again."""
    monkeypatch.setattr(module, "MOST_VISITORS", 4)
    shared: Any = SimpleNamespace()
    clock = Clock()
    visitors = Visitors(tmp_path, shared, 10, clock)
    training, labelled = visitors.add(), visitors.add()
    busy, idle = visitors.session(training), visitors.session(labelled)
    assert busy
    assert idle
    busy.job = SimpleNamespace(ended=False)  # type: ignore[assignment]
    idle.images.add_class("cat")
    for clock.now in range(1, 9):
        newest = visitors.add()
        assert visitors.session(newest)
    assert (visitors.session(training), visitors.session(labelled)) == (busy, idle)
    for clock.now in range(9, 12):
        another = visitors.session(visitors.add())
        assert another
        another.images.add_class("dog")
    assert visitors.session(training)
    assert visitors.session(labelled) is None


def test_visitors_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_VISITORS", 2)
    shared: Any = SimpleNamespace()
    clock = Clock()
    visitors = Visitors(tmp_path, shared, 10, clock)
    numbers = []
    for clock.now in range(4):
        numbers.append(visitors.add())
    assert [visitors.session(number) is not None for number in numbers] == [
        False,
        False,
        True,
        True,
    ]
    assert len([*tmp_path.iterdir()]) == 2


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

    inside = Starlette(routes=[Route("/own", own, methods=["GET", "POST"])])
    client = TestClient(HostMiddleware(inside, NAMES), "http://studio")
    assert client.get("/own").headers["content-security-policy"] == "sandbox"
    answer = client.post("/own", headers={"origin": "http://evil.example"})
    assert (answer.status_code, answer.headers["x-content-type-options"]) == (403, "nosniff")
    assert "default-src 'self'" in client.get("/gone").headers["content-security-policy"]
    assert client.get("/own", headers={"host": "evil.example"}).status_code == 403


@pytest.mark.parametrize(
    ("frames", "ancestors"),
    [([], "'none'"), (["https://a.example", "http://b"], "https://a.example http://b")],
)
def test_frames_are_allowed_by_origin(frames: list[str], ancestors: str) -> None:
    client = TestClient(HostMiddleware(Starlette(), NAMES, frames), "http://studio")
    policy = client.get("/").headers["content-security-policy"]
    assert policy.endswith(f"; frame-ancestors {ancestors}")
