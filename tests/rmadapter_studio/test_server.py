"""The page's server without a browser: requests, limits, errors, visitors and other sites."""

from __future__ import annotations

import errno
import io
import re
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
from rmadapter.errors import UserError
from rmadapter_studio import server as module, visitors as visiting
from rmadapter_studio.hosts import HostMiddleware, refusal
from rmadapter_studio.jobs import Jobs
from rmadapter_studio.requests import PUT
from rmadapter_studio.server import build
from rmadapter_studio.session import Base, Session
from rmadapter_studio.shared import Shared
from rmadapter_studio.visitors import Visitors

ADDRESS = "http://127.0.0.1:8080"


@pytest.fixture
def client(tiny_clip: Backbone) -> Iterator[TestClient]:
    with TestClient(build(Shared(tiny_clip, Jobs())), ADDRESS) as opened:
        opened.get("/")
        yield opened


def put(client: TestClient, what: str, data: bytes, **words: str) -> Any:
    return client.put(f"/api/{what}", content=data, params=words)


def error_of(response: Any, status: int = 400) -> str:
    assert response.status_code == status
    return str(response.json()["error"])


def classes(client: TestClient) -> dict[str, int]:
    return {one["label"]: one["images"] for one in client.get("/api/state").json()["classes"]}


def use_names(client: TestClient, *names: str) -> None:
    assert client.post("/api/classes", json={"names": names}).json() is None
    assert client.post("/api/names").json() is None


def test_page_and_assets(client: TestClient) -> None:
    page = client.get("/")
    assert "<title>Make your own image classifier</title>" in page.text
    assert "script-src" not in page.headers["content-security-policy"]
    kinds = {"page.mjs": "text/javascript", "parts.mjs": "text/javascript", "style.css": "text/css"}
    for name, kind in kinds.items():
        assert client.get(f"/{name}").headers["content-type"].startswith(kind)
    for path in ("/index.html", "/../site.py", "/api", "/report/x"):
        assert client.get(path).status_code == 404


def test_page_names_no_command(client: TestClient) -> None:
    """Whoever looks at it may have no shell."""
    typed = re.compile(r"(?<![\w-])--[a-z]|rmadapter [a-z]|pip install|command line")
    for name in ("", "page.mjs", "parts.mjs"):
        assert typed.findall(client.get(f"/{name}").text) == []
    assert not typed.search(client.get("/api/state").text)


def test_cookie_is_hidden_from_scripts_and_other_sites(client: TestClient) -> None:
    cookie = TestClient(client.app, ADDRESS).get("/").headers["set-cookie"]
    assert cookie.startswith("rmadapter-app-8080=")
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert "set-cookie" not in client.get("/").headers
    stranger = TestClient(client.app, ADDRESS, cookies={"rmadapter-app-8080": "guess"})
    for path in ("/api/state", "/report", "/download/model"):
        assert "reload it" in error_of(stranger.get(path))
    assert "reload it" in error_of(put(stranger, "image", b"", label="a"))


def test_concurrent_visitors_are_separate(client: TestClient, colors: Path) -> None:
    other = TestClient(client.app, ADDRESS)
    other.get("/")
    visits = ((client, "red"), (other, "blue"))

    def work(who: TestClient, label: str) -> None:
        for image in sorted((colors / "train" / label).iterdir()):
            done = put(who, "image", image.read_bytes(), label=label, name=image.name)
            assert done.status_code == 200
        use_names(who, f"{label} thing")

    threads = [threading.Thread(target=work, args=visit) for visit in visits]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    image = (colors / "test/red/0.png").read_bytes()
    for who, label in visits:
        assert classes(who) == {label: 6, f"{label} thing": 0}
        answers = put(who, "ask", image, name="x.png").json()["classes"]
        assert {one["label"] for one in answers} == {label, f"{label} thing"}
        with zipfile.ZipFile(io.BytesIO(who.get("/download/model").content)) as file:
            assert label in file.read("model/model.json").decode()


def test_thumbnails_belong_to_a_visitor(client: TestClient, colors: Path) -> None:
    image = (colors / "train/red/0.png").read_bytes()
    put(client, "image", image, label="red", name="a.png")
    [one] = client.get("/api/state").json()["classes"]
    [name] = one["shown"]
    answer = client.get(f"/thumbnail/{name}")
    assert (answer.headers["content-type"], answer.content[:2]) == ("image/jpeg", b"\xff\xd8")
    other = TestClient(client.app, ADDRESS)
    other.get("/")
    assert name in error_of(other.get(f"/thumbnail/{name}"))
    for wrong in ("%2e%2e%2ffiles%2f" + name, "a%00b", "x" * 5000):
        assert client.get(f"/thumbnail/{wrong}").status_code in (400, 404)


