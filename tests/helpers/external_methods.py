"""External methods: one that works and two that do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rmadapter import Backbone, Fitted, Method, NotApplicable, Parameters, Shots
from rmadapter.methods.zero_shot import ZeroShot
from rmadapter.training.contract import Known, ToLogits


@dataclass(frozen=True)
class ExternalMethod(Method):
    """Zero-shot that keeps the mean feature of its shots. kind: how it misbehaves."""

    title: ClassVar[str] = "external"
    source: ClassVar[str] = "tests/helpers/external_methods.py"
    kind: str = "good"

    def fit(self, backbone: Backbone, shots: Shots) -> Fitted:
        if self.kind == "crash":
            raise ZeroDivisionError("a bug of the method")
        return self.restore(backbone, shots.known, {"mean": shots.features().mean((0, 1))})

    def restore(self, backbone: Backbone, known: Known, tensors: Mapping[str, Tensor]) -> Fitted:
        plain = ZeroShot().restore(backbone, known, {})

        def for_classes(names: Sequence[str]) -> ToLogits:
            if self.kind == "closed" and not {*names} <= {*known.classes}:
                raise NotApplicable("external knows its own classes alone")
            score = plain.for_classes(names)
            return (lambda states: score(states) * torch.nan) if self.kind == "nan" else score

        return Fitted(self, backbone, known, tensors, for_classes)

    def parameters(self, backbone: Backbone, classes: int = 100, shots: int = 16) -> Parameters:
        return Parameters()


class Undeclared:
    """A method that does not declare its settings."""

    title, source = "undeclared", "tests/helpers/external_methods.py"
    fit, restore, parameters = ExternalMethod.fit, ExternalMethod.restore, ExternalMethod.parameters


@dataclass(frozen=True)
class Unfinished(Method):
    """Not a method yet."""

    title: ClassVar[str] = "unfinished"
