"""Decide which requests are answered: by their key and size, by host name and origin.

`serve` takes requests from programs, and checks keys and limits bodies; `app` serves a page to
browsers, and checks hosts and origins.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import os
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

if TYPE_CHECKING:
    from rmadapter.deploy.serve.options import Limits
    from rmadapter.deploy.serve.service import Counters

OPEN_PATHS = ("/health", "/ready")  # need no key
CLIENT_LEFT = 499  # status to count when the client leaves before its answer
RETRY = {"Retry-After": "1"}
BODIES = 8  # bodies of the largest size that are held at once
NO_SNIFFING = (b"x-content-type-options", b"nosniff")

SAFE_METHODS = ("GET", "HEAD")
POLICY = "Content-Security-Policy"
PAGE_HEADERS = {
    POLICY: "default-src 'self'; img-src 'self' blob: data:; media-src blob:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors ",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


# Keys and bodies


class AccessMiddleware:
    """An application behind a check of keys, which also limits bodies and counts requests.

    key: that a request must have, "" for none.
    """

    def __init__(self, app: ASGIApp, limits: Limits, counters: Counters, key: str = "") -> None:
        self.app = app
        self._limits = limits
        self._counters = counters
        self._key = os.fsencode(key)
        self._held = 0  # bytes of the bodies of all requests

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
                message = {**message, "headers": [*message["headers"], NO_SNIFFING]}
            await send(message)

        try:
            if refusal := self._refusal(scope):
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
            self._counters.requests.labels(path, status).inc()
            self._counters.seconds.labels(path).observe(time.perf_counter() - started)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
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
        """Count a body as it arrives, whatever its headers say, and until it is answered."""
        total = 0

        async def receive_limited() -> Message:
            nonlocal total
            message = await receive()
            size = len(message.get("body", b""))
            total += size
            self._held += size
            if total > self._limits.bytes:
                raise HTTPException(413, self._too_large())
            if self._held > BODIES * self._limits.bytes:
                raise HTTPException(429, "too many request bodies at once: try again", RETRY)
            return message

        try:
            yield receive_limited
        finally:
            self._held -= total


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


# Hosts and origins


class HostMiddleware:
    """An application behind `refusal`; headers of its answers forbid things to browsers.

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
    name = _part(f"//{host}", "hostname")
    if name not in names and name != "localhost" and not _is_ip_address(name):
        return "Open this page at the address that the terminal shows."
    if method not in SAFE_METHODS and origin is not None and _part(origin, "netloc") != host:
        return "Another site's page sent this request, which is not allowed."
    return ""


def _part(address: str, name: str) -> str:
    """Return a part of an address that a browser sent, such as "hostname"; "" if malformed."""
    try:
        return getattr(urlsplit(address), name) or ""
    except ValueError:
        return ""


def _is_ip_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
