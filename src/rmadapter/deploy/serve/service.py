"""Models by name: decode images in threads, batch them with those of other requests, and answer.

Counters for /metrics are kept by Prometheus' own library.
"""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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
from rmadapter.deploy.access import RETRY
from rmadapter.deploy.serve.batcher import Batcher, Outputs, QueueFull
from rmadapter.deploy.serve.model import ServedModel
from rmadapter.deploy.serve.options import Limits
from rmadapter.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from PIL import Image

DECODERS = min(4, os.cpu_count() or 1)  # threads
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Counters:
    """Metrics of one server, with CPU seconds and memory of its process where the system provides
    them (Linux)."""

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        ProcessCollector(registry=own)
        self.requests = Counter("rmadapter_requests", "Requests.", ["path", "status"], registry=own)
        self.seconds = Histogram(
            "rmadapter_request_seconds", "From the first byte to the last.", ["path"],
            registry=own, buckets=SECONDS,
        )  # fmt: skip
        self.images = Counter(
            "rmadapter_images", "Images, answered or bad.", ["model", "outcome"], registry=own
        )
        self.batches = Histogram(
            "rmadapter_batch_images", "Images asked about at once.", ["model"],
            registry=own, buckets=IMAGES,
        )  # fmt: skip
        self.queue = Gauge(
            "rmadapter_queue_images", "Images accepted but unanswered.", ["model"], registry=own
        )
        self.reloads = Counter(
            "rmadapter_reloads", "Of changed models.", ["model", "outcome"], registry=own
        )

    def text(self) -> bytes:
        """Return all metrics in Prometheus' format."""
        return generate_latest(self.registry)

    def total(self, name: str, **labels: str) -> int:
        """Return the sum of a counter over all labels that are not given."""
        total = 0.0
        for metric in self.registry.collect():
            for sample in metric.samples:
                if sample.name == f"{name}_total" and labels.items() <= sample.labels.items():
                    total += sample.value
        return int(total)


class Upload(NamedTuple):
    """An image as received. name: of the file, or its place in the request."""

    name: str
    data: bytes


class Answers(NamedTuple):
    """The model that answered, and for each image its outputs, or what is wrong with it."""

    model: ServedModel
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
            return Answers(batcher.model, rows)

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
