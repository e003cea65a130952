"""Both linear probes together: the mean of their log-probabilities, a logarithmic opinion pool.

With few images the probe that starts as zero-shot is better, with many the other one;
docs/studies/choice.md has the figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.encoders import States
from rmadapter.methods.clap import ZeroShotProbe
from rmadapter.methods.linear_probe import LinearProbe
from rmadapter.training.contract import (
    HELD_OUT,
    About,
    Fitted,
    Known,
    Method,
    Parameters,
    Recipe,
    Shots,
    ToLogits,
    Traits,
    Uses,
)

PROBE = LinearProbe()


@dataclass(frozen=True)
class ProbePair(Method):
    """Both linear probes, which answer by the mean of their log-probabilities. Only answers for the
    classes of its shots.

    Args:
        recipe: Recipe of the probe that starts as zero-shot; the other one is as published.
    """

    title = "both linear probes"
    source = (
        "of this project; product of experts: Hinton, Neural Computation 2002; probes: "
        f"{PROBE.source}; {ZeroShotProbe.source}"
    )
    traits = Traits(
        uses=Uses(tuned=HELD_OUT),
        about=About("features", "both linear probes, and answers by their mean", new_classes=False),
        reads="features",
    )
    recipe: Recipe = ZeroShotProbe().recipe

    def fit(self, backbone: Backbone, shots: Shots) -> Fitted:
        started = ZeroShotProbe(self.recipe).fit(backbone, shots)
        tensors = {**started.tensors, **PROBE.fit(backbone, shots).tensors}
        return self.restore(backbone, shots.known, tensors).after(started.trained)

    def restore(self, backbone: Backbone, known: Known, tensors: Mapping[str, Tensor]) -> Fitted:
        started = {"weights": tensors["weights"]}
        plain = {name: tensor for name, tensor in tensors.items() if name not in started}
        both = (
            PROBE.restore(backbone, known, plain),
            ZeroShotProbe(self.recipe).restore(backbone, known, started),
        )

        def for_classes(names: Sequence[str]) -> ToLogits:
            first, second = (fitted.for_classes(names) for fitted in both)

            def logits(states: States) -> Tensor:
                return (first(states).log_softmax(-1) + second(states).log_softmax(-1)) / 2

            return logits

        parameters = sum(fitted.parameters for fitted in both)
        return Fitted(self, backbone, known, tensors, for_classes, parameters=parameters)

    def parameters(self, backbone: Backbone, classes: int = 100, shots: int = 16) -> Parameters:
        both = [
            probe.parameters(backbone, classes, shots).trained
            for probe in (PROBE, ZeroShotProbe(self.recipe))
        ]
        return Parameters(sum(both))
