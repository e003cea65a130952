"""Frozen activations of image sets, computed once and shared by every method and run on one backbone."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rmadapter.backbone import Backbone
from rmadapter.config import Config
from rmadapter.data.images import ImageSet
from rmadapter.errors import UserError
from rmadapter.features import BATCH, GB, FrozenImages, freeze_images, image_states
from rmadapter.model import AdaptedCLIP
from rmadapter.towers import States
from rmadapter.train import find_device


@dataclass(eq=False)
class Activations:
    """A memory of frozen activations; the least recently used leave it when `settings.cache_memory` GB are full.

    settings: transform, views, device, seed and memory as a run's config has them. folder: where activations that
    do not fit lie as files.
    """

    backbone: Backbone
    settings: Config
    folder: Path | None = None

    def __post_init__(self) -> None:
        self._held: OrderedDict[tuple[Any, ...], FrozenImages] = OrderedDict()
        self.seconds = 0.0  # spent on computing activations so far

    @property
    def device(self) -> torch.device:
        return find_device(self.settings.device)

    def states(
        self, images: ImageSet, first: int | None = None, *, augmented: bool = False, progress: bool = True
    ) -> FrozenImages:
        """Tokens into block `first` of the image encoder, its output and the features; None for features alone.

        augmented: of the training views that the settings ask for, if any. Raises UserError when there is no room.
        """
        found = self._find(images, first, augmented, progress)
        if found is None:
            raise UserError(f"no room for the activations of {len(images)} images: raise cache_memory or free the disk")
        return found

    def stream(
        self, images: ImageSet, first: int | None = None, batch_size: int = BATCH, *, progress: bool = True
    ) -> Iterator[States]:
        """The states of all images in order, on the device; computed anew each time where there is no room for them."""
        found, model = self._find(images, first, False, progress), self._model(False)
        if first is not None:
            model.towers["image"].first = first
        yield from image_states(model, images, found, "evaluating", batch_size, progress)

    def _find(self, images: ImageSet, first: int | None, augmented: bool, progress: bool) -> FrozenImages | None:
        """From memory, or computed; None when neither memory nor disk has room."""
        augmented = augmented and self.settings.augmentation == "standard"
        key = (images.digest, first, augmented)
        if key not in self._held:
            found = self._features_of(images, augmented) if first is None else None
            if found is None:
                found = self._compute(images, first, augmented, progress)
            if found is None:
                return None
            self._held[key] = found
            self._trim()
        self._held.move_to_end(key)
        return self._held[key]

    def _compute(self, images: ImageSet, first: int | None, augmented: bool, progress: bool) -> FrozenImages | None:
        started, model = time.perf_counter(), self._model(augmented)
        if first is None:
            found = self._features(model, images, progress)
        else:
            found = self._tokens(model, images, first, progress)
        self.seconds += time.perf_counter() - started
        return found

    def _model(self, augmented: bool) -> AdaptedCLIP:
        settings = self.settings if augmented else self.settings.replace(augmentation="none", views=0)
        return AdaptedCLIP(self.backbone, settings.replace(first_block=1, last_block=None)).to(self.device)

    def _features_of(self, images: ImageSet, augmented: bool) -> FrozenImages | None:
        """Features that came with the tokens of the same images."""
        for (digest, _, views), held in self._held.items():
            if (digest, views) == (images.digest, augmented):
                features = held.features.clone()  # a view would keep the tokens' memory
                return replace(held, x=features[:, :0], y=features[:, :0], features=features)
        return None

    def _features(self, model: AdaptedCLIP, images: ImageSet, progress: bool) -> FrozenImages | None:
        if model.config.augmentation == "standard":  # views are drawn where the tokens are made
            return self._tokens(model, images, model.towers["image"].depth, progress)
        tower = model.towers["image"]
        tower.first = tower.depth
        parts = [states.features.cpu() for states in image_states(model, images, text="features", progress=progress)]
        features = torch.cat(parts)
        return FrozenImages(features[:, :0], features[:, :0], features, tower.layout)

    def _tokens(self, model: AdaptedCLIP, images: ImageSet, first: int, progress: bool) -> FrozenImages | None:
        model.towers["image"].first = first
        if self.folder:
            self.folder.mkdir(parents=True, exist_ok=True)
        return freeze_images(model, images, folder=self.folder, progress=progress)

    def _trim(self) -> None:
        while len(self._held) > 1 and sum(map(_bytes, self._held.values())) > self.settings.cache_memory * GB:
            self._held.popitem(last=False)


def _bytes(frozen: FrozenImages) -> int:
    return sum(part.numel() * part.element_size() for part in (frozen.x, frozen.y, frozen.features))
