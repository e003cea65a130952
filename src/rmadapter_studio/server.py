"""The pages, and their requests over HTTP.

Images and zips are sent as they are, one at a time, all else as JSON. A random number in a cookie
identifies each browser, which has a private folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from pathlib import Path
from typing import TypeAlias

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import (
    FileResponse,
    HTMLResponse,
    JSONResponse,
    RedirectResponse,
    Response,
)
from starlette.routing import Route

from rmadapter import UserError
from rmadapter_studio import labelling
from rmadapter_studio.hosts import HostMiddleware
from rmadapter_studio.images import safe_name
from rmadapter_studio.jobs import without_commands
from rmadapter_studio.requests import POST, PUT, READ, Action, Body
from rmadapter_studio.shared import Shared
from rmadapter_studio.visitors import MINUTE, Visit, Visitors, visitors_folder
from rmadapter_studio.words import ASSETS, page

MAX_JSON_BYTES = 100_000  # of a request
UNKNOWN_VISITOR = 410  # status, after which the page for labelling goes on as a new visitor
KEY = "key"  # in the address, and at the end of the name of a cookie
UNINVITED = "Open the address that rmadapter app printed: it ends in a key."
EXPIRED = "This page was idle for too long, or the server was restarted: reload it."
# A report may come from an uploaded run: it is shown, but nothing in it may run.
SANDBOX = {
    "Content-Security-Policy": "sandbox; default-src 'none'; img-src data:; "
    "style-src 'unsafe-inline'"
}
# The browser keeps a picture while it is labelled; it is of one visitor.
CACHE_HEADERS = {"Cache-Control": "private, max-age=3600"}
Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]


def build(
    shared: Shared, hours: float = 12, names: Collection[str] = (), frames: Collection[str] = ()
) -> Starlette:
    """Build the application.

    Args:
        shared: What all visitors share.
        hours: Time without activity after which a visitor's data is removed.
        names: As in `HostMiddleware`.
        frames: As in `HostMiddleware`.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        with visitors_folder() as root:
            app.state.same_site = "None; Secure; Partitioned" if frames else "Lax"
            app.state.visitors = Visitors(root, shared, 3600 * hours)
            sweeping = asyncio.create_task(_sweep(app.state.visitors))
            if shared.labelling:
                shared.labelling.fitting.start()
            try:
                yield
            finally:
                sweeping.cancel()
                await run_in_threadpool(app.state.visitors.close)

    files = [file for file in ASSETS.iterdir() if file.suffix in (".mjs", ".css")]
    return Starlette(
        routes=[
            Route("/", _page("train")),
            Route("/label", _page("label")),
            *(Route(f"/{file.name}", _asset(file)) for file in files),
            *(Route(f"/api/{name}", _json(action)) for name, action in READ.items()),
            *(
                Route(f"/api/{name}", _json(action), methods=["POST"])
                for name, action in POST.items()
            ),
            *(Route(f"/api/{name}", _upload(name), methods=["PUT"]) for name in PUT),
            Route("/picture/{number}", _picture),
            Route("/labels/{to}", _take_labels),
            Route("/thumbnail/{name}", _thumbnail),
            Route("/report", _report),
            Route("/download/{what}", _download),
        ],
        middleware=[Middleware(HostMiddleware, names=names, frames=frames)],
        exception_handlers={UserError: _user_error, ClientDisconnect: _client_left},
        lifespan=lifespan,
    )


async def _sweep(visitors: Visitors) -> None:
    while True:
        await asyncio.sleep(MINUTE)
        await run_in_threadpool(visitors.sweep)


class _ExpiredError(UserError):
    """The server does not know the visitor, who lost nothing: what they label is in its folder."""


async def _user_error(_: Request, error: Exception) -> Response:
    status = UNKNOWN_VISITOR if isinstance(error, _ExpiredError) else 400
    return JSONResponse({"error": without_commands(str(error))}, status)


async def _client_left(_: Request, error: Exception) -> Response:
    """The client left in the middle of sending: nobody reads this."""
    return Response(status_code=400)


# Visitors


def _visitors(request: Request) -> Visitors:
    visitors = request.app.state.visitors
    assert isinstance(visitors, Visitors)
    return visitors


def _cookie(request: Request) -> str:
    """Name the cookie, with the port: browsers send one port the cookies of another."""
    return f"rmadapter-app-{request.url.port or 80}"


def _visit(request: Request) -> Visit:
    visitors = _visitors(request)
    visit = visitors.visit(request.cookies.get(_cookie(request)))
    if visit is None:
        raise (_ExpiredError if visitors.shared.project else UserError)(EXPIRED)
    return visit


