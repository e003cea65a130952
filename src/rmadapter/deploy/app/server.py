"""The page and its requests, over HTTP. Images and zips are sent as they are, one at a time, all
else as JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from rmadapter.deploy.access import HostMiddleware
from rmadapter.deploy.app.images import MOST_ZIP, plain
from rmadapter.deploy.app.session import Session, Shared
from rmadapter.deploy.app.visitors import Visitors
from rmadapter.errors import UserError

ASSETS = Path(__file__).parents[2] / "assets/app"
MOST_IMAGE, MOST_JSON = 100_000_000, 100_000  # bytes of a request
MINUTE = 60.0  # seconds between two looks for idle visitors
ENDED = "This page was idle for too long, or the server was restarted: reload it."
# A report may come from an uploaded run: it is shown, but nothing in it may run.
SEALED = {
    "Content-Security-Policy": "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'"
}


def build(
    shared: Shared, hours: float = 12, names: Collection[str] = (), frames: Collection[str] = ()
) -> Starlette:
    """hours: without activity, after which a visitor's data is removed. names, frames: as in
    `access.HostMiddleware`."""

    @contextlib.asynccontextmanager
    async def life(app: Starlette) -> AsyncIterator[None]:
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

    return Starlette(
        routes=[
            Route("/", _page),
            *(
                Route(f"/{file.name}", _asset(file))
                for file in ASSETS.iterdir()
                if file.suffix != ".html"
            ),
            *(
                Route(f"/api/{name}", _answered(answer), methods=["POST"])
                for name, answer in ANSWERS.items()
            ),
            Route("/api/state", _answered(lambda session, _: session.state())),
            Route("/api/judged", _answered(lambda session, _: session.judged())),
            Route("/api/image", _image, methods=["PUT"]),
            Route("/api/zip", _zip, methods=["PUT"]),
            Route("/api/ask", _ask, methods=["PUT"]),
            Route("/report", _report),
            Route("/download/{what}", _download),
        ],
        middleware=[Middleware(HostMiddleware, names=names, frames=frames)],
        exception_handlers={UserError: _mistake, ClientDisconnect: _gone},
        lifespan=life,
    )


async def _sweep(visitors: Visitors) -> None:
    while True:
        await asyncio.sleep(MINUTE)
        await run_in_threadpool(visitors.sweep)


async def _mistake(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 400)


async def _gone(_: Request, error: Exception) -> Response:
    """The client left in the middle of sending: nobody reads this."""
    return Response(status_code=400)


# Requests


def _names(session: Session, wanted: dict[str, Any]) -> None:
    with session.lock:
        for name in _asked(wanted):
            session.shelf.add_class(name)


def _asked(wanted: dict[str, Any]) -> list[str]:
    value = wanted.get("names")
    if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
        raise UserError("names: give at least one")
    return value


def _text(wanted: dict[str, Any], field: str) -> str:
    value = wanted.get(field)
    if not isinstance(value, str):
        raise UserError(f"{field} is missing")
    return value


ANSWERS: dict[str, Callable[[Session, dict[str, Any]], Any]] = {
    "classes": _names,
    "remove": lambda session, wanted: session.remove(_text(wanted, "label")),
    "open": lambda session, wanted: session.open(_text(wanted, "run")),
    "train": lambda session, wanted: session.train(_text(wanted, "method")),
    "names": lambda session, _: session.use_names(),
    "add": lambda session, wanted: session.add(_asked(wanted)),
    "export": lambda session, wanted: session.export(_text(wanted, "to")),
    "stop": lambda session, _: session.stop(),
}


def _answered(
    answer: Callable[[Session, dict[str, Any]], Any],
) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        wanted = {}
        if request.method == "POST":
            body = b"".join([part async for part in _bounded(request, MOST_JSON)])
            try:
                wanted = json.loads(body or b"{}")
            except (ValueError, RecursionError):
                raise UserError("the request is not JSON") from None
            if not isinstance(wanted, dict):
                raise UserError("the request is not a JSON object")
        return JSONResponse(await run_in_threadpool(answer, _session(request), wanted))

    return endpoint


async def _page(request: Request) -> Response:
    visitors: Visitors = request.app.state.visitors
    response = FileResponse(ASSETS / "index.html")
    if request.method == "GET" and visitors.known(request.cookies.get(_cookie(request))) is None:
        number = await run_in_threadpool(visitors.welcome)
        # By hand: many browsers keep no cookie in a frame without Partitioned; Starlette writes it
        # from Python 3.14 on.
        cookie = (
            f"{_cookie(request)}={number}; HttpOnly; Path=/; SameSite={request.app.state.same_site}"
        )
        response.headers.append("Set-Cookie", cookie)
    return response


def _cookie(request: Request) -> str:
    """Name of the cookie, with the port: browsers send one port the cookies of another."""
    return f"rmadapter-app-{request.url.port or 80}"


def _asset(file: Path) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(_: Request) -> Response:
        return FileResponse(file)

    return endpoint


def _session(request: Request) -> Session:
    session = request.app.state.visitors.known(request.cookies.get(_cookie(request)))
    if session is None:
        raise UserError(ENDED)
    return session


async def _bounded(request: Request, most: int) -> AsyncIterator[bytes]:
    """The body, part by part. Raises UserError as soon as it is too large."""
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise UserError(f"larger than the {most:,} bytes that this page takes at once")
        yield part


@contextlib.asynccontextmanager
async def _file(request: Request, most: int) -> AsyncIterator[tuple[Session, Path, str]]:
    """The session, the file that a browser sends, deleted unless it is moved away, and its name."""
    session = _session(request)
    name = Path(request.query_params.get("name", "")).name or "image"
    with tempfile.TemporaryDirectory(dir=session.folder, ignore_cleanup_errors=True) as folder:
        path = Path(folder, plain(name))
        try:
            with open(path, "wb") as file:
                async for part in _bounded(request, most):
                    file.write(part)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
        except OSError as error:
            raise UserError(f"{name}: cannot be kept on the server ({error.strerror})") from None
        yield session, path, name


async def _image(request: Request) -> Response:
    def take() -> None:
        with session.lock:
            session.shelf.take(path, request.query_params.get("label", ""), name)

    async with _file(request, MOST_IMAGE) as (session, path, name):
        await run_in_threadpool(take)
    return JSONResponse(None)


async def _zip(request: Request) -> Response:
    async with _file(request, MOST_ZIP) as (session, path, _):
        return JSONResponse(await run_in_threadpool(session.take_zip, path))


async def _ask(request: Request) -> Response:
    async with _file(request, MOST_IMAGE) as (session, path, name):
        return JSONResponse(await run_in_threadpool(session.ask, path, name))


async def _report(request: Request) -> Response:
    return FileResponse(_session(request).report(), headers=SEALED)


async def _download(request: Request) -> Response:
    path = await run_in_threadpool(_session(request).zipped, request.path_params["what"])
    return FileResponse(path, filename=path.name, media_type="application/zip")
