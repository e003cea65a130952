"""Answer images as they arrive: one thread per model, in batches from many requests."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from threading import Thread
from typing import NamedTuple

import numpy as np

from rmadapter.deploy.serve.model import ServedModel
from rmadapter.deploy.serve.options import Limits


class QueueFull(Exception):
    """The queue of images is full."""


class Outputs(NamedTuple):
    """One image's probabilities [C], and features [e] if requested."""

    probabilities: np.ndarray
    features: np.ndarray | None = None


class _Item(NamedTuple):
    pixels: np.ndarray
    features: bool
    outputs: Future[Outputs]


class Batcher:
    """The queue and the thread of a model. on_batch: called with the size of each batch.

    All but `_work` runs in the event loop's thread. A caller of `take` gets outputs or an
    error, even after `retire`, and must `release` its images; the thread of a retired batcher
    ends once all are released.
    """

    def __init__(
        self, model: ServedModel, limits: Limits, on_batch: Callable[[int], object] = lambda _: None
    ) -> None:
        self.model = model
        self.taken = 0
        self.retired = False
        self._limits = limits
        self._on_batch = on_batch
        self._items: SimpleQueue[_Item | None] = SimpleQueue()
        self.thread = Thread(target=self._work, name="model", daemon=True)
        self.thread.start()

    def take(self, count: int) -> None:
        """Reserve places for images. Raises QueueFull."""
        if self.taken + count > self._limits.queue:
            raise QueueFull
        self.taken += count

    def release(self, count: int) -> None:
        self.taken -= count
        if self.retired and not self.taken:
            self._items.put(None)

    def retire(self) -> None:
        """Take no more images; the thread ends once all that were taken are released."""
        self.retired = True
        self.release(0)

    def submit(self, pixels: np.ndarray, features: bool = False) -> Future[Outputs]:
        """Queue one image that was taken. pixels: [3, H, W]."""
        item = _Item(pixels, features, Future())
        self._items.put(item)
        return item.outputs

    def _work(self) -> None:
        while batch := self._next_batch():
            batch = [item for item in batch if item.outputs.set_running_or_notify_cancel()]
            if batch:
                self._on_batch(len(batch))
                self._answer(batch)

    def _next_batch(self) -> list[_Item]:
        """Collect images until the wait is over or the batch is full; none at the end."""
        batch: list[_Item] = []
        until = float("inf")
        while len(batch) < self._limits.batch:
            timeout = max(until - time.monotonic(), 0) if batch else None
            try:
                item = self._items.get(timeout=timeout)
            except Empty:
                break
            if item is None:  # the end, which may follow items that nobody waits for any more
                if batch:
                    self._items.put(None)
                break
            batch.append(item)
            if len(batch) == 1:
                until = time.monotonic() + self._limits.wait / 1000
        return batch

    def _answer(self, batch: Sequence[_Item]) -> None:
        """Answer a batch; if it fails, try each image alone, so that none fails because of
        another."""
        try:
            outputs = self._outputs(batch)
        except Exception as error:
            if len(batch) == 1:
                batch[0].outputs.set_exception(error)
            else:
                for item in batch:
                    self._answer([item])
            return
        for item, output in zip(batch, outputs, strict=True):
            item.outputs.set_result(output)

    def _outputs(self, batch: Sequence[_Item]) -> list[Outputs]:
        pixels = np.stack([item.pixels for item in batch])
        wanted = any(item.features for item in batch)
        probabilities, *features = self.model.predict(pixels, wanted)
        if not np.isfinite(probabilities).all():
            raise ArithmeticError("the model's answers contain NaN or infinity")
        return [
            Outputs(probabilities[i], features[0][i] if features and item.features else None)
            for i, item in enumerate(batch)
        ]
