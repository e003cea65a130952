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
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.data.read import ImageSet
from rmadapter.data.transforms import ImageTensors, TrainTransform, WithViews, batches
from rmadapter.encoders import PARTS, Grid, States, in_halves, send
from rmadapter.errors import UserError
from rmadapter.settings import Machine
from rmadapter.support.files import atomic, reserve
from rmadapter.support.machine import keep_freed_memory, versions
from rmadapter.support.terminal import track
from rmadapter.training.disk_cache import Store

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "BATCH_SIZE",
    "DTYPES",
    "Cache",
    "Held",
    "Live",
    "Source",
    "encoded",
    "in_turn",
    "test_batch",
    "test_transform",
]

GB = 1e9
BATCH_SIZE = 64  # images encoded at once when no gradient is needed
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Plan: TypeAlias = list[tuple[tuple[int, ...], torch.dtype]]  # shape and format of each tensor
Key: TypeAlias = tuple[str, int | None, bool, torch.dtype]  # digest, block, augmented, format


@dataclass(frozen=True)
class Held:
    """Activations of V views of N images, view by view: features [V * N, e], and x and y as in
    `States`.

    Attributes:
        contents: `ImageSet.contents` of the N images; empty if nothing looks images up by them.
    """

    first: int | None
    layout: Grid
    device: torch.device
    features: Tensor
    x: Tensor
    y: Tensor
    views: int = 1
    contents: tuple[bytes, ...] = ()

    @classmethod
    def of_features(cls, views: Tensor) -> Held:
        """Wrap features [V, N, e] that are already computed."""
        flat, empty = views.flatten(0, 1), torch.empty(0)
        return cls(None, Grid(None), views.device, flat, empty, empty, len(views))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.features) // self.views

    @property
    def _states(self) -> States:
        return States(self.first, self.layout, self.features, self.x, self.y)

    def near(self, room: float) -> Held:
        """Return a copy on the device that the states are for, if it has this many bytes of room,
        else itself."""
        if self.bytes > room:
            return self
        features, x, y = (part.to(self.device) for part in (self.features, self.x, self.y))
        return replace(self, features=features, x=x, y=y)

    @property
    def bytes(self) -> int:
        return sum(part.numel() * part.element_size() for part in (self.features, self.x, self.y))

    def batch(self, rows: Tensor, epoch: int = 0) -> States:
        """Return the states of some images; each epoch takes the next view."""
        rows = send(rows + epoch % self.views * len(self), self.features.device)
        return self._states[rows].to(self.device)

    def batches(self, epoch: int, orders: Sequence[Tensor]) -> Iterator[States]:
        for rows in orders:
            yield self.batch(rows, epoch)

    def subset(self, rows: Tensor, images: ImageSet) -> Held:
        """Keep some rows, those of the views of some images."""
        features, x, y, _ = self._states[rows].tensors
        return replace(self, features=features, x=x, y=y, contents=images.contents)


