"""RMAdapter and its parent MMA, through the model and the training loop of this package."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from rmadapter.backbone import Backbone
from rmadapter.bench.methods.base import Classifier, Training
from rmadapter.config import Config
from rmadapter.errors import UserError
from rmadapter.model import AdaptedCLIP
from rmadapter.towers import States
from rmadapter.train import train as train_adapters

# Every method of a comparison gets these from the bench, so that like is compared with like.
COMMON = ("backbone", "seed", "templates", "augmentation", "views", "precision", "device", "cache_memory", "workers")


@dataclass(frozen=True)
class Adapter:
    """A preset of `Config` as a method; `values` are fields that differ from the preset."""

    title: str
    source: str
    preset: str
    values: Mapping[str, Any] = field(default_factory=dict)

    def config(self, settings: Config | None = None) -> Config:
        """Raises UserError for a field that is unknown or that the bench sets for all methods alike."""
        for name in self.values:
            if name in COMMON:
                raise UserError(f"{self.preset}.{name}: the bench sets {name} for all methods alike")
        common = {name: getattr(settings, name) for name in COMMON} if settings else {}
        return Config.make({**common, **self.values}, self.preset)

    def fit(self, backbone: Backbone, train: Training) -> Classifier:
        config = self.config(train.activations.settings.replace(seed=train.seed))
        model = AdaptedCLIP(backbone, config).to(train.device)
        first = model.towers["image"].first
        done = train_adapters(model, train.images, frozen=train.frozen(first), progress=train.progress)

        def for_classes(names: Sequence[str]) -> Callable[[States], Tensor]:
            weights = model.class_weights(names)
            return lambda states: model.logits(model.features("image", states)[0], weights)

        count = model.adapters.parameter_counts()["trainable"]
        return Classifier(for_classes, first, count, done.seconds / done.step, done.history)

    def parameters(self, backbone: Backbone, classes: int = 100, shots: int = 16) -> int:
        return AdaptedCLIP(backbone, self.config()).adapters.parameter_counts()["trainable"]


RMADAPTER = Adapter(
    "RMAdapter", "Lin et al., AAAI-26 (arXiv 2512.06811); open choices as in docs/defaults.md", "rmadapter"
)
MMA = Adapter("MMA", "Yang et al., CVPR 2024; settings of its released configuration", "mma")
PAPER = Adapter(
    "RMAdapter, trained as MMA",
    "Lin et al., AAAI-26; optimised as MMA, consistency as PromptSRC",
    "paper",
)
# The control: what of the difference between the two is optimisation rather than method.
MMA_ADAMW = Adapter(
    "MMA, trained as RMAdapter",
    "Yang et al., CVPR 2024; optimised with the defaults of this package",
    "mma",
    {
        name: Config.model_fields[name].default
        for name in ("optimizer", "learning_rate", "weight_decay", "epochs", "alpha", "decouple_scale", "init")
    },
)
