"""Answer images with models by name: decode in threads, batch with images of other requests, and
count."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
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

from rmadapter import UserError
from rmadapter.data import decode_upload
from rmadapter.export import Outputs
from rmadapter_serve.limits import MB, Limits
from rmadapter_serve.model import ServedModel
from rmadapter_serve.waiting import Queue

if TYPE_CHECKING:
    from PIL import Image

DECODERS = min(4, os.cpu_count() or 1)  # threads
LARGE = 150 * MB  # to decode an image; larger ones are decoded one at a time
AHEAD = 2  # batches of images that are decoded before their turn
LATENCY_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Counters:
    """Metrics of one server, with CPU seconds and memory of its process where the system provides
    them (Linux)."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "rmadapter_requests", "Requests.", ["path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "rmadapter_request_seconds",
            "From the first byte to the last.",
            ["path"],
            registry=registry,
            buckets=LATENCY_SECONDS,
        )
        self.images = Counter(
            "rmadapter_images",
            "Images, answered or bad.",
            ["model", "outcome"],
            registry=registry,
        )
        self.decisions = Counter(
            "rmadapter_decisions",
            "Answers to requests with an error or a share to turn away.",
            ["model", "decision"],
            registry=registry,
        )
        self.batches = Histogram(
            "rmadapter_batch_images",
            "Images asked about at once.",
            ["model"],
            registry=registry,
            buckets=IMAGES,
        )
        self.queue = Gauge(
            "rmadapter_queue_images",
            "Images accepted but unanswered.",
            ["model"],
            registry=registry,
        )
        self.reloads = Counter(
            "rmadapter_reloads", "Of changed models.", ["model", "outcome"], registry=registry
        )

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


class _Item(NamedTuple):
    """An image to answer.

    Attributes:
        pixels: [3, H, W].
        more: Whether more than probabilities is wanted.
        outputs: What the model gives for it, once it is answered.
    """

    pixels: np.ndarray
    more: bool
    outputs: Future[Outputs]


class Batcher:
    """The queue and the thread of a model.

    All but `_work` runs in the event loop's thread. Who holds places gets outputs or an error, even
    after `retire`; the thread of a retired batcher ends once all places are given back.

    Args:
        served: The model.
        limits: Of a batch, and of the queue.
        on_batch: Called with the size of each batch.
        queue: Queue of the model that this one replaces, whose images may still wait.
    """

    def __init__(
        self,
        served: ServedModel,
        limits: Limits,
        on_batch: Callable[[int], object] = lambda _: None,
        queue: Queue | None = None,
    ) -> None:
        self.served = served
        self.queue = queue or Queue(limits.queue, limits.longest)
        self._taken = 0
        self.room = asyncio.Semaphore(AHEAD * limits.batch)  # decoded images
        self.retired = False
        self._limits = limits
        self._on_batch = on_batch
        self._items: SimpleQueue[_Item | None] = SimpleQueue()
        self.thread = Thread(target=self._work, name="model", daemon=True)
        self.thread.start()

    @contextmanager
    def place(self, count: int) -> Iterator[None]:
        """Hold places for images. Raises HTTPException."""
        with self.queue.place(count):
            self._taken += count
            try:
                yield
            finally:
                self._taken -= count
                self._end_if_idle()

    def retire(self) -> None:
        """Take no more images; the thread ends once all places are given back."""
        self.retired = True
        self._end_if_idle()

    def _end_if_idle(self) -> None:
        if self.retired and not self._taken:
            self._items.put(None)

    def submit(self, pixels: np.ndarray, more: bool = False) -> Future[Outputs]:
        """Queue one image that has a place.

        Args:
            pixels: [3, H, W].
            more: Whether more than probabilities is wanted.
        """
        item = _Item(pixels, more, Future())
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
        """Return what the model gives for each image, as for a batch of one."""
        pixels, model = np.stack([item.pixels for item in batch]), self.served.model
        if any(item.more for item in batch):
            outputs = model.ask(pixels)
        else:
            outputs = Outputs(model.probabilities(pixels))
        if not np.isfinite(outputs.probabilities).all():
            raise ArithmeticError("the model's answers contain NaN or infinity")
        rows = []
        for i in range(len(batch)):
            rows.append(Outputs._make(None if one is None else one[i : i + 1] for one in outputs))
        return rows


# All models


class Upload(NamedTuple):
    """An image as received.

    Attributes:
        name: Name of the file, or its place in the request.
        data: Bytes of the file.
    """

    name: str
    data: bytes


class ServedAnswers(NamedTuple):
    """Answers to the images of a request.

    Attributes:
        name: Name of the model.
        served: The model.
        images: Names of the images.
        rows: What the model gives for each as a batch of one, or what is wrong with it.
    """

    name: str
    served: ServedModel
    images: list[str]
    rows: list[Outputs | UserError]


