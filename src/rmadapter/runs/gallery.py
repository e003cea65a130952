"""Images that arrive over time, each decoded and encoded once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch.nn.functional as F

from rmadapter.backbones import Backbone
from rmadapter.data.duplicates import linked, looks, pairs
from rmadapter.data.image_set import ImageReader, ImageSet
from rmadapter.settings import Machine
from rmadapter.training.cache import Cache

MAX_DISK_GB = 1_000.0  # the features of a gallery are few, and other commands remove old ones


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
        machine = Machine(disk_cache=MAX_DISK_GB if keep else 0.0)
        self._cache = Cache(backbone, machine, hold=False, progress=False)
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
            images = ImageSet(good, (0,) * len(good), ("image",), reader=reader)
            with lock or nullcontext():
                features = self._cache.features(images)[0]
            unit = F.normalize(features.float(), dim=-1).cpu().numpy()
            fresh, start = images.looks(), len(self._looks)
            self._looks = np.concatenate([self._looks, fresh])
            self._links += [(start + i, j) for i, j in pairs(fresh, self._looks)]
            self.groups = linked(self._links, len(self._looks))
            self.features = np.concatenate([self.features, unit])
        return errors
