"""The page, its requests over HTTP, and its visitors.

Images and zips are sent as they are, one at a time, all else as JSON. A random number in a cookie
identifies each browser, which has a private folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rmadapter.deploy.app.images import MOST_ZIP, safe_name
from rmadapter.deploy.app.jobs import without_commands
from rmadapter.deploy.app.session import Session, Shared
from rmadapter.deploy.sockets import is_known_host, part_of
from rmadapter.errors import UserError

ASSETS = Path(__file__).parents[2] / "assets/app"
MOST_IMAGE, MOST_JSON = 100_000_000, 100_000  # bytes of a request
MINUTE = 60.0  # seconds between two checks for idle visitors
MOST_VISITORS = 200
MOST_NEW = 30  # visitors from one address in a minute
THREADS = 3  # of the server's forty, that one visitor's requests may hold: a zip, news and a stop
EXPIRED = "This page was idle for too long, or the server was restarted: reload it."
TOO_MANY = "Too many new visitors came from your address: wait a minute, then reload the page."
# A report may come from an uploaded run: it is shown, but nothing in it may run.
SANDBOX = {
    "Content-Security-Policy": "sandbox; default-src 'none'; img-src data:; "
    "style-src 'unsafe-inline'"
}
SAFE_METHODS = ("GET", "HEAD")
POLICY = "Content-Security-Policy"
PAGE_HEADERS = {
    POLICY: "default-src 'self'; img-src 'self' data:; media-src blob:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors ",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
Body = dict[str, object]
P = ParamSpec("P")
T = TypeVar("T")
Endpoint = Callable[[Request], Awaitable[Response]]


def build(
    shared: Shared, hours: float = 12, names: Collection[str] = (), frames: Collection[str] = ()
) -> Starlette:
    """Build the application.

    hours: without activity, after which a visitor's data is removed. names, frames: as in
    `HostMiddleware`.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        with tempfile.TemporaryDirectory(
            prefix="rmadapter-app-", ignore_cleanup_errors=True
        ) as root:
            app.state.same_site = "None; Secure; Partitioned" if frames else "Lax"
            app.state.visitors = Visitors(Path(root), shared, 3600 * hours)
            sweeping = asyncio.create_task(_sweep(app.state.visitors))
            try:
                yield
            finally:
                sweeping.cancel()
                await run_in_threadpool(shared.jobs.close)

    files = [file for file in ASSETS.iterdir() if file.suffix != ".html"]
    return Starlette(
        routes=[
            Route("/", _page),
            *(Route(f"/{file.name}", _asset(file)) for file in files),
            *(
                Route(f"/api/{name}", _json_endpoint(action), methods=["POST"])
                for name, action in ACTIONS.items()
            ),
            Route("/api/state", _json_endpoint(lambda session, _: session.state())),
            Route("/api/judged", _json_endpoint(lambda session, _: session.scores())),
            Route("/api/image", _image, methods=["PUT"]),
            Route("/api/zip", _zip, methods=["PUT"]),
            Route("/api/ask", _ask, methods=["PUT"]),
            Route("/thumbnail/{name}", _thumbnail),
            Route("/report", _report),
            Route("/download/{what}", _download),
        ],
        middleware=[Middleware(HostMiddleware, names=names, frames=frames)],
        exception_handlers={UserError: _user_error, ClientDisconnect: _client_left},
        lifespan=lifespan,
    )


