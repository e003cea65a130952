"""Frozen activations of images, held in memory or in a file; `cache.Live` computes the same on
demand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rmadapter.encoders import Grid, States

Plan = list[tuple[tuple[int, ...], torch.dtype]]  # shape and number format of each tensor


@dataclass(frozen=True)
class Held:
    """Activations of V views of N images, view by view: features [V * N, e], and x and y as in
    `States`.

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
        """From features [V, N, e] that are already computed."""
        nothing = torch.empty(0)
        return cls(
            None, Grid(None), views.device, views.flatten(0, 1), nothing, nothing, len(views)
        )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.features) // self.views

    @property
    def bytes(self) -> int:
        return sum(part.numel() * part.element_size() for part in (self.features, self.x, self.y))

    def batch(self, rows: Tensor, epoch: int = 0) -> States:
        """The states of some images; each epoch takes the next view."""
        rows = rows + epoch % self.views * len(self)
        parts = [part[rows] if len(part) else part for part in (self.features, self.x, self.y)]
        return States(self.first, self.layout, *parts).to(self.device)

    def batches(self, epoch: int, orders: Sequence[Tensor]) -> Iterator[States]:
        for rows in orders:
            yield self.batch(rows, epoch)


def size_of(plan: Plan) -> int:
    """Bytes that the tensors of a plan take."""
    return sum(torch.Size(shape).numel() * kind.itemsize for shape, kind in plan)


def cut(flat: Tensor, plan: Plan) -> list[Tensor]:
    """Cut a flat tensor of bytes into the tensors of a plan."""
    parts = flat.split([size_of([one]) for one in plan])
    return [part.view(kind).view(shape) for part, (shape, kind) in zip(parts, plan, strict=True)]
