"""Admit requests by key, host name and size, count them, and read their images: files of a form, or
base64 in JSON."""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import os
import time
from collections.abc import AsyncGenerator, Collection, Iterator
from contextlib import contextmanager
from email.message import Message as MailMessage
from typing import NamedTuple

from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rmadapter_serve.limits import Limits
from rmadapter_serve.service import Service, Upload
from rmadapter_serve.sockets import is_known_host
from rmadapter_serve.waiting import too_busy

OPEN_PATHS = ("/health", "/ready")  # need no key
CLIENT_LEFT = 499  # status to count when the client leaves before its answer
HEADERS = 16_384  # bytes of a request before its body
CLOSE = (b"connection", b"close")
NO_SNIFFING = (b"x-content-type-options", b"nosniff")
FIELD = "files"
NAME = 200  # characters kept of a file's name
PART = 1 << 16  # bytes of a form that are parsed at once
HOW = (
    f'send files as multipart/form-data under "{FIELD}", or {{"images": ["base64", ...]}} as '
    "application/json"
)


class AccessMiddleware:
    """Check keys, limit bodies and count requests before an application answers them.

    Args:
        app: Application that answers.
        service: Its limits, counters, and whether connections are closed after an answer.
        key: Key that a request must have, "" for none.
        hosts: Names of this server, as for `is_known_host`; None allows any.
    """

    def __init__(
        self, app: ASGIApp, service: Service, key: str = "", hosts: Collection[str] | None = None
    ) -> None:
        self.app = app
        self._service = service
        self._limits = service.limits
        self._key = os.fsencode(key)
        self._hosts = None if hosts is None else {name.casefold() for name in hosts}
        self._held = 0  # bytes of the bodies of all requests
        self._bodies = 0  # number of requests that have sent some of theirs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = CLIENT_LEFT
        started = time.perf_counter()

        async def send_counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                more = [NO_SNIFFING, CLOSE] if self._service.draining else [NO_SNIFFING]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal:
                await refusal(scope, receive, send_counted)
            else:
                with self._limited(receive) as limited:
                    await self.app(scope, limited, send_counted)
        except Exception:
            status = 500
            raise
        finally:
            # the path as declared: strangers must not invent labels
            path = getattr(scope.get("route"), "path", "other")
            counters = self._service.counters
            counters.requests.labels(path, status).inc()
            counters.seconds.labels(path).observe(time.perf_counter() - started)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        lines = [(scope["path"].encode(), scope.get("query_string", b"")), *headers.raw]
        if sum(len(name) + len(value) for name, value in lines) > HEADERS:
            return JSONResponse({"error": f"headers of more than {HEADERS:,} bytes"}, 431)
        if self._hosts is not None and not is_known_host(headers.get("host", ""), self._hosts):
            content = {"error": "unknown host name; start the server with --allow-host NAME"}
            return JSONResponse(content, 403)
        needs_key = self._key and scope["path"] not in OPEN_PATHS
        if needs_key and not any(hmac.compare_digest(key, self._key) for key in keys(headers)):
            content = {"error": "this server needs its key in the header X-API-Key"}
            # the password is the key: a browser then asks for it
            return JSONResponse(content, 401, {"WWW-Authenticate": "Basic"})
        length = headers.get("content-length", "")
        if length.isdigit() and len(length) < 20 and int(length) > self._limits.bytes:
            return JSONResponse({"error": self._too_large()}, 413)
        return None

    def _too_large(self) -> str:
        return f"the body is larger than {self._limits.body:g} MB"

    @contextmanager
    def _limited(self, receive: Receive) -> Iterator[Receive]:
        """Count a body as it arrives, whatever its headers say, and until it is answered.

        If all bodies together are too large, those are refused that take more than an equal share.
        """
        total = 0

        async def receive_limited() -> Message:
            nonlocal total
            message = await receive()
            size = len(message.get("body", b""))
            self._bodies += size > 0 and not total
            total += size
            self._held += size
            if total > self._limits.bytes:
                raise HTTPException(413, self._too_large())
            if self._held > self._limits.held and total * self._bodies > self._limits.held:
                state = {"bytes": self._held, "most_bytes": self._limits.held}
                raise too_busy("too many request bodies at once", state, self._service.seconds())
            return message

        try:
            yield receive_limited
        finally:
            self._held -= total
            self._bodies -= total > 0


