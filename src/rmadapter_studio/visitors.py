"""The visitors of the page: who they are, how long they stay, and their private folders."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec, TypeVar

from starlette.concurrency import run_in_threadpool

from rmadapter import UserError
from rmadapter.artifacts import exclusive
from rmadapter_studio.session import Session
from rmadapter_studio.shared import Shared

MAX_VISITORS = 200
MAX_NEW_VISITORS = 30  # from one address in a minute
MAX_THREADS = 3  # of the server's forty, for one visitor's requests: a zip, news and a stop
MINUTE = 60.0
PREFIX = "rmadapter-app-"  # of temporary folders
SECONDS_TO_LOCK = 60.0  # in which a new folder gets its lock
TOO_MANY = "Too many new visitors came from your address: wait a minute, then reload the page."
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(eq=False)
class Visit:
    """A visitor's session.

    Attributes:
        session: The session.
        seen: When they sent their last request.
        slots: Limit how many of their requests work at once.
    """

    session: Session
    seen: float
    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_THREADS))

    async def work(self, work: Callable[P, T], *words: P.args, **more: P.kwargs) -> T:
        """Call a function in a thread, once one of the visitor's is free."""
        async with self.slots:
            return await run_in_threadpool(work, *words, **more)


class Visitors:
    """The visitors of the page.

    To make room for one above MAX_VISITORS, those go first who did nothing yet, then those who sent
    fewer bytes (names alone are none) by a factor of ten, then the one idle the longest.

    Args:
        root: Folder of their folders.
        shared: What they share.
        seconds: Time without activity after which a visitor is removed.
        clock: Returns seconds.
    """

    def __init__(
        self,
        root: Path,
        shared: Shared,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.root, self.shared, self.seconds, self.clock = root, shared, seconds, clock
        self._visits: dict[str, Visit] = {}
        self._arrivals: dict[str, list[float]] = {}  # by address: when its visitors came
        self._lock = threading.Lock()

    def visit(self, number: str | None) -> Visit | None:
        """Return the visit of a visitor's number, or None."""
        with self._lock:
            visit = self._visits.get(number or "")
            if visit:
                visit.seen = self.clock()
            return visit

    def add(self, address: str = "") -> str:
        """Return the number of a new visitor; it does not reveal their folder. Raises UserError for
        too many from one network address."""
        self._admit(address)
        number = secrets.token_urlsafe(32)
        folder = Path(tempfile.mkdtemp(dir=self.root))
        with self._lock:
            excess = max(len(self._visits) + 1 - MAX_VISITORS, 0)
            removed = sorted(self._visits, key=self._claim)[:excess]
            self._visits[number] = Visit(Session(folder, self.shared), self.clock())
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
                for place, moments in self._arrivals.items()
            }
            self._arrivals = {place: moments for place, moments in recent.items() if moments}
            moments = self._arrivals.setdefault(address, [])
            if len(moments) >= MAX_NEW_VISITORS:
                raise UserError(TOO_MANY)
            moments.append(now)

    def _claim(self, number: str) -> tuple[bool, bool, int, float]:
        """Return a sort key by which the visitor who is to stay longest comes last."""
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
            self.shared.labelling.fitting.close()
        self.shared.jobs.close()

    def sweep(self) -> None:
        """Remove visitors who were idle for too long; a running job keeps them."""
        for number, visit in [*self._visits.items()]:
            if self.clock() - visit.seen > self.seconds and not visit.session.busy:
                self.remove(number)


@contextmanager
def visitors_folder() -> Iterator[Path]:
    """Yield a temporary folder for what visitors send, and remove it in the end; those of killed
    servers are removed at once."""
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with exclusive(folder):
            _remove_others(folder)
            yield folder


def _remove_others(folder: Path) -> None:
    """Remove the folders of this user's servers that are no longer running."""
    for other in folder.parent.glob(f"{PREFIX}*"):
        with suppress(OSError, UserError):
            status = other.lstat()
            is_own = status.st_uid == folder.stat().st_uid
            if other != folder and is_own and time.time() - status.st_mtime > SECONDS_TO_LOCK:
                with exclusive(other):  # which a running server holds
                    shutil.rmtree(other)
