"""GDA: Wang et al., "A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation", ICLR 2024.

logits = scale * x w^T + alpha * (x W^T + b),    W = mu P,    b = log(1 / C) - diag(mu P mu^T) / 2

x are normalised image features [B, e], w class features, mu the classes' means [C, e] of the shots'
features, and P an estimate of the inverse of their shared covariance S (Kubokawa and Srivastava,
2008), for M features in e dimensions:

P = e ((M - 1) S + tr(S) I)^-1

The mean of a class without shots is that of the features nearest to its prompt, and of the prompt
repeated; P is then the mean of those of such classes, each by its nearest features around its
prompt. On a backbone without a text encoder, w is zero, alpha is one, and such classes are refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.encoders import States
from rmadapter.methods.parts.features import Places, held_out, hits_of, unit
from rmadapter.prompts import cosine_logits, linear_logits, prior_weights
from rmadapter.settings import Positive
from rmadapter.training.contract import (
    HELD_OUT,
    About,
    Fitted,
    Known,
    Shots,
    ToLogits,
    Traits,
    Untrained,
    Uses,
    shaped,
)

ALPHAS = tuple(10.0**exponent for exponent in range(-4, 3))
NEIGHBOURS = 64  # features nearest to the prompt of a class without shots
PROMPT_REPEATS = 16  # of that prompt beside them


@dataclass(frozen=True)
class GDA(Untrained):
    """Normal distributions of the shots' features beside zero-shot; nothing is trained.

    Every view of a shot counts; the released code takes ten.

    Args:
        alpha: Weight of the normal distributions.
        search: Whether to search alpha on validation images, else on parts of the shots held out in
            turn; with one shot per class it stays as given.
    """

    title = "GDA"
    source = (
        "Wang et al., ICLR 2024 (arXiv 2402.04087); main_few_shots.py and main_base2new.py of "
        "github.com/mrflogs/ICLR24"
    )
    traits = Traits(
        uses=Uses(tuned=HELD_OUT),
        about=About(
            "nothing",
            "normal distributions of the shots' features add to zero-shot answers",
            "an answer in a second, from four shots on",
        ),
        reads="features",
        without_text=True,
    )
    alpha: Positive = 0.1
    search: bool = True

    def fit(self, backbone: Backbone, shots: Shots) -> Fitted:
        views = unit(shots.features())
        alpha = self._best(backbone, shots, views) if self.search else self.alpha
        if not backbone.has_text:
            alpha = 1.0
        weight, bias = classifier(views, shots.labels, len(shots.classes))
        tensors = {"weight": weight, "bias": bias, "alpha": torch.tensor(alpha)}
        return self.restore(backbone, shots.known, {**tensors, "shots": views.flatten(0, 1)})

    def restore(self, backbone: Backbone, known: Known, tensors: Mapping[str, Tensor]) -> Fitted:
        count, size = len(known.classes), backbone.embedding_size
        weight, bias = shaped(tensors, "weight", count, size), shaped(tensors, "bias", count)
        alpha, shots = float(shaped(tensors, "alpha")), shaped(tensors, "shots", -1, size)

        def for_classes(names: Sequence[str]) -> ToLogits:
            places = Places.of(self.title, backbone, known.classes, names)
            prompts = prior_weights(backbone, names, known.templates)
            weights, biases = torch.empty_like(prompts), prompts.new_empty(len(names))
            weights[places.old], biases[places.old] = weight[places.rows], bias[places.rows]
            if places.new:
                found = without_shots(shots, prompts[places.new])
                weights[places.new], biases[places.new] = found

            def score(states: States) -> Tensor:
                x = unit(states.features)
                clip = cosine_logits(backbone, x, prompts)
                return clip + alpha * linear_logits(x, weights, biases)

            return score

        return Fitted(self, backbone, known, tensors, for_classes)

    def _best(self, backbone: Backbone, shots: Shots, views: Tensor) -> float:
        """Return the alpha with the most hits on held-out images, the smallest of equals.

        Args:
            backbone: Backbone of the fit.
            shots: Images of the fit.
            views: Unit features [V, N, e] of the shots.
        """
        prompts = prior_weights(backbone, shots.classes, shots.templates)
        hits = torch.zeros(len(ALPHAS), dtype=torch.long)
        parts = held_out(shots)
        for rows, features, targets in parts:
            fit = classifier(views[:, rows], shots.labels[rows], len(shots.classes))
            x = unit(features)
            clip, ours = cosine_logits(backbone, x, prompts), linear_logits(x, *fit)
            hits += hits_of((clip + a * ours for a in ALPHAS), targets)
        return ALPHAS[hits.tolist().index(int(hits.max()))] if parts else self.alpha


def precision(deviations: Tensor) -> Tensor:
    """Return the estimate P [e, e] for the deviations [M, e] of features from their means; zeros if
    none deviates."""
    count, size = deviations.shape
    covariance = deviations.T @ deviations / max(count - 1, 1)
    spread = covariance.trace() * torch.eye(size).to(deviations)
    return size * torch.linalg.pinv((count - 1) * covariance + spread, hermitian=True)


def classifier(views: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return W [C, e] and b [C] for unit features [V, N, e] with labels [N]; every class has
    some."""
    members = F.one_hot(labels, classes).to(views)
    means = members.T @ views.mean(0) / members.sum(0)[:, None]
    return discriminant(means, precision((views - means[labels]).flatten(0, 1)))


def without_shots(features: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
    """Return W [C, e] and b [C] for classes that have prompts [C, e] alone, by the features [M, e]
    of other classes' shots."""
    count = min(NEIGHBOURS, len(features))
    nearest = features[(prompts @ features.T).topk(count, dim=-1).indices]  # [C, count, e]
    means = (nearest.sum(1) + PROMPT_REPEATS * prompts) / (count + PROMPT_REPEATS)
    each = [precision(own - prompt) for own, prompt in zip(nearest, prompts, strict=True)]
    return discriminant(means, torch.stack(each).mean(0))


def discriminant(means: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights [C, e] and biases [C] of equally frequent normal classes with these means
    [C, e] and the inverse [e, e] of their covariance."""
    weight = means @ inverse
    return weight, -math.log(len(means)) - (weight * means).sum(-1) / 2
