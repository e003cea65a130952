"""Which requests are served: those to a known host name or an IP address, and not from another
site's page."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

READING = ("GET", "HEAD")
POLICY = "Content-Security-Policy"
ADDED = {
    POLICY: "default-src 'self'; img-src 'self' blob: data:; media-src blob:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors ",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def refusal(method: str, host: str, origin: str | None, names: Collection[str]) -> str:
    """Why a request is not served, or "".

    host, origin: its headers. names: host names of this server besides "localhost" and any IP
    address. The host reveals a site that points its own name at this machine (DNS rebinding), the
    origin one whose page sends something here (CSRF).
    """
    name = _part(f"//{host}", "hostname")
    if name not in names and name != "localhost" and not _is_number(name):
        return "Open this page at the address that the terminal shows."
    if method not in READING and origin is not None and _part(origin, "netloc") != host:
        return "Another site's page sent this request, which is not allowed."
    return ""


def _part(address: str, name: str) -> str:
    """A part of an address that a browser sent, such as "hostname"; "" if malformed."""
    try:
        return getattr(urlsplit(address), name) or ""
    except ValueError:
        return ""


def _is_number(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Doors:
    """An application behind `refusal`; headers of its answers forbid things to browsers. names: as
    in `refusal`. frames: origins of the pages that may show it in a frame."""

    def __init__(
        self, app: ASGIApp, names: Collection[str] = (), frames: Collection[str] = ()
    ) -> None:
        self.app, self.names = app, {name.casefold() for name in names}
        self.added = {**ADDED, POLICY: ADDED[POLICY] + (" ".join(frames) or "'none'")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self.added.items():
                    headers.setdefault(name, value)
            await send(message)

        if scope["type"] == "http":
            headers = Headers(scope=scope)
            if told := refusal(
                scope["method"], headers.get("host", ""), headers.get("origin"), self.names
            ):
                await JSONResponse({"error": told}, 403)(scope, receive, guarded)
                return
        await self.app(scope, receive, guarded)
