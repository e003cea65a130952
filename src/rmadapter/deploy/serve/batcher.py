"""One thread per model answers images as they arrive, in batches from many requests."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from threading import Thread
from typing import NamedTuple

import numpy as np

from rmadapter.deploy.serve.limits import Limits
from rmadapter.deploy.serve.model import Served


class Full(Exception):
    """The queue of images is full."""


class Row(NamedTuple):
    """One image's probabilities [C], and features [e] if asked for."""

    probabilities: np.ndarray
    features: np.ndarray | None = None


class _Item(NamedTuple):
    pixels: np.ndarray
    features: bool
    answer: Future[Row]


class Batcher:
    """told: called with the number of images of every batch.

    All but `_work` runs in the event loop's thread. Whoever takes images gets their answers or an
    error, even after `retire`, and must `release` them; the thread of a retired batcher ends once
    all are released.
    """

    def __init__(
        self, served: Served, limits: Limits, told: Callable[[int], object] = lambda _: None
    ) -> None:
        self.served, self._limits, self._told = served, limits, told
        self.taken, self.retired = 0, False
        self._items: SimpleQueue[_Item | None] = SimpleQueue()
        self.thread = Thread(target=self._work, name="model", daemon=True)
        self.thread.start()

    def take(self, count: int) -> None:
        """Reserve places for images. Raises Full."""
        if self.taken + count > self._limits.queue:
            raise Full
        self.taken += count

    def release(self, count: int) -> None:
        self.taken -= count
        if self.retired and not self.taken:
            self._items.put(None)

    def retire(self) -> None:
        """Take no more images; the thread ends once all that were taken are released."""
        self.retired = True
        self.release(0)

    def submit(self, pixels: np.ndarray, features: bool = False) -> Future[Row]:
        """Queue one image that was taken. pixels: [3, H, W]."""
        item = _Item(pixels, features, Future())
        self._items.put(item)
        return item.answer

    def _work(self) -> None:
        while items := self._together():
            if items := [item for item in items if item.answer.set_running_or_notify_cancel()]:
                self._told(len(items))
                self._answer(items)

    def _together(self) -> list[_Item]:
        """Images that arrive until the wait is over or the batch is full; none at the end."""
        found: list[_Item] = []
        until = float("inf")
        while len(found) < self._limits.batch:
            try:
                item = self._items.get(timeout=max(until - time.monotonic(), 0) if found else None)
            except Empty:
                break
            if item is None:  # the end, which may follow items that nobody waits for any more
                if found:
                    self._items.put(None)
                break
            found.append(item)
            if len(found) == 1:
                until = time.monotonic() + self._limits.wait / 1000
        return found

    def _answer(self, items: Sequence[_Item]) -> None:
        """Answer a batch; if it fails, try each image alone, so that none fails because of another."""
        try:
            pixels, wanted = (
                np.stack([item.pixels for item in items]),
                any(item.features for item in items),
            )
            probabilities, *features = self.served.ask(pixels, wanted)
            if not np.isfinite(probabilities).all():
                raise ArithmeticError("the model's answers contain NaN or infinity")
            rows = [
                Row(probabilities[i], features[0][i] if features and item.features else None)
                for i, item in enumerate(items)
            ]
        except Exception as error:
            if len(items) == 1:
                items[0].answer.set_exception(error)
            for item in items if len(items) > 1 else ():
                self._answer([item])
            return
        for item, row in zip(items, rows, strict=True):
            item.answer.set_result(row)
