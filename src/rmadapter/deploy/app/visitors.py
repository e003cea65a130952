"""Visitors of the page: a random number in a cookie identifies each browser, which has a private
folder."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rmadapter.deploy.app.session import Session, Shared

MOST = (
    200  # visitors; to make room, those go first who did nothing yet, then the one idle the longest
)


@dataclass(eq=False)
class _Visit:
    session: Session
    seen: float


class Visitors:
    """root: of their folders. seconds: without activity, after which one is forgotten. clock: in
    seconds."""

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

    def known(self, number: str | None) -> Session | None:
        """The session of a number, or None."""
        with self._lock:
            visit = self._visits.get(number or "")
            if visit is None:
                return None
            visit.seen = self.clock()
            return visit.session

    def welcome(self) -> str:
        """The number of a new visitor; it does not reveal their folder."""
        number = secrets.token_urlsafe(32)
        folder = Path(tempfile.mkdtemp(dir=self.root))
        with self._lock:
            over = sorted(self._visits, key=self._claim)[: max(len(self._visits) + 1 - MOST, 0)]
            self._visits[number] = _Visit(Session(folder, self.shared), self.clock())
        for each in over:
            self.forget(each)
        return number

    def _claim(self, number: str) -> tuple[bool, bool, float]:
        """Sort key: who is to stay longest comes last."""
        visit = self._visits[number]
        return visit.session.busy, not visit.session.empty, visit.seen

    def forget(self, number: str) -> None:
        """Forget a visitor, and delete their folder."""
        with self._lock:
            visit = self._visits.pop(number, None)
        if visit:
            visit.session.stop()
            shutil.rmtree(visit.session.folder, ignore_errors=True)

    def sweep(self) -> None:
        """Forget visitors who were idle for too long; a job that is not over keeps them."""
        for number, visit in [*self._visits.items()]:
            if self.clock() - visit.seen > self.seconds and not visit.session.busy:
                self.forget(number)
