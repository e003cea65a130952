"""Frozen activations of a whole image set: computed once, in memory or in a file, and read in every epoch."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rmadapter.blocks import Dense
from rmadapter.data.images import ImageSet
from rmadapter.data.transforms import batches, train_transform
from rmadapter.files import atomic
from rmadapter.model import AdaptedCLIP
from rmadapter.progress import track
from rmadapter.towers import States

GB = 1e9
BATCH = 64  # images encoded at once where no gradient is needed


@dataclass(frozen=True)
class FrozenImages:
    """States of V views of N images, view by view: x [V * N, L, d] into the first adapted block, y out of it
    untouched ([V * N, d] of the top block), features [V * N, e]."""

    x: Tensor
    y: Tensor
    features: Tensor
    layout: Dense
    views: int = 1

    def __len__(self) -> int:
        """Number of images."""
        return len(self.x) // self.views

    def batch(self, rows: Tensor, device: torch.device, view: int = 0) -> States:
        """The states of some images, on the training device; views are taken in turn."""
        rows = rows + view % self.views * len(self)
        return States(self.x[rows], self.y[rows], self.features[rows], self.layout).to(device)


def freeze_images(
    model: AdaptedCLIP, images: ImageSet, *, folder: Path | None = None, batch_size: int = BATCH, progress: bool = True
) -> FrozenImages | None:
    """Run the untouched image encoder once over all images, or `config.views` augmented views of each.

    The result is held in memory while it fits `config.cache_memory`, else in a memory-mapped file in `folder`, whose
    name tells everything that it depends on. None when neither has room: activations are then computed when needed.
    """
    config, tower = model.config, model.towers["image"]
    augmented = config.augmentation == "standard" and config.views > 0
    views = config.views if augmented else 1
    with torch.no_grad():
        blank = torch.zeros(1, 3, model.backbone.image_size, model.backbone.image_size, device=model.device)
        probe = tower.frozen(blank)
    shapes = [(views * len(images), *part.shape[1:]) for part in (probe.x, probe.y, probe.features)]
    numbers = [torch.Size(shape).numel() for shape in shapes]
    if 4 * sum(numbers) <= config.cache_memory * GB:
        flat = torch.empty(sum(numbers))
        _fill(model, images, _cut(flat, shapes), views, augmented, batch_size, progress)
    elif folder and 4 * sum(numbers) < 0.9 * shutil.disk_usage(folder).free:
        file = folder / f"frozen-{cache_key(model, images)}.bin"
        if not file.exists():
            with atomic(file) as part:
                flat = torch.from_file(str(part), shared=True, size=sum(numbers))
                _fill(model, images, _cut(flat, shapes), views, augmented, batch_size, progress)
                del flat
        flat = torch.from_file(str(file), shared=True, size=sum(numbers))
    else:
        return None
    x, y, features = _cut(flat, shapes)
    return FrozenImages(x, y, features, tower.layout, views)


def image_states(
    model: AdaptedCLIP,
    images: ImageSet,
    frozen: FrozenImages | None = None,
    text: str = "",
    batch_size: int = BATCH,
    progress: bool = True,
) -> Iterator[States]:
    """States of all images in order, in batches; `frozen`, if given, spares reading and encoding the images."""
    total = -(-len(images) // batch_size)
    if frozen is not None:
        for rows in torch.arange(len(images)).split(batch_size):
            yield frozen.batch(rows, model.device)
        return
    for pictures in track(batches(images, model.backbone.preprocess, batch_size), total, text, progress):
        yield model.frozen("image", pictures.to(model.device))


def cache_key(model: AdaptedCLIP, images: ImageSet) -> str:
    """Names weights, transform, images and first block, so that a stale cache can never be read."""
    config = model.config
    transform = [config.seed, config.views] if config.augmentation == "standard" else str(model.backbone.preprocess)
    parts = [model.backbone.digest, transform, images.digest, model.towers["image"].first]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _cut(flat: Tensor, shapes: list[tuple[int, ...]]) -> list[Tensor]:
    """One tensor per shape out of a flat one."""
    numbers = [torch.Size(shape).numel() for shape in shapes]
    return [part.view(shape) for part, shape in zip(flat.split(numbers), shapes, strict=True)]


@torch.no_grad()
def _fill(
    model: AdaptedCLIP,
    images: ImageSet,
    stores: list[Tensor],
    views: int,
    augmented: bool,
    batch_size: int,
    progress: bool,
) -> None:
    transform = train_transform(model.backbone) if augmented else model.backbone.preprocess
    row, total = 0, views * -(-len(images) // batch_size)
    loaders = (
        pictures
        for view in range(views)
        for pictures in batches(
            images, transform, batch_size, model.config.workers, (model.config.seed, view) if augmented else None
        )
    )
    for pictures in track(loaders, total, "frozen activations", progress):
        states = model.towers["image"].frozen(pictures.to(model.device))
        for store, part in zip(stores, (states.x, states.y, states.features), strict=True):
            store[row : row + len(part)] = part
        row += len(pictures)