@pytest.mark.parametrize(
    ("what", "data", "name", "start"),
    [
        ("image", b"x" * 101, "big.png", "big.png: larger than the 100"),
        ("image", b"no", "bad.png", "bad.png: not an image"),
        ("zip", b"x" * 51, "big.zip", "big.zip: larger than the 50"),
        ("zip", b"no", "../evil.zip", "evil.zip: not a readable zip file"),
        ("ask", b"no", "bad.png", "There is no classifier yet"),
    ],
)
def test_refused_files(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, what: str, data: bytes, name: str,
    start: str,
) -> None:  # fmt: skip
    most = 50 if what == "zip" else 100
    monkeypatch.setitem(PUT, what, PUT[what]._replace(bytes=most))
    assert error_of(put(client, what, data, label="a", name=name)).startswith(start)
    assert classes(client) == {}


def test_refused_requests(client: TestClient) -> None:
    assert "at least two classes" in error_of(
        client.post("/api/train", json={"method": "rmadapter-plus"})
    )
    assert "method is missing" in error_of(client.post("/api/train"))
    for body in ({}, {"names": "a"}, {"names": []}, {"names": [1]}):
        assert error_of(client.post("/api/classes", json=body)) == "names: give at least one"
    for content in (b"{", b"[1]", b"[" * 50_000, b"\xff"):
        assert "JSON" in error_of(client.post("/api/classes", content=content))
    too_large = client.post("/api/classes", content=b" " * 100_001)
    assert "larger than the 100,000 bytes" in error_of(too_large)
    assert "there is no report" in error_of(client.get("/report"))
    assert "no classifier" in error_of(client.get("/download/web"))
    assert classes(client) == {}


def test_full_disk(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> AsyncIterator[bytes]:
        raise OSError(errno.ENOSPC, "No space left on device")
        yield b""

    monkeypatch.setattr(module, "read_parts", fail)
    assert error_of(put(client, "zip", b"x", name="a.zip")).startswith("a.zip: ")
    assert classes(client) == {}


def test_client_that_leaves_early(client: TestClient) -> None:
    cookie = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
    scope = {
        "type": "http", "http_version": "1.1", "scheme": "http", "method": "PUT",
        "server": ("127.0.0.1", 8080), "root_path": "", "path": "/api/image",
        "query_string": b"label=a",
        "headers": [(b"host", b"127.0.0.1:8080"), (b"cookie", cookie.encode())],
    }  # fmt: skip
    half = {"type": "http.request", "body": b"half", "more_body": True}
    messages = iter([half, {"type": "http.disconnect"}])
    sent: list[Any] = []

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message)

    client.portal.call(client.app, scope, receive, send)  # type: ignore[union-attr]
    assert sent[0]["status"] == 400
    [session] = [visit.session for visit in client.app.state.visitors._visits.values()]  # type: ignore[attr-defined]
    assert not list(session.folder.iterdir())


def test_other_sites_are_refused(client: TestClient) -> None:
    def add(origin: str) -> Any:
        return client.post("/api/classes", json={"names": ["a"]}, headers={"origin": origin})

    assert "Another site" in error_of(add("http://evil.example"), 403)
    other_host = client.get("/api/state", headers={"host": "evil.example"})
    assert "at the address" in error_of(other_host, 403)
    assert classes(client) == {}
    assert add(ADDRESS).status_code == 200
    assert classes(client) == {"a": 0}


def test_uploaded_report_runs_nothing(client: TestClient, finished: Path) -> None:
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
        use_names(client, "red", "blue")
        root = client.app.state.visitors.root  # type: ignore[attr-defined]
        assert [*root.glob("*/model-1/model.json")]
    assert not root.exists()


# Visitors


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def visitors(tmp_path: Path, clock: Clock) -> Visitors:
    """No visitors yet; each stays for ten seconds."""
    shared: Any = SimpleNamespace()
    return Visitors(tmp_path, shared, 10, clock)


def session_of(visitors: Visitors, number: str) -> Session:
    visit = visitors.visit(number)
    assert visit is not None
    return visit.session


def start_job(visitors: Visitors, number: str) -> None:
    session_of(visitors, number).job = SimpleNamespace(ended=False)  # type: ignore[assignment]


