"""RMAdapter+, of this project: RMAdapter's adapters without its losses, and the untouched model
kept beside them.

    a class of the shots:   scale * (cos(f, w) + head * g r)
    a class by name alone:  scale * (keep * cos(f, w) + (1 - keep) * cos(g, w0))

f and w are adapted features of image and class, g and w0 the untouched ones, all of unit length; r
are the weights of a ridge regression of the shots' classes on g. docs/studies/plus.md examines each
part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.encoders import States
from rmadapter.methods.parts.features import Places, unit
from rmadapter.methods.ridge import HEAD, ridge
from rmadapter.methods.rmadapter import PLAIN, RMAdapter, class_weights
from rmadapter.methods.zero_shot import GENERAL_TEMPLATES
from rmadapter.model import AdaptedCLIP
from rmadapter.prompts import zero_shot_weights
from rmadapter.settings import LossSettings, Positive, Share
from rmadapter.task import check_templates
from rmadapter.training.contract import (
    About,
    Fitted,
    Known,
    Parameters,
    Shots,
    ToLogits,
    Traits,
    Uses,
    shaped,
)


@dataclass(frozen=True)
class RMAdapterPlus(RMAdapter):
    """RMAdapter's adapters, with a regression for classes of the shots and the untouched model for
    others.

    The other settings are those of RMAdapter.

    Args:
        head: Weight of the regression.
        penalty: Lambda of the regression.
        keep: Share of the adapted model in the logits of other classes, chosen in
            docs/studies/answer.md.
        general: Prompts in addition to the run's, for other classes.
    """

    title: str = "RMAdapter+"
    source: str = (
        "of this project; adapters: Lin et al., AAAI-26; both models: Wortsman et al., CVPR 2022 "
        "(WiSE-FT)"
    )
    loss: LossSettings = field(default_factory=lambda: PLAIN.loss)
    head: float = 0.5
    penalty: Positive = 1.0
    keep: Share = 0.4
    general: tuple[str, ...] = GENERAL_TEMPLATES
    traits: Traits = Traits(
        uses=Uses(
            extra="7 general templates",
            tuned="this project's choosing sets (docs/studies/plus.md)",
        ),
        about=About(
            "blocks",
            "RMAdapter's adapters and a regression of the shots",
            "trained and new classes by name",
        ),
    )

    def __post_init__(self) -> None:
        if self.general:
            check_templates(self.general)

    def fit(self, backbone: Backbone, shots: Shots) -> Fitted:
        head = ridge(
            unit(shots.plain_features()),
            shots.labels,
            len(shots.classes),
            self.penalty,
            shots.weights,
        )
        adapted = super().fit(backbone, shots)
        return self.restore(backbone, shots.known, {**adapted.tensors, HEAD: head}).after(
            adapted.trained
        )

    def restore(self, backbone: Backbone, known: Known, tensors: Mapping[str, Tensor]) -> Fitted:
        model = self.model(backbone)
        head = shaped(tensors, HEAD, len(known.classes), backbone.embedding_size)
        model.adapters.load_state_dict(
            {name: tensor for name, tensor in tensors.items() if name != HEAD}
        )

        def for_classes(names: Sequence[str]) -> ToLogits:
            adapted, untouched = self._weights(model, known, names, head).chunk(2, -1)
            return Both(model, adapted, untouched)

        count = model.adapters.parameter_counts()[0] + head.numel()
        return Fitted(self, backbone, known, tensors, for_classes, model.first("image"), count)

    def _weights(
        self, model: AdaptedCLIP, known: Known, names: Sequence[str], head: Tensor
    ) -> Tensor:
        """Return weights [C, 2 e] for adapted image features, and then for untouched ones."""
        places = Places.of(self.title, model.backbone, known.classes, names)
        prompts = (*known.templates, *self.general)

        def trained(names: list[str], rows: list[int]) -> Tensor:
            adapted = class_weights(model, names, known.templates, known.saved)
            return torch.cat([adapted, self.head * head[rows]], -1)

        def others(names: list[str]) -> Tensor:
            adapted = class_weights(model, names, prompts, known.saved)
            untouched = zero_shot_weights(model.backbone, names, prompts)
            return torch.cat([self.keep * adapted, (1 - self.keep) * untouched], -1)

        return places.weights(trained, others)

    def parameters(self, backbone: Backbone, classes: int = 100, shots: int = 16) -> Parameters:
        trained, training_only = super().parameters(backbone, classes, shots)
        return Parameters(trained + classes * backbone.embedding_size, training_only)


@dataclass(frozen=True)
class Both:
    """Logits [B, C] of the states of B images.

    An image's features [B, 2 e] are the adapted ones and the untouched ones together.

    Args:
        model: Backbone with trained adapters.
        adapted: Weights [C, e] for adapted features.
        untouched: Weights [C, e] for untouched features.
    """

    model: AdaptedCLIP
    adapted: Tensor
    untouched: Tensor

    def features(self, states: States) -> Tensor:
        untouched = self.model.backbone.image.untouched(states)
        return torch.cat([unit(self.model.features("image", states)[0]), unit(untouched)], -1)

    def logits(self, features: Tensor) -> Tensor:
        f, g = features.chunk(2, -1)
        return self.model.backbone.logit_scale * (f @ self.adapted.T + g @ self.untouched.T)

    def __call__(self, states: States) -> Tensor:
        return self.logits(self.features(states))
