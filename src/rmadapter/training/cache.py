"""Frozen activations of image sets: computed once, kept in memory, in a file or in the user's
cache, shared by every method and run.

This module deals with encoders and images, not adapters. `Cache.source` alone decides whether
activations are held or computed on demand.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.data.read import ImageSet
from rmadapter.data.transforms import ImageTensors, TrainTransform, batches
from rmadapter.encoders import Grid, States
from rmadapter.errors import UserError
from rmadapter.settings import Machine
from rmadapter.support.files import atomic, reserve
from rmadapter.support.terminal import track
from rmadapter.training.activations import Held, Plan, cut, size_of
from rmadapter.training.disk_cache import Store

__all__ = ["BATCH", "FORMATS", "Cache", "Held", "Live", "Source", "encoded", "in_turn"]

GB = 1e9
BATCH = 64  # images encoded at once when no gradient is needed
FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Live:
    """The same activations as `Held`, read and encoded on demand. views: 0 for fresh ones in every
    epoch."""

    cache: Cache
    images: ImageSet
    first: int | None
    augmented: bool
    views: int = 1
    features: bool = True  # False: the blocks above `first` are not needed

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, rows: Tensor, epoch: int = 0) -> States:
        return next(self.batches(epoch, [rows]))

    def batches(self, epoch: int, orders: Sequence[Tensor]) -> Iterator[States]:
        for pixels in self.pixels(epoch, orders):
            with torch.autocast(
                pixels.device.type, enabled=False
            ):  # of a training step: held ones are float32, too
                wanted = self.features or self.first is None
                states = self.cache.backbone.image.frozen(pixels, self.first, features=wanted)
            yield states

    def pixels(self, epoch: int, orders: Sequence[Tensor]) -> Iterator[Tensor]:
        """Pixels [B, 3, H, W] of each batch of rows in turn."""
        tensors = self.cache.tensors(
            self.images, epoch % self.views if self.views else epoch, self.augmented
        )
        for pixels in batches(
            tensors, [rows.tolist() for rows in orders], self.cache.machine.workers
        ):
            yield pixels.to(self.cache.device)


Source = Held | Live


@dataclass(eq=False)
class Cache:
    """A memory of activations that drops the least recently used when `machine.cache_memory` GB are
    full.

    augmentation, views, seed: of the training images, as in `Task`. folder: holds activations that
    do not fit into memory, as files. hold: False computes everything on demand, for images seen
    once, unless `machine.disk_cache` keeps it for later commands. blocks: those whose inputs will
    be needed; one pass computes them all if together they take at most a quarter of the memory.
    """

    backbone: Backbone
    machine: Machine = field(default_factory=Machine)
    augmentation: str = "none"
    views: int = 0
    seed: int = 1
    folder: Path | None = None
    hold: bool = True
    progress: bool = True
    blocks: Collection[int] = ()

    def __post_init__(self) -> None:
        self._held: OrderedDict[tuple[Any, ...], Held] = OrderedDict()
        self._whole: ImageSet | None = None
        self.store = Store.of(self.machine.disk_cache)
        self.seconds = 0.0  # spent on computing activations so far

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    def expect_parts(self, images: ImageSet) -> None:
        """Announce that parts of these images will be requested: the first request then computes
        all of them."""
        self._whole = images

    def source(
        self,
        images: ImageSet,
        first: int | None = None,
        *,
        augmented: bool = False,
        precision: str = "fp32",
    ) -> Source:
        """Tokens into block `first` of the image encoder, its output and the features; None for
        features alone.

        augmented: take the training views, if there is augmentation. precision: format in which
        tokens are held; features are held in float32.
        """
        augmented = augmented and self.augmentation == "standard"
        views = self.views if augmented else 1
        if not views or not (self.hold or self.store):
            return Live(self, images, first, augmented, views)
        kind = FORMATS[precision if first else "fp32"]
        key = (images.digest, first, augmented, kind)
        if key not in self._held:
            whole = self._whole
            if whole is not None and not augmented and {*images.contents} < {*whole.contents}:
                self.source(whole, first, precision=precision)
            found = self._among(images, first, augmented, kind) or self._compute(
                images, first, augmented, views, kind
            )
            if found is None:
                return Live(self, images, first, augmented, views)
            self._held[key] = found
            while (
                len(self._held) > 1
                and sum(held.bytes for held in self._held.values()) > self.machine.cache_memory * GB
            ):
                self._held.popitem(last=False)
        self._held.move_to_end(key)
        return self._held[key]

    def features(
        self,
        images: ImageSet,
        *,
        augmented: bool = False,
        first: int | None = None,
        of: Callable[[States], Tensor] = attrgetter("features"),
    ) -> Tensor:
        """Untouched features [V, N, e] of all views of all images, on the device; not normalised.

        of: computes what to return instead from the states of block `first`, [B, d]. Raises
        UserError if every epoch has views of its own.
        """
        source = self.source(images, first, augmented=augmented)
        if not source.views:
            raise UserError(
                "this method reads all views of its images at once: set their number, as in --set views=8"
            )
        return encoded(source, of)

    def stream(
        self,
        images: ImageSet,
        first: int | None = None,
        text: str = "evaluating",
        order: Tensor | None = None,
    ) -> Iterator[States]:
        """The states of all images in batches, in their own order or in that of the rows `order`."""
        orders = in_turn(len(images)) if order is None else list(order.split(BATCH))
        yield from track(
            self.source(images, first).batches(0, orders), len(orders), text, self.progress
        )

    def tensors(self, images: ImageSet, view: int, augmented: bool) -> ImageTensors:
        """Images as the encoder takes them; an augmented one depends only on the seed, the view and
        its place."""
        if not augmented:
            return ImageTensors(images, self.backbone.preprocess)
        transform = TrainTransform(self.backbone.image_size, self.backbone.mean, self.backbone.std)
        return ImageTensors(images, transform, (self.seed, view))

    def _among(
        self, images: ImageSet, first: int | None, augmented: bool, kind: torch.dtype
    ) -> Held | None:
        """A part of what is held: features without tokens, or some images (not augmented ones: they
        go by place)."""
        for (digest, block, views, format_), held in self._held.items():
            if views != augmented or first not in (block, None) or (first and kind != format_):
                continue
            places = {content: row for row, content in enumerate(held.contents)}
            if digest == images.digest:
                rows = torch.arange(len(held.features))
            elif not augmented and all(content in places for content in images.contents):
                rows = torch.tensor(
                    [places[content] for content in images.contents], dtype=torch.long
                )
            else:
                continue
            if first is None:
                held = replace(held, first=None, x=torch.empty(0), y=torch.empty(0))
            if held.bytes * len(rows) < self.machine.cache_memory * GB * len(held.features):
                parts = {
                    name: part[rows]
                    for name in ("features", "x", "y")
                    if len(part := getattr(held, name))
                }
                return replace(held, contents=images.contents, **parts)
        return None

    def _compute(
        self, images: ImageSet, first: int | None, augmented: bool, views: int, kind: torch.dtype
    ) -> Held | None:
        """Compute activations and hold them in memory or in a file; None if neither has room."""
        started, live, count = (
            time.perf_counter(),
            Live(self, images, first, augmented, views),
            views * len(images),
        )
        there = {block for digest, block, *_ in self._held if digest == images.digest}
        others = [] if augmented else sorted({*self.blocks} - {first, *there})
        blocks = [first, *others]
        layout, plan = self._plan(count, blocks, kind)
        room = self.machine.cache_memory * GB
        if others and size_of(plan) > room / 4:
            blocks = [first]
            layout, plan = self._plan(count, blocks, kind)
        size = size_of(plan)
        if first is None or size <= room:
            stores = [torch.empty(shape, dtype=kind) for shape, kind in plan]
            self._find(live, blocks, stores, kind)
        elif self.folder and self.hold and size < 0.9 * shutil.disk_usage(_made(self.folder)).free:
            file = (
                self.folder
                / f"frozen-{self._name(images, first, augmented, kind, images.digest)}.bin"
            )
            if (
                not file.exists() or file.stat().st_size != size
            ):  # torch would pad a short file with zeros
                with atomic(file) as part:
                    reserve(part, size)
                    flat = torch.from_file(str(part), shared=True, size=size, dtype=torch.uint8)
                    self._fill(live, blocks, cut(flat, plan))
                    del flat
            stores = cut(
                torch.from_file(str(file), shared=True, size=size, dtype=torch.uint8), plan
            )
        else:
            return None
        self.seconds += time.perf_counter() - started
        features, *tokens = stores
        for block, x, y in reversed([*zip(blocks, tokens[::2], tokens[1::2], strict=True)]):
            held = Held(block, layout, self.device, features, x, y, views, images.contents)
            self._held[images.digest, block, augmented, kind] = held
        return held

    def bytes_of(self, count: int, first: int | None) -> int:
        """Bytes that activations of `count` views take."""
        return size_of(self._plan(count, [first], FORMATS[self.machine.precision])[1])

    def _plan(
        self, count: int, blocks: Sequence[int | None], kind: torch.dtype
    ) -> tuple[Grid, Plan]:
        """The layout of tokens, and the plan of `count` views: features, and x and y of each block.
        Found by encoding a blank image."""
        blank = torch.zeros(
            1, 3, self.backbone.image_size, self.backbone.image_size, device=self.device
        )
        probes = self.backbone.image.frozen_at(blank, blocks)
        parts = [
            (probes[0].features, torch.float32),
            *((part, kind) for probe in probes for part in (probe.x, probe.y)),
        ]
        shapes = [((count, *part.shape[1:]) if len(part) else (0,), kind) for part, kind in parts]
        return probes[0].layout, shapes

    def _find(
        self, live: Live, blocks: Sequence[int | None], stores: list[Tensor], kind: torch.dtype
    ) -> None:
        """Fill the stores from the cache on disk, if there is one, and compute what it lacks."""
        images, count, lacking = live.images, live.views * len(live), []
        if self.store is None or " at 0x" in str(
            self.backbone.preprocess
        ):  # a function has no lasting name
            self._fill(live, blocks, stores)
            return
        # Views also depend on the place of their image, and so belong to one set of images.
        keys = (
            [*map(str, range(count))]
            if live.augmented
            else [content.hex() for content in images.contents]
        )
        digest, what = (
            images.digest if live.augmented else "",
            f"{self.backbone.name} on {self.device.type}: ",
        )
        wanted: list[tuple[int | None, torch.dtype, str, dict[str, Tensor]]]
        wanted = [(None, torch.float32, f"{what}features", {"features": stores[0]})]
        for block, x, y in zip(blocks, stores[1::2], stores[2::2], strict=True):
            if block:
                about = f"{what}tokens of block {block}, {str(kind).removeprefix('torch.')}"
                wanted.append((block, kind, about, {"x": x, "y": y}))
        for block, own, about, parts in wanted:
            name = self._name(images, block, live.augmented, own, digest)
            lacking.append((name, about, parts, self.store.read(name, keys, parts)))
        if missing := sorted({row for *_, rows in lacking for row in rows}):
            self._fill(live, blocks, stores, None if live.augmented else torch.tensor(missing))
        for name, about, parts, rows in lacking:
            self.store.write(name, about, keys, parts, rows)

    def _fill(
        self,
        live: Live,
        blocks: Sequence[int | None],
        stores: list[Tensor],
        rows: Tensor | None = None,
    ) -> None:
        """Fill the stores by encoding. rows: of each view; None for all."""
        orders = in_turn(len(live)) if rows is None else list(rows.split(BATCH))
        turns = [(view, order) for view in range(live.views) for order in orders]
        every = (pixels for view in range(live.views) for pixels in live.pixels(view, orders))
        told = track(every, len(turns), "frozen activations", self.progress)
        for (view, order), pixels in zip(turns, told, strict=True):
            states = self.backbone.image.frozen_at(pixels, blocks)
            parts = [states[0].features, *(part for one in states for part in (one.x, one.y))]
            for store, part in zip(stores, parts, strict=True):
                if len(part):
                    store[order + view * len(live)] = part.to(store)

    def _name(
        self, images: ImageSet, first: int | None, augmented: bool, kind: torch.dtype, digest: str
    ) -> str:
        """A hash of weights, transform, the images' digest, block, format and device, so that a
        stale file is never read."""
        transform = [
            str(self.tensors(images, 0, augmented).transform),
            *([self.seed, self.views] if augmented else ()),
        ]
        backbone = [self.backbone.digest, self.backbone.structure, self.backbone.resizing]
        parts = [backbone, transform, digest, first, str(kind), self.device.type]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def encoded(source: Source, of: Callable[[States], Tensor]) -> Tensor:
    """Apply `of` to the states of all views of all images: [V, N, d]. The source needs a fixed
    number of views."""
    orders = in_turn(len(source))
    views = [source.batches(view, orders) for view in range(source.views)]
    return torch.stack([torch.cat([of(states) for states in view]) for view in views])


def in_turn(count: int) -> list[Tensor]:
    """All rows in order, in batches."""
    return list(torch.arange(count).split(BATCH)) if count else []


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
