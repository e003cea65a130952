"""What a method and those beside it answered about the same images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from rmadapter.data.names import descriptions
from rmadapter.data.read import ImageSet


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Answers on N images over C classes: probabilities of the method and of the untouched
    backbone, [N, C], and of others by name."""

    title: str
    images: ImageSet
    probabilities: np.ndarray
    zero_shot: np.ndarray
    beside: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; the first description of a class that has several."""
        return tuple(descriptions(name)[0] for name in self.images.classes)

    @property
    def labels(self) -> np.ndarray:
        """[N], indices into `classes`."""
        return np.asarray(self.images.labels)
