"""A method of your own: the nearest class mean. docs/guide/your_method.md explains it."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import normalize

from rmadapter import Fitted, Method, NotApplicable, Parameters, Traits, Uses


@dataclass(frozen=True)
class NearestMean(Method):
    title: ClassVar[str] = "nearest class mean"
    source: ClassVar[str] = "docs/guide/your_method.md"
    traits: ClassVar[Traits] = Traits(Uses(tuned="nothing"))  # ranked with those that use no more
    sharpness: float = 20.0  # a field is a setting: --set sharpness=10

    def fit(self, backbone, shots):
        x, y = normalize(shots.plain_features(), dim=-1), shots.labels
        means = torch.stack([x[y == label].mean(0) for label in range(len(shots.classes))])
        return self.restore(backbone, shots.known, {"means": means})

    def restore(self, backbone, known, tensors):
        def for_classes(names):
            if new := [name for name in names if name not in known.classes]:
                raise NotApplicable(f"{self.title} has no images of {new[0]!r}")
            means = normalize(
                tensors["means"][[known.classes.index(name) for name in names]], dim=-1
            )
            return lambda states: self.sharpness * normalize(states.features, dim=-1) @ means.T

        return Fitted(self, backbone, known, tensors, for_classes)

    def parameters(self, backbone, classes=100, shots=16):
        return Parameters(0)  # nothing is trained
