"""Answer images with models by name: decode in threads, batch with images of other requests, and
count."""

from __future__ import annotations

import asyncio
import io
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from starlette.exceptions import HTTPException

from rmadapter.data.decode import read_image
from rmadapter.deploy.serve.model import ServedModel
from rmadapter.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from PIL import Image

RETRY = {"Retry-After": "1"}
MB = 1_000_000  # bytes
DECODERS = min(4, os.cpu_count() or 1)  # threads
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Limits:
    """Limits of a server. Raises UserError if a request could have more images than the queue
    holds."""

    batch: int = 16  # images that a model gets at once
    wait: float = 3.0  # milliseconds for others to arrive after the first image
    queue: int = 256  # images per model that are accepted but unanswered
    images: int = 64  # per request
    body: float = 32.0  # MB per request
    seconds: float = 30.0  # for a body to arrive, and again for its answer

    def __post_init__(self) -> None:
        if self.images > self.queue:
            raise UserError(f"--max-images {self.images}: must not exceed --queue {self.queue}")

    @property
    def bytes(self) -> int:
        """Most bytes of a body."""
        return int(self.body * MB)


class Counters:
    """Metrics of one server, with CPU seconds and memory of its process where the system provides
    them (Linux)."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def histogram(name: str, text: str, label: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(name, text, [label], registry=registry, buckets=buckets)

        self.requests = counter("rmadapter_requests", "Requests.", "path", "status")
        self.seconds = histogram(
            "rmadapter_request_seconds", "From the first byte to the last.", "path", SECONDS
        )
        self.images = counter("rmadapter_images", "Images, answered or bad.", "model", "outcome")
        self.batches = histogram(
            "rmadapter_batch_images", "Images asked about at once.", "model", IMAGES
        )
        text = "Images accepted but unanswered."
        self.queue = Gauge("rmadapter_queue_images", text, ["model"], registry=registry)
        self.reloads = counter("rmadapter_reloads", "Of changed models.", "model", "outcome")

    def text(self) -> bytes:
        """Return all metrics in Prometheus' format."""
        return generate_latest(self.registry)

    def total(self, name: str, **labels: str) -> int:
        """Return the sum of a counter over all other labels."""
        total = 0.0
        for metric in self.registry.collect():
            for sample in metric.samples:
                if sample.name == f"{name}_total" and labels.items() <= sample.labels.items():
                    total += sample.value
        return int(total)


# One model


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


# All models


class Upload(NamedTuple):
    """An image as received. name: of the file, or its place in the request."""

    name: str
    data: bytes


class Answers(NamedTuple):
    """Answers to the images of a request.

    name: of the model. images: their names. rows: the outputs of each, or what is wrong with it.
    """

    name: str
    model: ServedModel
    images: list[str]
    rows: list[Outputs | UserError]


class Service:
    """The models of a server. Everything but `decode` runs in the event loop's thread."""

    def __init__(self, models: Mapping[str, ServedModel], limits: Limits) -> None:
        self.limits = limits
        self.counters = Counters()
        self.stopping = False
        self._models: dict[str, Batcher] = {}
        self._pool = ThreadPoolExecutor(DECODERS, "decode")
        for name, model in models.items():
            self.put(name, model)

    @property
    def models(self) -> dict[str, ServedModel]:
        return {name: batcher.model for name, batcher in self._models.items()}

    def put(self, name: str, model: ServedModel) -> None:
        """Serve a model under a name; the previous one still answers what it has taken."""
        before = self._models.get(name)
        on_batch = self.counters.batches.labels(name).observe
        self._models[name] = Batcher(model, self.limits, on_batch)
        self.counters.queue.labels(name).set_function(lambda: self._models[name].taken)
        if before:
            before.retire()

    def close(self) -> None:
        """End the threads, after the last request."""
        self.stopping = True
        for batcher in self._models.values():
            batcher.retire()
            batcher.thread.join(timeout=10)
        self._pool.shutdown(cancel_futures=True)

    def only(self) -> str:
        """Return the name of the only model. Raises HTTPException if there are several."""
        if len(self._models) > 1:
            names = ", ".join(sorted(self._models))
            raise HTTPException(400, f"several models are served: add ?model= with one of {names}")
        return next(iter(self._models))

    async def answer(
        self, name: str, uploads: Sequence[Upload], features: bool = False, skip_bad: bool = False
    ) -> Answers:
        """Answer all images, or with `skip_bad` those that can be read.

        Raises HTTPException: 404 for an unknown model or one without the wanted features, 422 with
        the bad images, 429 if too many images are waiting already.
        """
        if name not in self._models:
            raise HTTPException(
                404, f"unknown model {name!r:.100}{did_you_mean(name, self._models)}"
            )
        batcher = self._models[name]
        if features and not batcher.model.features:
            raise HTTPException(
                404,
                f"{name} gives no features: its method has none, or its export lacks --embeddings",
            )
        # nothing was awaited, so it is still the current model
        with self._reserved(batcher, len(uploads)):
            pixels = await self._decode_all(batcher.model.transform, uploads)
            bad = {i: each for i, each in enumerate(pixels) if isinstance(each, UserError)}
            self.counters.images.labels(name, "bad").inc(len(bad))
            if bad and not skip_bad:
                raise _bad_images(uploads, bad)
            good = [batcher.submit(x, features) for x in pixels if isinstance(x, np.ndarray)]
            outputs = iter(await asyncio.gather(*map(asyncio.wrap_future, good)))
            self.counters.images.labels(name, "answered").inc(len(good))
            rows = [bad[i] if i in bad else next(outputs) for i in range(len(uploads))]
            return Answers(name, batcher.model, [upload.name for upload in uploads], rows)

    @contextmanager
    def _reserved(self, batcher: Batcher, count: int) -> Iterator[None]:
        try:
            batcher.take(count)
        except QueueFull:
            raise HTTPException(429, "too many images are waiting: try again", RETRY) from None
        try:
            yield
        finally:
            batcher.release(count)

    async def _decode_all(
        self, transform: Callable[[Image.Image], np.ndarray], uploads: Sequence[Upload]
    ) -> list[np.ndarray | UserError]:
        run = asyncio.get_running_loop().run_in_executor
        jobs = [run(self._pool, decode, transform, upload) for upload in uploads]
        return await asyncio.gather(*jobs)


def decode(
    transform: Callable[[Image.Image], np.ndarray], upload: Upload
) -> np.ndarray | UserError:
    """Return float32 [3, H, W], or what is wrong with the image."""
    try:
        return transform(read_image(io.BytesIO(upload.data), upload.name))
    except UserError as error:
        return error


def _bad_images(uploads: Sequence[Upload], bad: Mapping[int, UserError]) -> HTTPException:
    images = [
        {"index": i, "image": uploads[i].name, "error": str(error)} for i, error in bad.items()
    ]
    message = (
        f"{len(bad)} of {len(uploads)} images cannot be read, so none was answered; "
        "?skip_bad=true answers the others"
    )
    content = {"error": message, "images": images}
    return HTTPException(422, content)  # type: ignore[arg-type]  # `_error` in routes takes it