def _page(name: str) -> Endpoint:
    """Return an endpoint that sends one of PAGES, and begins a session for a new visitor. The
    secret goes from the address into a cookie."""

    async def endpoint(request: Request) -> Response:
        visitors, cookie = _visitors(request), _cookie(request)
        known = visitors.visit(request.cookies.get(cookie)) is not None
        secret = visitors.shared.secret
        given = request.query_params.get(KEY) or request.cookies.get(f"{cookie}-{KEY}", "")
        if not known and not secrets.compare_digest(given.encode(), secret.encode()):
            return HTMLResponse(UNINVITED, 403)
        response: Response = (
            RedirectResponse(request.url.path, 303)
            if KEY in request.query_params
            else HTMLResponse(page(name, request))
        )
        if not known and request.method == "GET" and _was_opened(request):
            address = request.client.host if request.client else ""
            number = await run_in_threadpool(visitors.add, address)
            # By hand: many browsers keep no cookie in a frame without Partitioned; Starlette writes
            # it from Python 3.14 on.
            rest = f"HttpOnly; Path=/; SameSite={request.app.state.same_site}"
            response.headers.append("Set-Cookie", f"{cookie}={number}; {rest}")
            if secret:
                response.headers.append("Set-Cookie", f"{cookie}-{KEY}={secret}; {rest}")
        return response

    return endpoint


def _was_opened(request: Request) -> bool:
    """Return whether a person opened the page, as far as the browser says it: what another site
    embeds is no visitor, unless it may show the page in a frame."""
    if request.headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin"):
        return True
    opened = ["document"] if request.app.state.same_site == "Lax" else ["document", "iframe"]
    return request.headers.get("Sec-Fetch-Dest") in opened


# What visitors send


def _json(action: Action) -> Endpoint:
    """Return an endpoint that takes a JSON object, and answers with JSON."""

    async def endpoint(request: Request) -> Response:
        body: Body = {}
        if request.method == "POST":
            data = b"".join([part async for part in read_parts(request, MAX_JSON_BYTES)])
            try:
                body = json.loads(data or b"{}")
            except (ValueError, RecursionError):
                raise UserError("the request is not JSON") from None
            if not isinstance(body, dict):
                raise UserError("the request is not a JSON object")
        visit = _visit(request)
        return JSONResponse(await visit.work(action, visit.session, body))

    return endpoint


def _upload(kind: str) -> Endpoint:
    """Return an endpoint that takes a file as `PUT` says, and answers with JSON. The file is
    deleted unless it is moved away."""

    async def endpoint(request: Request) -> Response:
        visit, query, upload = _visit(request), request.query_params, PUT[kind]
        home, name = visit.session.folder, Path(query.get("name", "")).name or "image"
        with tempfile.TemporaryDirectory(dir=home, ignore_cleanup_errors=True) as folder:
            path = Path(folder, safe_name(name))
            try:
                with open(path, "wb") as file:
                    async for part in read_parts(request, upload.bytes):
                        file.write(part)
            except UserError as error:
                raise UserError(f"{name}: {error}") from None
            except OSError as error:
                reason = error.strerror
                raise UserError(f"{name}: cannot be kept on the server ({reason})") from None
            label = query.get("label", "")
            return JSONResponse(await visit.work(upload.take, visit.session, path, name, label))

    return endpoint


async def read_parts(request: Request, most: int) -> AsyncIterator[bytes]:
    """Read the body, part by part. Raises UserError as soon as it is too large."""
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise UserError(f"larger than the {most:,} bytes that this page takes at once")
        yield part


# What they get


def _asset(file: Path) -> Endpoint:
    async def endpoint(_: Request) -> Response:
        return FileResponse(file)

    return endpoint


async def _picture(request: Request) -> Response:
    visit = _visit(request)
    of = visit.session.labelling
    if of is None:
        raise UserError(labelling.NO_SUCH_IMAGE)
    size = request.query_params.get("size", "small")
    data = await visit.work(of.picture, request.path_params["number"], size)
    return Response(data, media_type="image/jpeg", headers=CACHE_HEADERS)


async def _take_labels(request: Request) -> Response:
    visit = _visit(request)
    of = visit.session.labelling
    if of is None:
        raise UserError("no image has a label yet")
    file = await visit.work(of.take, request.path_params["to"], visit.session.folder)
    return FileResponse(file, filename=file.name)


async def _thumbnail(request: Request) -> Response:
    visit = _visit(request)
    data = await visit.work(visit.session.images.thumbnail, request.path_params["name"])
    return Response(data, media_type="image/jpeg")


async def _report(request: Request) -> Response:
    return FileResponse(_visit(request).session.report(), headers=SANDBOX)


async def _download(request: Request) -> Response:
    visit = _visit(request)
    path = await visit.work(visit.session.zipped, request.path_params["what"])
    return FileResponse(path, filename=path.name, media_type="application/zip")
