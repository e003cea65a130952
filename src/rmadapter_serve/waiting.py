"""Count the images that wait, predict from recent ones how long that takes, and refuse what would
take too long."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from starlette.exceptions import HTTPException

RECENT = 0.95  # weight of what was measured, after one more image
UNKNOWN = 16  # images that are expected to take no time, before any was measured


class Queue:
    """Images that are answered in turn: how many there are, and the seconds that each takes, as
    measured on recent ones.

    Args:
        most: Most images that may wait.
        longest: Seconds that the last of them may be expected to take.
        what: The images, as a refusal calls them.
    """

    def __init__(self, most: int, longest: float, what: str = "images") -> None:
        self.taken = 0
        self._what = what
        self._most, self._longest = most, longest
        self._images, self._seconds = float(UNKNOWN), 0.0  # of recent images
        self._since = 0.0  # when the last image was answered, or the queue was empty

    @property
    def pace(self) -> float:
        """Seconds per image while images wait."""
        return self._seconds / self._images

    @property
    def seconds(self) -> float:
        """Seconds until all that were taken are expected to be answered."""
        return self.taken * self.pace

    def state(self, more: int = 0) -> dict[str, float]:
        """Return what waits, and the most that may.

        Args:
            more: Images besides those that were taken.
        """
        images = self.taken + more
        return {
            "images": images,
            "most_images": self._most,
            "seconds": round(images * self.pace, 3),
            "most_seconds": self._longest,
        }

    def take(self, count: int) -> None:
        """Reserve places for images. Raises HTTPException, but never if it is empty."""
        after = self.taken + count
        if self.taken and (after > self._most or after * self.pace > self._longest):
            reason = f"too many {self._what} are waiting"
            raise too_busy(reason, self.state(count), self.seconds)
        if not self.taken:
            self._since = time.monotonic()
        self.taken += count

    def release(self, count: int, done: bool = True) -> None:
        """Give places back.

        Args:
            count: Number of places.
            done: Whether these images were answered, which measures the pace.
        """
        self.taken -= count
        if done:
            now, weight = time.monotonic(), RECENT**count
            self._images = self._images * weight + count
            self._seconds = self._seconds * weight + now - self._since
            self._since = now

    @contextmanager
    def place(self, count: int) -> Iterator[None]:
        """Hold places while images are answered. Raises HTTPException."""
        self.take(count)
        done = True
        try:
            yield
        except asyncio.CancelledError:  # out of time
            done = False
            raise
        finally:
            self.release(count, done)


def too_busy(reason: str, state: Mapping[str, float], retry: float) -> HTTPException:
    """Return a 503 that says what is full, and when to come back.

    Args:
        reason: What is full.
        state: What waits with the request that was refused, and the most that may.
        retry: Seconds after which to come back.
    """
    seconds = max(math.ceil(retry), 1)
    content = {"error": f"{reason}: try again after {seconds} s", "queue": state}
    headers = {"Retry-After": str(seconds)}
    return HTTPException(503, content, headers)  # type: ignore[arg-type]  # `_error` in routes takes it