def keys(headers: Headers) -> Iterator[bytes]:
    """Yield the keys in a request: X-API-Key, Authorization: Bearer, or the password of
    Authorization: Basic."""
    yield headers.get("x-api-key", "").encode("latin-1")  # the bytes as sent
    kind, _, word = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        yield word.strip().encode("latin-1")
    elif kind.lower() == "basic":
        try:
            yield base64.b64decode(word, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return


# Images in a body


def _array(name: str, text_format: str) -> dict[str, object]:
    items = {"type": "string", "format": text_format}
    properties = {name: {"type": "array", "items": items}}
    return {"schema": {"type": "object", "required": [name], "properties": properties}}


# the body as OpenAPI describes it
BODY: dict[str, object] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": _array(FIELD, "binary"),
            "application/json": _array("images", "byte"),
        },
    }
}


class Body(NamedTuple):
    """What a request sent.

    Attributes:
        uploads: The images.
        fields: Other fields of a form.
    """

    uploads: list[Upload]
    fields: dict[str, str]


async def read_body(request: Request, limits: Limits) -> Body:
    """Read the images of a request, and what a form has beside them.

    Raises HTTPException: 415 for another kind of body, 400 for a damaged or empty one, or for too
    many images.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        body = await _from_form(request, limits.max_images)
    elif kind == "application/json":
        body = Body(_from_json(await request.body()), {})
    else:
        raise HTTPException(415, HOW)
    if not body.uploads:
        raise HTTPException(400, f"no images received; {HOW}")
    if len(body.uploads) > limits.max_images:
        raise HTTPException(
            400,
            f"{len(body.uploads)} images, but a request may have only {limits.max_images}: send "
            "several",
        )
    return body


async def _from_form(request: Request, most: int) -> Body:
    header = MailMessage()
    header["content-type"] = request.headers["content-type"]
    try:
        end = f"--{header.get_boundary('')}--".encode("latin-1", "replace")
    except (ValueError, TypeError, LookupError):  # a parameter in parts, or in no character set
        raise HTTPException(400, f"not a form (its boundary); {HOW}") from None
    body = b"".join([chunk async for chunk in request.stream()])  # a request would keep it
    if end not in body:  # Starlette drops an incomplete part without a word
        raise HTTPException(400, f"not a whole form; {HOW}")
    parser = MultiPartParser(
        request.headers, _in_parts(body), max_files=most + 1, max_fields=most + 1
    )
    try:
        form = await parser.parse()
    except (MultiPartException, ValueError) as error:  # Starlette 0.49 raises ValueError, too
        reason = getattr(error, "message", str(error))
        raise HTTPException(400, f"not a form ({reason[:100]}); {HOW}") from None
    try:
        files = [one for one in form.getlist(FIELD) if isinstance(one, UploadFile)]
        uploads = []
        for place, file in enumerate(files):
            # if no file was chosen, a browser sends an empty one without a name
            if file.filename or file.size:
                name = _utf8(file.filename) or f"{FIELD}[{place}]"
                uploads.append(Upload(name, await file.read()))
        return Body(uploads, {name: one for name, one in form.items() if isinstance(one, str)})
    finally:
        await form.close()


async def _in_parts(body: bytes) -> AsyncGenerator[bytes, None]:
    """Yield a body in parts: the parser copies what it gets at once."""
    for start in range(0, len(body), PART):
        yield body[start : start + PART]
    yield b""


def _utf8(name: str | None) -> str:
    """Return a name that UTF-8 can hold: a request chooses its own charset, which may yield lone
    surrogates."""
    return (name or "")[:NAME].encode("utf-8", "replace").decode()


def _from_json(body: bytes) -> list[Upload]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"not JSON ({type(error).__name__}); {HOW}") from None
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise HTTPException(400, HOW)
    return [Upload(f"images[{i}]", _decoded(image, i)) for i, image in enumerate(images)]


def _decoded(text: str, place: int) -> bytes:
    """Decode base64, also in a data: URL, as web pages have it."""
    if text.startswith("data:"):
        text = text.rpartition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise HTTPException(400, f"images[{place}]: not base64") from None
