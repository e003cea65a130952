"""The page, its requests over HTTP, and its visitors.

Images and zips are sent as they are, one at a time, all else as JSON. A random number in a cookie
identifies each browser, which has a private folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
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
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from rmadapter.errors import UserError
from rmadapter_studio import labelling
from rmadapter_studio.hosts import HostMiddleware
from rmadapter_studio.images import MOST_ZIP, safe_name
from rmadapter_studio.jobs import without_commands
from rmadapter_studio.session import Session
from rmadapter_studio.shared import Shared, visitors_folder
from rmadapter_studio.words import ASSETS, page

MOST_IMAGE, MOST_JSON = 100_000_000, 100_000  # bytes of a request
MINUTE = 60.0  # seconds between two checks for idle visitors
MOST_VISITORS = 200
MOST_NEW = 30  # visitors from one address in a minute
THREADS = 3  # of the server's forty, that one visitor's requests may hold: a zip, news and a stop
GONE = 410  # status, after which the page for labelling goes on as a new visitor
EXPIRED = "This page was idle for too long, or the server was restarted: reload it."
TOO_MANY = "Too many new visitors came from your address: wait a minute, then reload the page."
# A report may come from an uploaded run: it is shown, but nothing in it may run.
SANDBOX = {
    "Content-Security-Policy": "sandbox; default-src 'none'; img-src data:; "
    "style-src 'unsafe-inline'"
}
# The browser keeps a picture while it is labelled; it is of one visitor.
KEPT = {"Cache-Control": "private, max-age=3600"}
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
        with visitors_folder() as root:
            app.state.same_site = "None; Secure; Partitioned" if frames else "Lax"
            app.state.visitors = Visitors(root, shared, 3600 * hours)
            sweeping = asyncio.create_task(_sweep(app.state.visitors))
            if shared.labelling:
                shared.labelling.start()
            try:
                yield
            finally:
                sweeping.cancel()
                await run_in_threadpool(app.state.visitors.close)

    files = [file for file in ASSETS.iterdir() if file.suffix in (".mjs", ".css")]
    return Starlette(
        routes=[
            Route("/", _page(functools.partial(page, "train"))),
            Route("/label", _page(functools.partial(page, "label"))),
            *(Route(f"/{file.name}", _asset(file)) for file in files),
            *(
                Route(f"/api/{name}", _json_endpoint(action), methods=["POST"])
                for name, action in ACTIONS.items()
            ),
            Route("/api/state", _json_endpoint(lambda session, _: session.state())),
            Route("/api/judged", _json_endpoint(lambda session, _: session.scores())),
            *(
                Route(f"/api/label/{name}", _json_endpoint(_labels(action)), methods=["POST"])
                for name, action in labelling.ACTIONS.items()
            ),
            Route("/api/label/image", _label_image, methods=["PUT"]),
            Route("/api/label/zip", _label_zip, methods=["PUT"]),
            Route("/picture/{number}", _picture),
            Route("/labels/{to}", _take_labels),
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


class _ExpiredError(UserError):
    """The server does not know the visitor, who lost nothing: what they label is in its folder."""


async def _user_error(_: Request, error: Exception) -> Response:
    status = GONE if isinstance(error, _ExpiredError) else 400
    return JSONResponse({"error": without_commands(str(error))}, status)


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
    visitors = _visitors(request)
    session = visitors.session(request.cookies.get(_cookie(request)))
    if session is None:
        raise (_ExpiredError if visitors.shared.project else UserError)(EXPIRED)
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


def _page(content: Callable[[Request], str]) -> Endpoint:
    """Return an endpoint that sends a page, and begins a session for a new visitor."""

    async def endpoint(request: Request) -> Response:
        visitors = _visitors(request)
        response = HTMLResponse(content(request))
        cookie = _cookie(request)
        if request.method == "GET" and visitors.session(request.cookies.get(cookie)) is None:
            address = request.client.host if request.client else ""
            number = await run_in_threadpool(visitors.add, address)
            # By hand: many browsers keep no cookie in a frame without Partitioned; Starlette writes
            # it from Python 3.14 on.
            same_site = request.app.state.same_site
            header = f"{cookie}={number}; HttpOnly; Path=/; SameSite={same_site}"
            response.headers.append("Set-Cookie", header)
        return response

    return endpoint


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


def _labels(
    action: Callable[[labelling.Labelling, Body, str], object],
) -> Callable[[Session, Body], object]:
    """Return an action of the visitor's project."""

    def act(session: Session, body: Body) -> object:
        if session.labelling is None:
            if action is labelling.ACTIONS["state"]:
                return None
            raise UserError("there are no images to label yet: add some first")
        return action(session.labelling, body, session.folder.name)

    return act


async def _label_image(request: Request) -> Response:
    async with _upload(request, MOST_IMAGE) as (session, path, name):
        await _in_thread(request, session.label_image, path, name)
    return JSONResponse(None)


async def _label_zip(request: Request) -> Response:
    async with _upload(request, MOST_ZIP) as (session, path, _):
        return JSONResponse(await _in_thread(request, session.label_zip, path))


async def _picture(request: Request) -> Response:
    of = _session(request).labelling
    if of is None:
        raise UserError(labelling.GONE)
    size = request.query_params.get("size", "small")
    data = await _in_thread(request, of.picture, request.path_params["number"], size)
    return Response(data, media_type="image/jpeg", headers=KEPT)


async def _take_labels(request: Request) -> Response:
    session = _session(request)
    if session.labelling is None:
        raise UserError("no image has a label yet")
    take, to = session.labelling.take, request.path_params["to"]
    file = await _in_thread(request, take, to, session.folder)
    return FileResponse(file, filename=file.name)


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
            visit.session.close()
            shutil.rmtree(visit.session.folder, ignore_errors=True)

    def close(self) -> None:
        """End the work of all visitors."""
        for visit in [*self._visits.values()]:
            visit.session.close()
        if self.shared.labelling:
            self.shared.labelling.close()
        self.shared.jobs.close()

    def sweep(self) -> None:
        """Remove visitors who were idle for too long; a running job keeps them."""
        for number, visit in [*self._visits.items()]:
            if self.clock() - visit.seen > self.seconds and not visit.session.busy:
                self.remove(number)


async def _sweep(visitors: Visitors) -> None:
    while True:
        await asyncio.sleep(MINUTE)
        await run_in_threadpool(visitors.sweep)