async def _user_error(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": without_commands(str(error))}, 400)


async def _client_left(_: Request, error: Exception) -> Response:
    """The client left in the middle of sending: nobody reads this."""
    return Response(status_code=400)


# Requests with JSON


def _names(body: Body) -> list[str]:
    names = body.get("names")
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not names or not is_list:
        raise UserError("names: give at least one")
    return cast("list[str]", names)


def _text(body: Body, field: str) -> str:
    value = body.get(field)
    if not isinstance(value, str):
        raise UserError(f"{field} is missing")
    return value


def _add_classes(session: Session, body: Body) -> None:
    with session.lock:
        for name in _names(body):
            session.images.add_class(name)


ACTIONS: dict[str, Callable[[Session, Body], object]] = {
    "classes": _add_classes,
    "remove": lambda session, body: session.remove(_text(body, "label")),
    "open": lambda session, body: session.open(_text(body, "run")),
    "train": lambda session, body: session.train(_text(body, "method")),
    "names": lambda session, _: session.use_names(),
    "add": lambda session, body: session.add(_names(body)),
    "export": lambda session, body: session.export(_text(body, "to")),
    "stop": lambda session, _: session.stop(),
}


def _json_endpoint(action: Callable[[Session, Body], object]) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        body: Body = {}
        if request.method == "POST":
            data = b"".join([part async for part in read_parts(request, MOST_JSON)])
            try:
                body = json.loads(data or b"{}")
            except (ValueError, RecursionError):
                raise UserError("the request is not JSON") from None
            if not isinstance(body, dict):
                raise UserError("the request is not a JSON object")
        return JSONResponse(await _in_thread(request, action, _session(request), body))

    return endpoint


def _session(request: Request) -> Session:
    session = _visitors(request).session(request.cookies.get(_cookie(request)))
    if session is None:
        raise UserError(EXPIRED)
    return session


async def _in_thread(request: Request, work: Callable[P, T], *words: P.args, **more: P.kwargs) -> T:
    """Do a visitor's work in a thread, once one of theirs is free."""
    async with _visitors(request).turns(request.cookies.get(_cookie(request))):
        return await run_in_threadpool(work, *words, **more)


def _visitors(request: Request) -> Visitors:
    visitors = request.app.state.visitors
    assert isinstance(visitors, Visitors)
    return visitors


def _cookie(request: Request) -> str:
    """Name the cookie, with the port: browsers send one port the cookies of another."""
    return f"rmadapter-app-{request.url.port or 80}"


# Files


async def _page(request: Request) -> Response:
    visitors = _visitors(request)
    response = FileResponse(ASSETS / "index.html")
    cookie = _cookie(request)
    if request.method == "GET" and visitors.session(request.cookies.get(cookie)) is None:
        address = request.client.host if request.client else ""
        number = await run_in_threadpool(visitors.add, address)
        # By hand: many browsers keep no cookie in a frame without Partitioned; Starlette writes it
        # from Python 3.14 on.
        same_site = request.app.state.same_site
        header = f"{cookie}={number}; HttpOnly; Path=/; SameSite={same_site}"
        response.headers.append("Set-Cookie", header)
    return response


def _asset(file: Path) -> Endpoint:
    async def endpoint(_: Request) -> Response:
        return FileResponse(file)

    return endpoint


async def read_parts(request: Request, most: int) -> AsyncIterator[bytes]:
    """Read the body, part by part. Raises UserError as soon as it is too large."""
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise UserError(f"larger than the {most:,} bytes that this page takes at once")
        yield part


@contextlib.asynccontextmanager
async def _upload(request: Request, most: int) -> AsyncIterator[tuple[Session, Path, str]]:
    """Receive a file: yields the session, the file, deleted unless it is moved away, and its
    name."""
    session = _session(request)
    name = Path(request.query_params.get("name", "")).name or "image"
    with tempfile.TemporaryDirectory(dir=session.folder, ignore_cleanup_errors=True) as folder:
        path = Path(folder, safe_name(name))
        try:
            with open(path, "wb") as file:
                async for part in read_parts(request, most):
                    file.write(part)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
        except OSError as error:
            raise UserError(f"{name}: cannot be kept on the server ({error.strerror})") from None
        yield session, path, name


async def _image(request: Request) -> Response:
    def add() -> None:
        with session.lock:
            session.images.add(path, request.query_params.get("label", ""), name)

    async with _upload(request, MOST_IMAGE) as (session, path, name):
        await _in_thread(request, add)
    return JSONResponse(None)


async def _zip(request: Request) -> Response:
    async with _upload(request, MOST_ZIP) as (session, path, _):
        return JSONResponse(await _in_thread(request, session.add_zip, path))


async def _ask(request: Request) -> Response:
    async with _upload(request, MOST_IMAGE) as (session, path, name):
        return JSONResponse(await _in_thread(request, session.predict, path, name))


async def _thumbnail(request: Request) -> Response:
    images = _session(request).images
    data = await _in_thread(request, images.thumbnail, request.path_params["name"])
    return Response(data, media_type="image/jpeg")


async def _report(request: Request) -> Response:
    return FileResponse(_session(request).report(), headers=SANDBOX)


async def _download(request: Request) -> Response:
    path = await _in_thread(request, _session(request).zipped, request.path_params["what"])
    return FileResponse(path, filename=path.name, media_type="application/zip")


# Visitors


@dataclass(eq=False)
class _Visit:
    """turns: that the visitor's requests take to do their work."""

    session: Session
    seen: float
    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(THREADS))


