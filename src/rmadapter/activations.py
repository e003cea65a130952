"""Frozen activations of some images that are held; `cache.Live` computes the same when they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rmadapter.encoders import Grid, States

Plan = list[tuple[tuple[int, ...], torch.dtype]]  # shape and number format of each tensor


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

    @property
    def bytes(self) -> int:
        return sum(part.numel() * part.element_size() for part in (self.features, self.x, self.y))

    def batch(self, rows: Tensor, epoch: int = 0) -> States:
        """The states of some images; views are taken in turn, epoch after epoch."""
        rows = rows + epoch % self.views * len(self)
        parts = [part[rows] if len(part) else part for part in (self.features, self.x, self.y)]
        return States(self.first, self.layout, *parts).to(self.device)

    def batches(self, epoch: int, orders: Sequence[Tensor]) -> Iterator[States]:
        for rows in orders:
            yield self.batch(rows, epoch)


def size_of(plan: Plan) -> int:
    """Bytes."""
    return sum(torch.Size(shape).numel() * kind.itemsize for shape, kind in plan)


def cut(flat: Tensor, plan: Plan) -> list[Tensor]:
    """The tensors of a plan out of bytes."""
    parts = flat.split([size_of([one]) for one in plan])
    return [part.view(kind).view(shape) for part, (shape, kind) in zip(parts, plan, strict=True)]
