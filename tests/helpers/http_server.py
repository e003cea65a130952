"""A web server of a test, which says nothing on stderr: that belongs to the test, or to a later
one."""

from __future__ import annotations

from http.server import ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Whoever asked is gone: killed, or tired of waiting."""