@dataclass(frozen=True)
class Live:
    """The same activations as `Held`, read and encoded on demand.

    Attributes:
        views: Number of views; 0 draws new ones in every epoch.
        test_views: Number of further views that each image brings along.
    """

    cache: Cache
    images: ImageSet
    first: int | None
    augmented: bool
    views: int = 1
    test_views: int = 0
    features: bool = True  # False: the blocks above `first` are not needed

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, rows: Tensor, epoch: int = 0) -> States:
        return next(self.batches(epoch, [rows]))

    def batches(self, epoch: int, orders: Sequence[Tensor]) -> Iterator[States]:
        wanted = self.features or self.first is None
        for pixels in self.pixels(epoch, orders):
            # Without the autocast of a training step, since held activations are float32, too.
            with torch.autocast(pixels.device.type, enabled=False):
                states = self.cache.backbone.image.frozen(pixels, self.first, features=wanted)
            yield states

    def pixels(self, epoch: int, orders: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield pixels [B, 3, H, W] of each batch of rows in turn."""
        view = epoch % self.views if self.views else epoch
        tensors = self.cache.tensors(self.images, view, self.augmented, self.test_views)
        rows = [order.tolist() for order in orders]
        for pixels in batches(tensors, rows, self.cache.machine.workers):
            yield send(pixels, self.cache.device)


Source = Held | Live


@dataclass(eq=False)
class Cache:
    """A memory of activations that drops the least recently used when `machine.cache_memory` GB are
    full.

    Args:
        backbone: Backbone that encodes images.
        machine: Settings of the machine.
        augmentation: Augmentation of the training images, as in `Task`.
        views: Views of the training images, as in `Task`.
        seed: Seed of the augmentation.
        folder: Folder of files with activations that do not fit into memory.
        hold: Whether to hold activations; False computes everything on demand, for images seen
            once, unless `machine.disk_cache` keeps it for later commands.
        progress: Whether to show bars on stderr.
        blocks: Blocks whose inputs will be needed; one pass computes them all if together they take
            at most a quarter of the memory.
        keep_features: Whether features and parts, but no tokens, are kept on disk for later
            commands where `machine.disk_cache` keeps nothing.
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
    keep_features: bool = False

    def __post_init__(self) -> None:
        self._held: OrderedDict[Key, Held] = OrderedDict()
        self._whole: ImageSet | None = None
        self.store = Store.of(self.machine.disk_cache)
        if self.keep_features and not self.store:
            self.store = Store.of_features()
        self.seconds = 0.0  # spent on computing activations so far

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def _room(self) -> float:
        """Bytes of memory for activations."""
        return self.machine.cache_memory * GB

    def expect_parts(self, images: ImageSet) -> None:
        """Announce requests for parts of these images: the first request then computes all."""
        self._whole = images

    def source(
        self,
        images: ImageSet,
        first: int | None = None,
        *,
        augmented: bool = False,
        precision: str = "fp32",
    ) -> Source:
        """Return tokens into a block of the image encoder, the block's output and the features.

        Args:
            images: N images.
            first: Block; PARTS for the parts of all blocks; None for features alone.
            augmented: Whether to take the training views, if there is augmentation.
            precision: Format in which tokens are held; features are held in float32, parts in
                float16.
        """
        augmented = augmented and self.augmentation == "standard"
        views = self.views if augmented else 1
        live = Live(self, images, first, augmented, views)
        if not views or not (self.hold or self._keeps([first])):
            return live
        kind = torch.float16 if first == PARTS else DTYPES[precision if first else "fp32"]
        key = (images.digest, first, augmented, kind)
        if key not in self._held:
            whole = self._whole
            if whole is not None and not augmented and {*images.contents} < {*whole.contents}:
                self.source(whole, first, precision=precision)
            held = self._reuse(images, first, augmented, kind) or self._compute(live, kind)
            if held is None:
                return live
            self._held[key] = held
            while (
                len(self._held) > 1 and sum(one.bytes for one in self._held.values()) > self._room
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
        """Return untouched features [V, N, e] of all views of all images, on the device; not
        normalised.

        Args:
            images: N images.
            augmented: Whether to take the training views, if there is augmentation.
            first: Block whose states `of` reads.
            of: Function from states to what to return instead, [B, d].

        Raises:
            UserError: Every epoch draws its own views.
        """
        source = self.source(images, first, augmented=augmented)
        if not source.views:
            raise UserError(
                "this method reads all views of its images at once: set their number, as in "
                "--set views=8"
            )
        return encoded(source, of)

    def stream(
        self,
        images: ImageSet,
        first: int | None = None,
        text: str = "evaluating",
        order: Tensor | None = None,
        test_views: int = 0,
    ) -> Iterator[States]:
        """Yield the states of all images in batches.

        Args:
            images: N images.
            first: Block whose input is wanted; None for features alone.
            text: Text beside the bar.
            order: Rows in the order wanted; by default the images' own order.
            test_views: As in `Live`; with views, nothing is held.
        """
        rows = torch.arange(len(images)) if order is None else order
        orders = list(rows.split(test_batch(test_views))) if len(rows) else []
        source: Source
        if test_views:
            source = Live(self, images, first, augmented=False, test_views=test_views)
        else:
            source = self.source(images, first)
        yield from track(source.batches(0, orders), len(orders), text, self.progress)

    def tensors(
        self, images: ImageSet, view: int, augmented: bool, test_views: int = 0
    ) -> ImageTensors:
        """Prepare images for the encoder; an augmented one depends only on the seed, the view and
        its place.

        Args:
            images: N images.
            view: Number of the view.
            augmented: Whether to augment.
            test_views: As in `Live`.
        """
        if not augmented:
            return ImageTensors(images, test_transform(self.backbone, test_views))
        transform = TrainTransform(self.backbone.image_size, self.backbone.mean, self.backbone.std)
        return ImageTensors(images, transform, (self.seed, view))

    def _keeps(self, blocks: Sequence[int | None]) -> bool:
        """Return whether the inputs of these blocks are kept on disk; features and parts are, where
        `keep_features` says so."""
        has_tokens = any(block not in (None, PARTS) for block in blocks)
        return self.store is not None and bool(self.machine.disk_cache or not has_tokens)

    def _reuse(
        self, images: ImageSet, first: int | None, augmented: bool, kind: torch.dtype
    ) -> Held | None:
        """Return a part of what is held: features without tokens, or some of the images (not of
        augmented ones, whose views depend on their places)."""
        for (digest, block, views, format_), held in self._held.items():
            if views != augmented or first not in (block, None) or (first and kind != format_):
                continue
            places = {content: row for row, content in enumerate(held.contents)}
            if digest == images.digest:
                rows = torch.arange(len(held.features))
            elif not augmented and all(content in places for content in images.contents):
                rows = torch.tensor([places[one] for one in images.contents], dtype=torch.long)
            else:
                continue
            if first is None:
                held = replace(held, first=None, x=torch.empty(0), y=torch.empty(0))
            if held.bytes * len(rows) < self._room * len(held.features):
                return held.subset(rows, images)
        return None

    def _compute(self, live: Live, kind: torch.dtype) -> Held | None:
        """Compute activations and hold them in memory or in a file; None if neither has room."""
        started, images, first = time.perf_counter(), live.images, live.first
        if self.device.type == "cpu":
            keep_freed_memory()
        count = live.views * len(images)
        done = {block for digest, block, *_ in self._held if digest == images.digest}
        others = sorted({*self.blocks} - {first, PARTS, *done})
        if live.augmented or first == PARTS:  # which has a format of its own
            others = []
        blocks = [first, *others]
        layout, plan = self._plan(count, blocks, kind)
        if others and _size(plan) > self._room / 4:
            blocks = [first]
            layout, plan = self._plan(count, blocks, kind)
        size = _size(plan)
        if first is None or size <= self._room:
            tensors = [torch.empty(shape, dtype=dtype) for shape, dtype in plan]
            self._fill_from_disk(live, blocks, tensors, kind)
        elif self.folder and self.hold and size < 0.9 * _free_space(self.folder):
            tensors = self._tensors_in_file(self.folder, live, blocks, plan, kind)
        else:
            return None
        self.seconds += time.perf_counter() - started
        features, *tokens = tensors
        for block, x, y in reversed([*zip(blocks, tokens[::2], tokens[1::2], strict=True)]):
            held = Held(block, layout, self.device, features, x, y, live.views, images.contents)
            held = held.near(min(self._room, _room_on(self.device)))
            self._held[images.digest, block, live.augmented, kind] = held
        return held

    def _plan(
        self, count: int, blocks: Sequence[int | None], kind: torch.dtype
    ) -> tuple[Grid, Plan]:
        """Return the layout of tokens and the plan of `count` views: features, and x and y of each
        block, for which a blank image is encoded."""
        if all(block is None for block in blocks):
            features = (count, self.backbone.embedding_size), torch.float32
            return Grid(None), [features, *[((0,), kind)] * (2 * len(blocks))]
        size = self.backbone.image_size
        blank = torch.zeros(1, 3, size, size, device=self.device)
        probes = self.backbone.image.frozen_at(blank, blocks)
        plan: Plan = [((count, *probes[0].features.shape[1:]), torch.float32)]
        for probe in probes:
            for part in (probe.x, probe.y):
                plan.append(((count, *part.shape[1:]) if len(part) else (0,), kind))
        return probes[0].layout, plan

    def _tensors_in_file(
        self, folder: Path, live: Live, blocks: Sequence[int | None], plan: Plan, kind: torch.dtype
    ) -> list[Tensor]:
        """Return the tensors of a plan in a file of the folder, which is made unless it exists."""
        name, size = self._name(live, live.first, kind, live.images.digest), _size(plan)
        path = folder / f"frozen-{name}.bin"

        def mapped(file: Path) -> list[Tensor]:
            flat = torch.from_file(str(file), shared=True, size=size, dtype=torch.uint8)
            return _cut(flat, plan)

        # torch would pad a short file with zeros
        if not path.exists() or path.stat().st_size != size:
            with atomic(path) as part:
                reserve(part, size)
                self._fill(live, blocks, mapped(part))
        return mapped(path)

    def _fill_from_disk(
        self, live: Live, blocks: Sequence[int | None], tensors: list[Tensor], kind: torch.dtype
    ) -> None:
        """Fill the tensors from the cache on disk, if there is one, and compute what it lacks."""
        # A function as a transform has no lasting name.
        if (
            self.store is None
            or not self._keeps(blocks)
            or " at 0x" in str(self.backbone.preprocess)
        ):
            self._fill(live, blocks, tensors)
            return
        # Views also depend on the place of their image, and so belong to one set of images.
        digest = live.images.digest if live.augmented else ""
        keys = [content.hex() for content in live.images.contents]
        if live.augmented:
            keys = [str(number) for number in range(live.views * len(live))]
        where = f"{self.backbone.name} on {self.device.type}"
        format_ = str(kind).removeprefix("torch.")
        entries: list[tuple[str, str, dict[str, Tensor]]] = []  # name, description, tensors
        name = self._name(live, None, torch.float32, digest)
        entries.append((name, f"{where}: features", {"features": tensors[0]}))
        for block, x, y in zip(blocks, tensors[1::2], tensors[2::2], strict=True):
            if block is not None:
                name = self._name(live, block, kind, digest)
                what = f"tokens of block {block}" if block != PARTS else "parts of all blocks"
                kept = {"x": x, "y": y} if len(y) else {"x": x}
                entries.append((name, f"{where}: {what}, {format_}", kept))
        missing = [self.store.read(name, keys, parts) for name, _, parts in entries]
        if any(missing):
            rows = torch.tensor(sorted({row for absent in missing for row in absent}))
            self._fill(live, blocks, tensors, None if live.augmented else rows)
        for (name, about, parts), absent in zip(entries, missing, strict=True):
            self.store.write(name, about, keys, parts, absent)

    def _fill(
        self,
        live: Live,
        blocks: Sequence[int | None],
        tensors: list[Tensor],
        rows: Tensor | None = None,
    ) -> None:
        """Fill the tensors by encoding.

        Args:
            live: Images and views to encode.
            blocks: Blocks whose inputs are wanted.
            tensors: Tensors of a plan.
            rows: Rows of each view to fill; None for all.
        """
        orders = in_turn(len(live)) if rows is None else list(rows.split(BATCH_SIZE))
        turns = [(view, order) for view in range(live.views) for order in orders]
        stream = (pixels for view in range(live.views) for pixels in live.pixels(view, orders))
        tracked = track(stream, len(turns), "frozen activations", self.progress)
        for (view, order), pixels in zip(turns, tracked, strict=True):
            # Without the caller's autocast, since later callers without one get the same tensors.
            with torch.autocast(pixels.device.type, enabled=False):
                states = self.backbone.image.frozen_at(pixels, blocks)
            parts = [states[0].features, *(part for one in states for part in (one.x, one.y))]
            for tensor, part in zip(tensors, parts, strict=True):
                if len(part):
                    tensor[order + view * len(live)] = part.to(tensor)

    @cached_property
    def _versions(self) -> dict[str, str]:
        return versions()

    def _name(self, live: Live, first: int | None, kind: torch.dtype, digest: str) -> str:
        """Hash weights, transform, the images' digest, block, format, device and versions of
        software, so that a stale file is never read."""
        transform: list[object] = [str(self.tensors(live.images, 0, live.augmented).transform)]
        if live.augmented:
            transform += [self.seed, self.views]
        backbone = [self.backbone.digest, self.backbone.structure, self.backbone.resizing]
        parts = [backbone, transform, digest, first, str(kind), self.device.type, self._versions]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def test_transform(backbone: Backbone, views: int) -> Callable[[Image], Tensor]:
    """Return the transform of images to answer, which adds further views of each, if any."""
    if not views:
        return backbone.preprocess
    return WithViews(backbone.preprocess, views, backbone.image_size, backbone.mean, backbone.std)


def test_batch(views: int) -> int:
    """Return how many images are answered at once, so that they are BATCH_SIZE with their views."""
    return max(1, BATCH_SIZE // (1 + views))


def encoded(source: Source, of: Callable[[States], Tensor]) -> Tensor:
    """Apply `of` to the states of all views of all images: [V, N, d]. The source needs a fixed
    number of views."""
    orders = in_turn(len(source))
    views = [source.batches(view, orders) for view in range(source.views)]
    return torch.stack(
        [torch.cat([part for states in view for part in in_halves(of, states)]) for view in views]
    )


def in_turn(count: int) -> list[Tensor]:
    """Return all rows in order, in batches."""
    return list(torch.arange(count).split(BATCH_SIZE)) if count else []


def _size(plan: Plan) -> int:
    """Return how many bytes the tensors of a plan take."""
    return sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in plan)


def _cut(flat: Tensor, plan: Plan) -> list[Tensor]:
    """Cut a flat tensor of bytes into the tensors of a plan."""
    parts = flat.split([_size([one]) for one in plan])
    return [part.view(dtype).view(shape) for part, (shape, dtype) in zip(parts, plan, strict=True)]


def _room_on(device: torch.device) -> float:
    """Return how many bytes activations may take on a device: half of a GPU's free memory, and none
    on a processor, where they are already."""
    if device.type != "cuda":
        return 0.0
    return torch.cuda.mem_get_info(device)[0] / 2  # pragma: no cover: needs a GPU


def _free_space(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    return shutil.disk_usage(folder).free