class Visitors:
    """The visitors of the page.

    root: of their folders. seconds: without activity, after which a visitor is removed. clock: in
    seconds. At most MOST_VISITORS: to make room, those go first who did nothing yet, then those who
    sent fewer bytes (names alone are none) by a factor of ten, then the one idle the longest. At
    most MOST_NEW come from one address in a minute.
    """

    def __init__(
        self,
        root: Path,
        shared: Shared,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.root, self.shared, self.seconds, self.clock = root, shared, seconds, clock
        self._visits: dict[str, _Visit] = {}
        self._new: dict[str, list[float]] = {}  # by address: when its visitors came
        self._lock = threading.Lock()

    def session(self, number: str | None) -> Session | None:
        """Return the session of a visitor's number, or None."""
        with self._lock:
            visit = self._visits.get(number or "")
            if visit is None:
                return None
            visit.seen = self.clock()
            return visit.session

    def turns(self, number: str | None) -> asyncio.Semaphore:
        """Return the turns of a visitor's requests. Raises UserError for an unknown one."""
        with self._lock:
            visit = self._visits.get(number or "")
        if visit is None:
            raise UserError(EXPIRED)
        return visit.turns

    def add(self, address: str = "") -> str:
        """Return the number of a new visitor; it does not reveal their folder. Raises UserError for
        too many from one network address."""
        self._admit(address)
        number = secrets.token_urlsafe(32)
        folder = Path(tempfile.mkdtemp(dir=self.root))
        with self._lock:
            excess = max(len(self._visits) + 1 - MOST_VISITORS, 0)
            removed = sorted(self._visits, key=self._claim)[:excess]
            self._visits[number] = _Visit(Session(folder, self.shared), self.clock())
        for each in removed:
            self.remove(each)
        return number

    def _admit(self, address: str) -> None:
        """Count a visitor from an address (of IPv6 the network, of which one machine may use any
        part)."""
        if ":" in address:
            address = ":".join(address.split(":")[:4])
        now = self.clock()
        with self._lock:
            recent = {
                place: [moment for moment in moments if now - moment < MINUTE]
                for place, moments in self._new.items()
            }
            self._new = {place: moments for place, moments in recent.items() if moments}
            moments = self._new.setdefault(address, [])
            if len(moments) >= MOST_NEW:
                raise UserError(TOO_MANY)
            moments.append(now)

    def _claim(self, number: str) -> tuple[bool, bool, int, float]:
        """Sort key: who is to stay longest comes last."""
        visit = self._visits[number]
        session = visit.session
        return session.busy, not session.empty, session.given, visit.seen

    def remove(self, number: str) -> None:
        """Remove a visitor, and delete their folder."""
        with self._lock:
            visit = self._visits.pop(number, None)
        if visit:
            visit.session.stop()
            shutil.rmtree(visit.session.folder, ignore_errors=True)

    def sweep(self) -> None:
        """Remove visitors who were idle for too long; a running job keeps them."""
        for number, visit in [*self._visits.items()]:
            if self.clock() - visit.seen > self.seconds and not visit.session.busy:
                self.remove(number)


async def _sweep(visitors: Visitors) -> None:
    while True:
        await asyncio.sleep(MINUTE)
        await run_in_threadpool(visitors.sweep)


# Hosts and origins


class HostMiddleware:
    """Refuse requests as `refusal` says, and add headers that forbid things to browsers.

    names: as in `refusal`. frames: origins of the pages that may show it in a frame.
    """

    def __init__(
        self, app: ASGIApp, names: Collection[str] = (), frames: Collection[str] = ()
    ) -> None:
        self.app = app
        self.names = {name.casefold() for name in names}
        self.headers = {
            **PAGE_HEADERS,
            POLICY: PAGE_HEADERS[POLICY] + (" ".join(frames) or "'none'"),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self.headers.items():
                    headers.setdefault(name, value)
            await send(message)

        if scope["type"] == "http":
            headers = Headers(scope=scope)
            host, origin = headers.get("host", ""), headers.get("origin")
            reason = refusal(scope["method"], host, origin, self.names)
            if reason:
                await JSONResponse({"error": reason}, 403)(scope, receive, send_guarded)
                return
        await self.app(scope, receive, send_guarded)


def refusal(method: str, host: str, origin: str | None, names: Collection[str]) -> str:
    """Return why a request is not served, or "".

    host, origin: its headers. names: host names of this server besides "localhost" and any IP
    address. The host reveals a site that points its own name at this machine (DNS rebinding), the
    origin one whose page sends something here (CSRF).
    """
    if not is_known_host(host, names):
        return "Open this page at the address that the terminal shows."
    if method not in SAFE_METHODS and origin is not None and part_of(origin, "netloc") != host:
        return "Another site's page sent this request, which is not allowed."
    return ""
