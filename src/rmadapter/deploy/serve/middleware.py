"""An ASGI application around another one, which checks keys, limits request bodies, and counts
requests."""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rmadapter.deploy.serve.counters import Counters
from rmadapter.deploy.serve.limits import BODIES, Limits
from rmadapter.deploy.serve.service import LATER

FREE = ("/health", "/ready")  # need no key
GONE = 499  # status to count when the client leaves before its answer


class Door:
    """key: that a request must have, "" for none."""

    def __init__(self, app: ASGIApp, limits: Limits, counters: Counters, key: str = "") -> None:
        self.app, self._limits, self._counters, self._key = app, limits, counters, os.fsencode(key)
        self._held = 0  # bytes of the bodies of all requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, started = GONE, time.perf_counter()

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {
                    **message,
                    "headers": [*message["headers"], (b"x-content-type-options", b"nosniff")],
                }
            await send(message)

        try:
            if fault := self._fault(scope):
                await fault(scope, receive, sent)
            else:
                with self._counted(receive) as counted:
                    await self.app(scope, counted, sent)
        except Exception:
            status = 500
            raise
        finally:
            path = getattr(
                scope.get("route"), "path", "other"
            )  # as declared: strangers must not invent labels
            self._counters.requests.labels(path, status).inc()
            self._counters.seconds.labels(path).observe(time.perf_counter() - started)

    def _fault(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        if (
            self._key
            and scope["path"] not in FREE
            and not any(self._opens(key) for key in keys(headers))
        ):
            more = {
                "WWW-Authenticate": "Basic"
            }  # the password is the key: a browser then asks for it
            return JSONResponse(
                {"error": "this server needs its key in the header X-API-Key"}, 401, more
            )
        length = headers.get("content-length", "")
        if length.isdigit() and len(length) < 20 and int(length) > self._limits.bytes:
            return JSONResponse({"error": self._too_large()}, 413)
        return None

    def _opens(self, key: bytes) -> bool:
        return hmac.compare_digest(key, self._key)

    def _too_large(self) -> str:
        return f"the body is larger than {self._limits.body:g} MB"

    @contextmanager
    def _counted(self, receive: Receive) -> Iterator[Receive]:
        """Count a body as it arrives, whatever its headers say, and until it is answered."""
        mine = 0

        async def counted() -> Message:
            nonlocal mine
            message: dict[str, Any] = dict(await receive())
            size = len(message.get("body", b""))
            mine, self._held = mine + size, self._held + size
            if mine > self._limits.bytes:
                raise HTTPException(413, self._too_large())
            if self._held > BODIES * self._limits.bytes:
                raise HTTPException(429, "too many request bodies at once: try again", LATER)
            return message

        try:
            yield counted
        finally:
            self._held -= mine


def keys(headers: Headers) -> Iterator[bytes]:
    """Keys in a request: X-API-Key, Authorization: Bearer, or the password of Authorization: Basic."""
    yield headers.get("x-api-key", "").encode("latin-1")  # the bytes as sent
    kind, _, word = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        yield word.strip().encode("latin-1")
    elif kind.lower() == "basic":
        try:
            yield base64.b64decode(word, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return
