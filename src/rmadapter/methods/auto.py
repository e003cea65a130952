"""`--method auto`: a method that chooses among others; measured in docs/studies/choice.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic.dataclasses import dataclass
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.errors import UserError
from rmadapter.methods import load_method, usable
from rmadapter.settings import STRICT, option
from rmadapter.training.contract import Choices, Fitted, Known, Method, Parameters, Shots, Traits

# In order of preference, which the choosing sets decided.
CANDIDATES = (
    *("rmadapter-plus", "linear-probe", "linear-probe-pair", "linear-probe-zero-shot"),
    *("tip-adapter-f", "zero-shot", "zero-shot-ensemble"),
)
FEW_IMAGES = 8  # of a class; with fewer, PROBE_FOR_FEW comes before the plain probe
PROBE_FOR_FEW = "linear-probe-pair"


def preferred(candidates: Sequence[str], images: float) -> list[str]:
    """Return the candidates in their order, but `PROBE_FOR_FEW` before the plain probe if a class
    usually has fewer than `FEW_IMAGES` images."""
    names = list(candidates)
    if images < FEW_IMAGES and PROBE_FOR_FEW in names and "linear-probe" in names:
        names.remove(PROBE_FOR_FEW)
        names.insert(names.index("linear-probe"), PROBE_FOR_FEW)
    return names


@dataclass(frozen=True, config=STRICT)
class Auto(Method):
    """The most preferred of its candidates that `runs.folds.choose` finds as good as the best."""

    title = "auto"
    source = "docs/studies/choice.md"
    traits = Traits(without_text=True)
    minutes: float = option(
        10.0, "minutes to choose and to train; methods that need longer are left out", gt=0
    )
    candidates: tuple[str, ...] = option(
        CANDIDATES, "methods to choose from, the preferred first", min_length=1
    )
    effort: str = option("normal", "effort of the candidates")

    def choices(self, labels: Sequence[int] = ()) -> Choices:
        images = float(np.median(np.bincount(labels))) if labels else FEW_IMAGES
        names = preferred(self.candidates, images)
        methods = {name: load_method(name, effort=self.effort) for name in names}
        return Choices(methods, self.minutes)

    def fit(self, backbone: Backbone, shots: Shots) -> Fitted:
        """Fit the most preferred candidate: where nothing was judged, nothing speaks for
        another."""
        choices = usable(self.choices(shots.images.labels), backbone)
        return next(iter(choices.methods.values())).fit(backbone, shots)

    def restore(self, backbone: Backbone, known: Known, tensors: Mapping[str, Tensor]) -> Fitted:
        raise UserError("a run of auto is saved under the method that was chosen: load that one")

    def parameters(self, backbone: Backbone, classes: int = 100, shots: int = 16) -> Parameters:
        raise UserError("auto has no parameters of its own: name one of its candidates")
