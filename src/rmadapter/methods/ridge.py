"""Ridge regression beside zero-shot, the untrained control of RMAdapter+: what the frozen features
know, in closed form.

    a class of the shots:   scale * (cos(g, w) + head * g r)
    a class by name alone:  scale * cos(g, w')

On a backbone without a text encoder, w is zero, and only classes of the shots have weights.

g are features of the untouched image encoder, w and w' those of the prompts, all of unit length; w'
has general prompts, too; r are the weights of a ridge regression of the shots' classes on g.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.methods.parts.features import Places, unit
from rmadapter.methods.zero_shot import GENERAL_TEMPLATES
from rmadapter.prompts import Cosines, prior_weights, untouched, zero_shot_weights
from rmadapter.settings import Positive
from rmadapter.task import check_templates
from rmadapter.training.contract import (
    About,
    Fitted,
    Known,
    Method,
    Parameters,
    Shots,
    Trained,
    Traits,
    Uses,
    shaped,
)

HEAD = "head"


@dataclass(frozen=True)
class Ridge(Method):
    """A ridge regression of the shots beside zero-shot.

    Args:
        head: Weight of the regression.
        penalty: Its lambda.
        general: Prompts in addition to the run's, for classes without shots.
    """

    title = "ridge regression beside zero-shot"
    source = "of this project: RMAdapter+ without adapters"
    traits = Traits(
        uses=Uses(
            extra="7 general templates",
            tuned="this project's choosing sets (docs/studies/plus.md)",
        ),
        about=About(
            "features",
            "a closed-form regression of the shots added to zero-shot answers",
            "an answer at once that also knows new classes by name",
        ),
        reads="features",
        without_text=True,
    )
    head: float = 2.0
    penalty: Positive = 1.0
    general: tuple[str, ...] = GENERAL_TEMPLATES

    def __post_init__(self) -> None:
        if self.general:
            check_templates(self.general)

    def fit(self, backbone: Backbone, shots: Shots) -> Fitted:
        features = unit(shots.plain_features())
        count = len(shots.classes)
        head = ridge(features, shots.labels, count, self.penalty, shots.weights)
        fitted = self.restore(backbone, shots.known, {HEAD: head})
        return fitted.after(Trained(weighed=True))

    def restore(self, backbone: Backbone, known: Known, tensors: Mapping[str, Tensor]) -> Fitted:
        head = shaped(tensors, HEAD, len(known.classes), backbone.embedding_size)

        def for_classes(names: Sequence[str]) -> Cosines:
            places = Places.of(self.title, backbone, known.classes, names)
            weights = places.weights(
                lambda old, rows: (
                    prior_weights(backbone, old, known.templates) + self.head * head[rows]
                ),
                lambda new: zero_shot_weights(backbone, new, (*known.templates, *self.general)),
            )
            return Cosines(backbone, untouched, weights)

        return Fitted(self, backbone, known, tensors, for_classes, parameters=head.numel())

    def parameters(self, backbone: Backbone, classes: int = 100, shots: int = 16) -> Parameters:
        return Parameters(classes * backbone.embedding_size)


def ridge(
    x: Tensor, labels: Tensor, classes: int, penalty: float, weights: Tensor | None = None
) -> Tensor:
    """Return weights [C, e] of the ridge regression of one-hot labels less 1/C.

    Args:
        x: Features [N, e]; there is no intercept.
        labels: Labels [N].
        classes: Number C of classes.
        penalty: Lambda.
        weights: Weights [N] of the rows; None for equal ones.
    """
    y = F.one_hot(labels, classes).to(x) - 1 / classes
    root = x.new_ones(len(x), 1) if weights is None else weights.to(x)[:, None].sqrt()
    x, y = root * x, root * y
    return torch.linalg.solve(
        x.T @ x + penalty * torch.eye(x.shape[1]).to(x), x.T @ y
    ).T.contiguous()
