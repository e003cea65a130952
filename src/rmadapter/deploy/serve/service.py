"""Models by name. Images are decoded in threads, batched with those of other requests, and
answered."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from starlette.exceptions import HTTPException

from rmadapter.data.decode import read_image
from rmadapter.deploy.serve.batcher import Batcher, Full, Row
from rmadapter.deploy.serve.counters import Counters
from rmadapter.deploy.serve.limits import Limits
from rmadapter.deploy.serve.model import Served
from rmadapter.errors import UserError, nearest

DECODERS = min(4, os.cpu_count() or 1)  # threads
LATER = {"Retry-After": "1"}


class Given(NamedTuple):
    """An image as received. name: of the file, or its place in the request."""

    name: str
    data: bytes


class Answered(NamedTuple):
    """The model that answered, and for each image its row, or what is wrong with it."""

    served: Served
    rows: list[Row | UserError]


class Service:
    """Everything but `decode` runs in the event loop's thread."""

    def __init__(self, models: Mapping[str, Served], limits: Limits) -> None:
        self.limits, self.counters, self.stopping = limits, Counters(), False
        self._models: dict[str, Batcher] = {}
        self._pool = ThreadPoolExecutor(DECODERS, "decode")
        for name, served in models.items():
            self.put(name, served)

    @property
    def models(self) -> dict[str, Served]:
        return {name: batcher.served for name, batcher in self._models.items()}

    def put(self, name: str, served: Served) -> None:
        """Serve a model under a name; the previous one still answers what it has taken."""
        before = self._models.get(name)
        self._models[name] = Batcher(
            served, self.limits, self.counters.batches.labels(name).observe
        )
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
        """The name of the only model. Raises HTTPException if there are several."""
        if len(self._models) > 1:
            known = ", ".join(sorted(self._models))
            raise HTTPException(400, f"several models are served: add ?model= with one of {known}")
        return next(iter(self._models))

    async def answer(
        self, name: str, given: Sequence[Given], features: bool = False, skip_bad: bool = False
    ) -> Answered:
        """Answer all images, or with `skip_bad` those that can be read.

        Raises HTTPException: 404 for an unknown model or one without the wanted features, 422 with
        the bad images, 429 if too many images are waiting already.
        """
        if name not in self._models:
            raise HTTPException(404, f"unknown model {name!r:.100}{nearest(name, self._models)}")
        batcher = self._models[name]
        if features and not batcher.served.features:
            raise HTTPException(
                404,
                f"{name} gives no features: its method has none, or its export lacks --embeddings",
            )
        with self._taken(
            batcher, len(given)
        ):  # nothing was awaited, so it is still the current model
            pixels = await asyncio.gather(
                *(self._decoded(batcher.served.transform, one) for one in given)
            )
            bad = {
                place: found for place, found in enumerate(pixels) if isinstance(found, UserError)
            }
            self.counters.images.labels(name, "bad").inc(len(bad))
            if bad and not skip_bad:
                raise HTTPException(422, _complaint(given, bad))  # type: ignore[arg-type]
            good = [
                batcher.submit(found, features) for found in pixels if isinstance(found, np.ndarray)
            ]
            rows = iter(await asyncio.gather(*map(asyncio.wrap_future, good)))
            self.counters.images.labels(name, "answered").inc(len(good))
            return Answered(
                batcher.served, [bad[i] if i in bad else next(rows) for i in range(len(given))]
            )

    @contextmanager
    def _taken(self, batcher: Batcher, count: int) -> Iterator[None]:
        try:
            batcher.take(count)
        except Full:
            raise HTTPException(429, "too many images are waiting: try again", LATER) from None
        try:
            yield
        finally:
            batcher.release(count)

    async def _decoded(
        self, transform: Callable[..., np.ndarray], one: Given
    ) -> np.ndarray | UserError:
        return await asyncio.get_running_loop().run_in_executor(
            self._pool, partial(decode, transform, one)
        )


def decode(transform: Callable[..., np.ndarray], one: Given) -> np.ndarray | UserError:
    """float32 [3, H, W], or what is wrong with the image."""
    try:
        return transform(read_image(io.BytesIO(one.data), one.name))
    except UserError as error:
        return error


def _complaint(given: Sequence[Given], bad: Mapping[int, UserError]) -> dict[str, Any]:
    told = f"{len(bad)} of {len(given)} images cannot be read, so none was answered; ?skip_bad=true answers the others"
    images = [
        {"index": place, "image": given[place].name, "error": str(error)}
        for place, error in bad.items()
    ]
    return {"error": told, "images": images}
