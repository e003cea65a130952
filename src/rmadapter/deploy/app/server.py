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
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from rmadapter.deploy.access import HostMiddleware
from rmadapter.deploy.app.images import MOST_ZIP, safe_name
from rmadapter.deploy.app.session import Session, Shared
from rmadapter.errors import UserError

ASSETS = Path(__file__).parents[2] / "assets/app"
MOST_IMAGE, MOST_JSON = 100_000_000, 100_000  # bytes of a request
MINUTE = 60.0  # seconds between two checks for idle visitors
MOST_VISITORS = 200
EXPIRED = "This page was idle for too long, or the server was restarted: reload it."
# A report may come from an uploaded run: it is shown, but nothing in it may run.
SANDBOX = {
    "Content-Security-Policy": "sandbox; default-src 'none'; img-src data:; "
    "style-src 'unsafe-inline'"
}
Body = dict[str, object]
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
            Route("/report", _report),
            Route("/download/{what}", _download),
        ],
        middleware=[Middleware(HostMiddleware, names=names, frames=frames)],
        exception_handlers={UserError: _user_error, ClientDisconnect: _client_left},
        lifespan=lifespan,
    )


async def _user_error(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 400)


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
        return JSONResponse(await run_in_threadpool(action, _session(request), body))

    return endpoint


def _session(request: Request) -> Session:
    session = _visitors(request).session(request.cookies.get(_cookie(request)))
    if session is None:
        raise UserError(EXPIRED)
    return session


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
        number = await run_in_threadpool(visitors.add)
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
        await run_in_threadpool(add)
    return JSONResponse(None)


async def _zip(request: Request) -> Response:
    async with _upload(request, MOST_ZIP) as (session, path, _):
        return JSONResponse(await run_in_threadpool(session.add_zip, path))


async def _ask(request: Request) -> Response:
    async with _upload(request, MOST_IMAGE) as (session, path, name):
        return JSONResponse(await run_in_threadpool(session.predict, path, name))


async def _report(request: Request) -> Response:
    return FileResponse(_session(request).report(), headers=SANDBOX)


async def _download(request: Request) -> Response:
    path = await run_in_threadpool(_session(request).zipped, request.path_params["what"])
    return FileResponse(path, filename=path.name, media_type="application/zip")


# Visitors


@dataclass(eq=False)
class _Visit:
    session: Session
    seen: float


class Visitors:
    """The visitors of the page.

    root: of their folders. seconds: without activity, after which a visitor is removed. clock: in
    seconds. At most MOST_VISITORS: to make room, those go first who did nothing yet, then the one
    idle the longest.
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
        self._lock = threading.Lock()

    def session(self, number: str | None) -> Session | None:
        """Return the session of a visitor's number, or None."""
        with self._lock:
            visit = self._visits.get(number or "")
            if visit is None:
                return None
            visit.seen = self.clock()
            return visit.session

    def add(self) -> str:
        """Return the number of a new visitor; it does not reveal their folder."""
        number = secrets.token_urlsafe(32)
        folder = Path(tempfile.mkdtemp(dir=self.root))
        with self._lock:
            excess = max(len(self._visits) + 1 - MOST_VISITORS, 0)
            removed = sorted(self._visits, key=self._claim)[:excess]
            self._visits[number] = _Visit(Session(folder, self.shared), self.clock())
        for each in removed:
            self.remove(each)
        return number

    def _claim(self, number: str) -> tuple[bool, bool, float]:
        """Sort key: who is to stay longest comes last."""
        visit = self._visits[number]
        return visit.session.busy, not visit.session.empty, visit.seen

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
