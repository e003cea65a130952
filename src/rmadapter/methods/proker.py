"""ProKeR: Bendou et al., "ProKeR: A Kernel Perspective on Few-Shot Adaptation of Large
Vision-Language Models", CVPR 2025.

Kernel ridge regression of what zero-shot leaves of the one-hot labels Y of the shots:

logits = scale * (x w^T + k(x, s) A),    A = (K / lambda + I)^-1 (Y - s w^T),
k(x, s) = exp(-beta (1 - x s^T)),        K = k(s, s)

x and s are normalised features of images and shots, w class features. The released code leaves out
the scale, which changes no answer. On a backbone without a text encoder, w is zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pydantic.dataclasses
import torch
import torch.nn.functional as F
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.encoders import States
from rmadapter.methods.parts.features import best_pair, columns, held_out, hits_of, unit
from rmadapter.prompts import prior_weights
from rmadapter.settings import STRICT, option
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


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class Grid:
    """beta and lambda are searched on validation images, else on parts of the shots held out in
    turn; with one shot per class they stay as given. The grid is that of ImageNet in the released
    code, which has others for the other data sets."""

    beta: float = option(2.0, "sharpness of the kernel")
    penalty: float = option(0.15, "lambda", gt=0)
    search: bool = option(True, "search beta and lambda, or take them as given")
    smallest_beta: float = option(1.5, "start of the grid of beta")
    largest_beta: float = option(3.0, "end of the grid of beta")
    beta_steps: int = option(10, "values of beta that are tried", ge=1, le=1_000)
    smallest_penalty: float = option(0.05, "start of the grid of lambda", gt=0)
    largest_penalty: float = option(0.25, "end of the grid of lambda", gt=0)
    penalty_steps: int = option(10, "values of lambda that are tried", ge=1, le=1_000)


@dataclass(frozen=True)
class ProKeR(Untrained):
    """Nothing is trained. Every view of a shot counts; the released code takes ten. Only answers
    for the classes of its shots."""

    title = "ProKeR"
    source = "Bendou et al., CVPR 2025 (arXiv 2501.11175); trainers/proker.py of the released code"
    traits = Traits(
        uses=Uses(constants="the grids of beta and lambda", tuned=HELD_OUT),
        about=About(
            "nothing",
            "a kernel regression of what zero-shot gets wrong on the shots",
            "an answer in a second for classes with shots",
            new_classes=False,
        ),
        reads="features",
        without_text=True,
    )
    grid: Grid = field(default_factory=Grid)

    def fit(self, backbone: Backbone, shots: Shots) -> Fitted:
        views = unit(shots.features())
        beta, penalty = self.grid.beta, self.grid.penalty
        if self.grid.search:
            beta, penalty = self._search(backbone, shots, views)
        keys, rest = residuals(backbone, shots, views, shots.labels)
        values, vectors = torch.linalg.eigh(kernel(keys, keys, beta))
        tensors = {
            "keys": keys,
            "values": solve(values, vectors, vectors.T @ rest, penalty),
            "beta": torch.tensor(beta),
        }
        return self.restore(backbone, shots.known, tensors)

    def restore(self, backbone: Backbone, known: Known, tensors: Mapping[str, Tensor]) -> Fitted:
        beta, keys = (
            float(shaped(tensors, "beta")),
            shaped(tensors, "keys", -1, backbone.embedding_size),
        )
        every = shaped(tensors, "values", len(keys), len(known.classes))

        def for_classes(names: Sequence[str]) -> ToLogits:
            chosen = columns(self.title, known.classes, names)
            weights = prior_weights(backbone, known.classes, known.templates)[chosen]
            values = every[:, chosen]

            def score(states: States) -> Tensor:
                x = unit(states.features)
                return backbone.logit_scale * (x @ weights.T + kernel(x, keys, beta) @ values)

            return score

        return Fitted(self, backbone, known, tensors, for_classes)

    def _search(self, backbone: Backbone, shots: Shots, views: Tensor) -> tuple[float, float]:
        """Return beta and lambda with the most hits on held-out images; among equals, the smallest
        beta, then lambda.

        Args:
            backbone: Backbone of the fit.
            shots: Images of the fit.
            views: Unit features [V, N, e] of the shots.
        """
        grid = self.grid
        betas, penalties = (
            torch.linspace(low, high, steps).tolist()
            for low, high, steps in (
                (grid.smallest_beta, grid.largest_beta, grid.beta_steps),
                (grid.smallest_penalty, grid.largest_penalty, grid.penalty_steps),
            )
        )
        weights = prior_weights(backbone, shots.classes, shots.templates)
        parts = [
            (*residuals(backbone, shots, views[:, rows], shots.labels[rows]), unit(x), targets)
            for rows, x, targets in held_out(shots)
        ]

        def hits(beta: float) -> Tensor:
            found = torch.zeros(len(penalties), dtype=torch.long)
            for keys, rest, x, targets in parts:
                values, vectors = torch.linalg.eigh(kernel(keys, keys, beta))
                asked, turned, clip = kernel(x, keys, beta), vectors.T @ rest, x @ weights.T
                fits = (solve(values, vectors, turned, one) for one in penalties)
                found += hits_of((clip + asked @ fit for fit in fits), targets)
            return found

        return best_pair(betas, penalties, hits) if parts else (grid.beta, grid.penalty)


def kernel(x: Tensor, s: Tensor, beta: float) -> Tensor:
    """Return the kernel [B, M] of unit features [B, e] and [M, e]."""
    return (-beta * (1 - x @ s.T)).exp()


def residuals(
    backbone: Backbone, shots: Shots, views: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the features [M, e] of all views [V, N, e] of shots with labels [N], and what the
    prompts' cosines leave of their one-hot labels, [M, C]."""
    keys = views.flatten(0, 1)
    weights = prior_weights(backbone, shots.classes, shots.templates)
    targets = F.one_hot(labels, len(shots.classes)).to(keys).repeat(len(views), 1)
    return keys, targets - keys @ weights.T


def solve(values: Tensor, vectors: Tensor, turned: Tensor, penalty: float) -> Tensor:
    """Return (K / penalty + I)^-1 R [M, C] by the eigenvalues [M] and eigenvectors [M, M] of K, and
    their products with R, `turned` [M, C]."""
    return vectors @ (turned / (values / penalty + 1)[:, None])