def test_visitors_are_known_by_number_alone(visitors: Visitors) -> None:
    one, two = visitors.add(), visitors.add()
    mine, other = session_of(visitors, one), session_of(visitors, two)
    assert mine is session_of(visitors, one)
    assert mine.folder != other.folder
    assert one not in str(mine.folder)
    assert visitors.visit(None) is visitors.visit("") is visitors.visit("guess") is None
    visitors.remove(one)
    assert visitors.visit(one) is None
    assert (mine.folder.exists(), other.folder.exists()) == (False, True)


def test_idle_visitors_are_removed(visitors: Visitors, clock: Clock, tmp_path: Path) -> None:
    away, active, busy = (visitors.add() for _ in range(3))
    start_job(visitors, busy)
    clock.now = 8
    assert visitors.visit(active)
    clock.now = 11
    visitors.sweep()
    assert visitors.visit(away) is None
    assert visitors.visit(active)
    assert visitors.visit(busy)
    assert len([*tmp_path.iterdir()]) == 2


def test_visitors_are_limited_and_active_ones_stay_longest(
    visitors: Visitors, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another site's page, or a monitor, may open the page again and again."""
    monkeypatch.setattr(visiting, "MAX_VISITORS", 4)
    training, labelled = visitors.add(), visitors.add()
    start_job(visitors, training)
    session_of(visitors, labelled).images.add_class("cat")
    numbers = []
    for clock.now in range(1, 9):
        numbers.append(visitors.add())
        assert visitors.visit(numbers[-1])
    assert [visitors.visit(number) is not None for number in numbers[-3:]] == [False, True, True]
    assert visitors.visit(training)
    assert visitors.visit(labelled)
    for clock.now in range(9, 12):
        session_of(visitors, visitors.add()).images.add_class("dog")
    assert visitors.visit(training)
    assert visitors.visit(labelled) is None
    assert len([*tmp_path.iterdir()]) == 4


def test_who_sent_images_or_a_run_stays_longer_than_who_typed_names(
    visitors: Visitors, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(visiting, "MAX_VISITORS", 5)
    photos, run, opened = (visitors.add() for _ in range(3))
    session_of(visitors, photos).images.add_class("dog")
    session_of(visitors, photos).images.bytes = 5_000_000
    for number, data in ((run, ""), (opened, "the server's own")):
        (tmp_path / f"run-{number}").mkdir()
        (tmp_path / f"run-{number}/model").write_bytes(bytes(1000))
        session_of(visitors, number).base = Base(tmp_path / f"run-{number}", data)
        session_of(visitors, number).run = tmp_path / f"run-{number}"
    for clock.now in range(1, 30):
        session = session_of(visitors, visitors.add(str(clock.now)))
        session.images.add_class("cat")
        if clock.now % 2:
            session.images.bytes = 100
    assert visitors.visit(photos)
    assert visitors.visit(run)
    assert visitors.visit(opened) is None


def test_new_visitors_from_one_address_are_limited_by_the_minute(
    visitors: Visitors, clock: Clock
) -> None:
    for address in ("192.0.2.1", "2001:db8:1:2::"):
        clock.now += 100
        for number in range(visiting.MAX_NEW_VISITORS):
            visitors.add(f"{address}{number}" if ":" in address else address)
        with pytest.raises(UserError, match="wait"):
            visitors.add(f"{address}ff" if ":" in address else address)
        visitors.add("192.0.2.2")
        visitors.add("2001:db8:1:3::1")
        clock.now += 61
        visitors.add(address)


def test_a_visitor_holds_few_threads(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests of others are answered while one visitor's many wait."""
    other = TestClient(client.app, ADDRESS)
    other.get("/")
    gate, lock, waiting = threading.Event(), threading.Lock(), []
    mine = session_of(client.app.state.visitors, client.cookies["rmadapter-app-8080"])  # type: ignore[attr-defined]

    def state() -> dict[str, object]:
        with lock:
            waiting.append(1)
        assert gate.wait(30)
        return {}

    monkeypatch.setattr(mine, "state", state)
    threads = [threading.Thread(target=client.get, args=("/api/state",)) for _ in range(60)]
    for thread in threads:
        thread.start()
    try:
        assert other.get("/api/state").status_code == 200
        assert len(waiting) <= visiting.MAX_THREADS
    finally:
        gate.set()
        for thread in threads:
            thread.join()
    assert len(waiting) == 60


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
