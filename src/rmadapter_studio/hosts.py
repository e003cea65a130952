"""Which hosts and origins the page is served to, and what browsers may do with it."""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rmadapter_serve.sockets import is_known_host, part_of

SAFE_METHODS = ("GET", "HEAD")
POLICY = "Content-Security-Policy"
PAGE_HEADERS = {
    POLICY: "default-src 'self'; img-src 'self' data:; media-src blob:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors ",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class HostMiddleware:
    """Refuse requests as `refusal` says, and add headers that forbid things to browsers.

    Args:
        app: Application behind it.
        names: As in `refusal`.
        frames: Origins of the pages that may show it in a frame.
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

    Args:
        method: Its method.
        host: Its header, which reveals a site that points its own name at this machine (DNS
            rebinding).
        origin: Its header, which reveals a site whose page sends something here (CSRF).
        names: Host names of this server besides "localhost" and any IP address.
    """
    if not is_known_host(host, names):
        return "Open this page at the address that the terminal shows."
    if method not in SAFE_METHODS and origin is not None and part_of(origin, "netloc") != host:
        return "Another site's page sent this request, which is not allowed."
    return ""
