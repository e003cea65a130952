"""LP++: Huang et al., "LP++: A Surprisingly Strong Linear Probe for Few-Shot CLIP", CVPR 2024
(https://arxiv.org/abs/2404.02285).

    logits = x (W + diag(alpha) T)^T + b

x [B, e] are normalised image features and T [C, e] class features. Weights W [C, e], biases b [C]
and alpha [C], the weight of each class's text, are learnt. Step sizes follow from the features X
[N, e] of all N shots:

    W and b   4 N / largest eigenvalue of X^T X
    alpha     N / (4 max_c sum_i (x_i t_c)^2)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmadapter.backbones import Backbone
from rmadapter.methods.parts.features import linear_scorer, one_hot, unit
from rmadapter.prompts import linear_logits, zero_shot_weights
from rmadapter.settings import Positive, Size
from rmadapter.training.contract import (
    ALL_IMAGES,
    PUBLISHED,
    About,
    Batch,
    Fitted,
    Known,
    Method,
    Parameters,
    Recipe,
    Shots,
    Traits,
    Uses,
    minimise,
    shaped,
)


class Blend(nn.Module):
    """The classifier, whose W starts as the sum of each class's features, and b as 0.

    Args:
        views: Features [V, N, e] of the shots.
        values: [N, C], the weight of each shot in the column of its class.
        text: Class features [C, e].
        start: alpha in units of the mean cosine of the shots to their class.

    Attributes:
        alpha: Weights [C] of the classes' texts.
        slope: Sum [C] of the gradients of alpha at the start and after each epoch so far.
    """

    alpha: Tensor
    slope: Tensor

    def __init__(self, views: Tensor, values: Tensor, text: Tensor, start: float) -> None:
        super().__init__()
        self.x, self.values, self.text = views.flatten(0, 1), values.repeat(len(views), 1), text
        self.cosines, self.counts = self.x @ text.T, self.values.sum(1, keepdim=True)
        means = (self.values * self.cosines).sum(0) / self.values.sum(0).clamp(
            min=torch.finfo(text.dtype).tiny
        )
        self.weight = nn.Parameter(self.values.T @ self.x / len(views))
        self.bias = nn.Parameter(torch.zeros_like(means))
        self.register_buffer("alpha", start * means.mean().expand_as(means).clone())
        self.register_buffer("slope", self.gradient())

    def rates(self) -> tuple[float, float]:
        """Return the step sizes of W and b, and of alpha."""
        curvature = torch.linalg.matrix_norm(self.counts.sqrt() * self.x, 2).square() / len(self.x)
        return 4 / float(curvature), 1 / (
            4 * float((self.counts * self.cosines.square()).mean(0).max())
        )

    def folded(self) -> Tensor:
        """Return W + diag(alpha) T."""
        return self.weight + self.alpha[:, None] * self.text

    @torch.no_grad()
    def gradient(self) -> Tensor:
        """Return the gradient of the mean cross-entropy of all shots with respect to alpha."""
        wrong = self.counts * F.linear(self.x, self.folded(), self.bias).softmax(-1) - self.values
        return (wrong * self.cosines).mean(0)


@dataclass(frozen=True)
class LPPlusPlus(Method):
    """One step on all shots per epoch, and one of alpha after some epochs.

    `learning_rate` and `final_rate` are factors on the step size of W and b. One setting for all
    data sets, as published. Only answers for the classes of its shots. As in the released code,
    alpha moves by the sum of all gradients since the start, which is never cleared. That code takes
    the best epoch on validation images and starts b at random; here it is the last epoch, and b
    starts as 0.

    Args:
        start: Initial alpha in units of the mean cosine.
        every: Number of epochs between two steps of alpha.
    """

    title = "LP++"
    source = (
        "Huang et al., CVPR 2024 (arXiv 2404.02285); methods/linear_probe_p2.py and "
        "configs/base.yaml of github.com/FereshteShakeri/FewShot-CLIP-Strong-Baseline"
    )
    traits = Traits(
        uses=Uses(tuned=PUBLISHED),
        about=About(
            "features", "a linear classifier plus a share of text features", new_classes=False
        ),
        reads="features",
    )
    start: Positive = 250.0
    every: Size = 10
    recipe: Recipe = Recipe(
        learning_rate=1.0,
        final_rate=1.0,
        weight_decay=0.0,
        epochs=300,
        batch_size=ALL_IMAGES,
        schedule="step",
        warmup_epochs=0,
    )

    def fit(self, backbone: Backbone, shots: Shots) -> Fitted:
        views = unit(shots.features())
        blend = Blend(
            views,
            one_hot(shots),
            zero_shot_weights(backbone, shots.classes, shots.templates),
            self.start,
        )
        rate, rate_of_alpha = blend.rates()
        peak = rate * self.recipe.learning_rate
        recipe = replace(self.recipe, learning_rate=peak, final_rate=peak * self.recipe.final_rate)

        def loss(batch: Batch) -> Tensor:
            x = unit(batch.images.features)
            return F.cross_entropy(linear_logits(x, blend.folded(), blend.bias), batch.labels)

        def move(epoch: int) -> None:
            if (epoch + 1) % self.every == 0:
                blend.alpha -= rate_of_alpha * blend.slope
            blend.slope += blend.gradient()

        trained = minimise(blend, loss, recipe, shots, shots.source(), move)
        tensors = {"weight": blend.folded().detach(), "bias": blend.bias.detach()}
        return self.restore(backbone, shots.known, tensors).after(trained)

    def restore(self, backbone: Backbone, known: Known, tensors: Mapping[str, Tensor]) -> Fitted:
        shape = len(known.classes), backbone.embedding_size
        weight, bias = shaped(tensors, "weight", *shape), shaped(tensors, "bias", shape[0])
        for_classes = linear_scorer(self.title, known, weight, bias)
        return Fitted(
            self, backbone, known, tensors, for_classes, parameters=weight.numel() + 2 * len(bias)
        )

    def parameters(self, backbone: Backbone, classes: int = 100, shots: int = 16) -> Parameters:
        return Parameters(classes * (backbone.embedding_size + 2))
