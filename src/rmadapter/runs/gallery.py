"""Images that arrive over time, each decoded and encoded once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np

from rmadapter.backbones import Backbone
from rmadapter.data.duplicates import linked, looks, pairs
from rmadapter.data.image_set import ImageReader, without_classes
from rmadapter.runs.features import unit
from rmadapter.training.cache import Cache


class Gallery:
    """Images as a backbone sees them, and which of them are near-duplicates.

    Args:
        backbone: Backbone that encodes the images.
        keep: Whether features are kept on disk for the next gallery of the same images.

    Attributes:
        features: Features [N, e] of length 1.
        groups: Group numbers [N]; images linked by a chain of near-duplicates share one.
    """

    def __init__(self, backbone: Backbone, keep: bool = False) -> None:
        self.backbone = backbone
        self.features: np.ndarray = np.empty((0, backbone.embedding_size))
        self.groups: np.ndarray = np.empty(0, int)
        self._cache = Cache(backbone, hold=False, progress=False, keep_features=keep)
        self._looks = looks([])
        self._links: list[tuple[int, int]] = []

    def add(
        self, files: Sequence[Path], lock: AbstractContextManager[object] | None = None
    ) -> list[str]:
        """Add images in order, without those that cannot be read.

        Args:
            files: Image files.
            lock: Lock of the backbone, held while it encodes.

        Returns:
            Why each file cannot be read, "" for one that was added.
        """
        reader = ImageReader()
        errors = reader.read(files, self.backbone.preprocess)
        good = tuple(file for file, error in zip(files, errors, strict=True) if not error)
        if good:
            images = without_classes(good, reader)
            with lock or nullcontext():
                new = unit(self._cache.features(images)[0])
            fresh, start = images.looks(), len(self._looks)
            self._looks = np.concatenate([self._looks, fresh])
            self._links += [(start + i, j) for i, j in pairs(fresh, self._looks)]
            self.groups = linked(self._links, len(self._looks))
            self.features = np.concatenate([self.features, new])
        return errors
