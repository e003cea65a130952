"""Frozen activations of some images: held, or computed when they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from rmadapter.data.images import ImageSet
from rmadapter.data.transforms import batches
from rmadapter.encoders import Grid, States

if TYPE_CHECKING:
    from rmadapter.cache import Cache


@dataclass(frozen=True)
class Held:
    """Activations of V views of N images, view by view: features [V * N, e], and x and y as `States` has them.

    contents: of the N images, as `ImageSet` has them; empty where nobody will ask.
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
        """Features [V, N, e] that are there already."""
        nothing = torch.empty(0)
        return cls(None, Grid(None), views.device, views.flatten(0, 1), nothing, nothing, len(views))

    def __len__(self) -> int:
        """Number of images."""
        return len(self.features) // self.views

    def batch(self, rows: Tensor, epoch: int = 0) -> States:
        """The states of some images; views are taken in turn, epoch after epoch."""
        rows = rows + epoch % self.views * len(self)
        parts = [part[rows] if len(part) else part for part in (self.features, self.x, self.y)]
        return States(self.first, self.layout, *parts).to(self.device)

    def batches(self, epoch: int, orders: Sequence[Tensor]) -> Iterator[States]:
        for rows in orders:
            yield self.batch(rows, epoch)


@dataclass(frozen=True)
class Live:
    """The same, read and encoded whenever they are needed. views: 0 for fresh ones in every epoch."""

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
            yield self.cache.backbone.image.frozen(pixels, self.first, features=self.features or self.first is None)

    def pixels(self, epoch: int, orders: Sequence[Tensor]) -> Iterator[Tensor]:
        """[B, 3, H, W] of some images after others."""
        tensors = self.cache.tensors(self.images, epoch % self.views if self.views else epoch, self.augmented)
        for pixels in batches(tensors, [rows.tolist() for rows in orders], self.cache.machine.workers):
            yield pixels.to(self.cache.device)


Source: TypeAlias = "Held | Live"