class Service:
    """The models of a server. Everything but `decode` runs in the event loop's thread."""

    def __init__(self, models: Mapping[str, ServedModel], limits: Limits) -> None:
        self.limits = limits
        self.counters = Counters()
        self.stopping = False
        self.draining = False  # answers what its connections ask, and closes them
        self._models: dict[str, Batcher] = {}
        self._retired: list[Batcher] = []
        self._pool = ThreadPoolExecutor(max(DECODERS // limits.workers, 1), "decode")
        self._single = ThreadPoolExecutor(1, "decode-large")
        self._large = Queue(limits.queue, limits.longest, "large images")
        for name, model in models.items():
            self.put(name, model)

    @property
    def models(self) -> dict[str, ServedModel]:
        return {name: batcher.served for name, batcher in self._models.items()}

    def put(self, name: str, model: ServedModel) -> None:
        """Serve a model under a name; the previous one still answers what it has taken."""
        before = self._models.get(name)
        on_batch = self.counters.batches.labels(name).observe
        queue = before.queue if before else None
        self._models[name] = Batcher(model, self.limits, on_batch, queue)
        self.counters.queue.labels(name).set_function(lambda: self._models[name].queue.taken)
        if before:
            before.retire()
            self._retired.append(before)

    async def settle(self) -> None:
        """Wait until every replaced model has answered what it had taken, and is gone."""
        while any(batcher.thread.is_alive() for batcher in self._retired):
            await asyncio.sleep(0.05)
        self._retired.clear()

    def stated(self) -> dict[str, float]:
        """Return the limits of requests, of one worker, as /info states them."""
        limits = self.limits
        return {
            "workers": limits.workers,
            "queue_images": limits.queue,
            "queue_seconds": limits.longest,
            "answer_seconds": limits.seconds,
            "request_images": limits.max_images,
            "request_bytes": limits.bytes,
            "all_bytes": limits.held,
        }

    def queues(self) -> dict[str, dict[str, float]]:
        """Return what waits for each model."""
        return {name: batcher.queue.state() for name, batcher in self._models.items()}

    def seconds(self) -> float:
        """Return the seconds until all images are expected to be answered."""
        return max(batcher.queue.seconds for batcher in self._models.values())

    def close(self) -> None:
        """End the threads, after the last request."""
        self.stopping = True
        for batcher in self._models.values():
            batcher.retire()
            batcher.thread.join(timeout=10)
        for pool in (self._pool, self._single):
            pool.shutdown(cancel_futures=True)

    def only(self) -> str:
        """Return the name of the only model. Raises HTTPException if there are several."""
        if len(self._models) > 1:
            names = ", ".join(sorted(self._models))
            raise HTTPException(400, f"several models are served: add ?model= with one of {names}")
        return next(iter(self._models))

    async def answer(
        self,
        name: str,
        uploads: Sequence[Upload],
        features: bool = False,
        skip_bad: bool = False,
        distance: bool = False,
    ) -> ServedAnswers:
        """Answer all images, or with `skip_bad` those that can be read.

        Raises HTTPException: 404 for an unknown model or one without the wanted features, 422 with
        the bad images, 503 if too many images are waiting already.
        """
        if name not in self._models:
            raise HTTPException(
                404, f"unknown model {name!r:.100}; served are {', '.join(self._models)}"
            )
        batcher = self._models[name]
        if features and not batcher.served.facts["features"]:
            raise HTTPException(
                404,
                f"{name} gives no features: its method has none, or its export lacks --embeddings",
            )
        # nothing was awaited, so it is still the current model
        with batcher.place(len(uploads)):
            more = features or distance
            jobs = [self._answer_one(batcher, upload, more) for upload in uploads]
            found = await asyncio.gather(*jobs, return_exceptions=True)
        rows: list[Outputs | UserError] = []
        for row in found:
            if isinstance(row, BaseException) and not isinstance(row, UserError):
                raise row
            rows.append(row)
        bad = {i: row for i, row in enumerate(rows) if isinstance(row, UserError)}
        self.counters.images.labels(name, "bad").inc(len(bad))
        if bad and not skip_bad:
            raise _bad_images(uploads, bad)
        self.counters.images.labels(name, "answered").inc(len(rows) - len(bad))
        return ServedAnswers(name, batcher.served, [upload.name for upload in uploads], rows)

    async def _answer_one(self, batcher: Batcher, upload: Upload, more: bool) -> Outputs:
        """Decode an image when its turn comes, and answer it. Raises UserError if it is bad, and
        HTTPException if it is large and too many large ones are waiting."""
        run = asyncio.get_running_loop().run_in_executor
        transform = batcher.served.model.transform
        async with batcher.room:
            pixels = await run(self._pool, decode, transform, upload, LARGE)
            if pixels is not None:
                return await asyncio.wrap_future(batcher.submit(pixels, more))
        with self._large.place(1):
            pixels = await run(self._single, decode, transform, upload)
        assert pixels is not None
        return await asyncio.wrap_future(batcher.submit(pixels, more))


def decode(
    transform: Callable[[Image.Image], np.ndarray], upload: Upload, most: int = 0
) -> np.ndarray | None:
    """Return float32 [3, H, W]; None if decoding would take more bytes than `most`, if that is not
    0. Raises UserError if the image is bad."""
    image = decode_upload(upload.data, upload.name, most)
    return None if image is None else transform(image)


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
