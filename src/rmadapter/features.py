"""Frozen activations of a whole image set: computed once, read in every epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rmadapter.blocks import Dense
from rmadapter.data.images import ImageSet
from rmadapter.data.transforms import batches
from rmadapter.model import AdaptedCLIP
from rmadapter.progress import track
from rmadapter.towers import States


@dataclass(frozen=True)
class FrozenImages:
    """States of N images: x [N, L, d] into the first adapted block, y out of it untouched, features [N, e]."""

    x: Tensor
    y: Tensor
    features: Tensor
    layout: Dense

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: Sequence[int] | Tensor, device: torch.device) -> States:
        """The states of some images, on the training device."""
        rows = torch.as_tensor(indices)
        return States(self.x[rows], self.y[rows], self.features[rows], self.layout).to(device)


def freeze_images(model: AdaptedCLIP, images: ImageSet, *, batch_size: int = 64, progress: bool = True) -> FrozenImages:
    """Run the untouched image encoder once over all images, without augmentation."""
    tower = model.towers["image"]
    stores: list[Tensor] = []
    done = 0
    loader = batches(images, model.backbone.preprocess, batch_size)
    with torch.no_grad():
        for pictures in track(loader, -(-len(images) // batch_size), "frozen activations", progress):
            states = tower.frozen(pictures.to(model.device))
            parts = [states.x, states.y, states.features]
            stores = stores or [torch.empty(len(images), *part.shape[1:]) for part in parts]
            for store, part in zip(stores, parts, strict=True):
                store[done : done + len(part)] = part
            done += len(pictures)
    x, y, features = stores
    return FrozenImages(x, y, features, tower.layout)
