"""StatA: Zanella et al., "Realistic Test-Time Adaptation of Vision-Language Models", CVPR 2025,
arXiv 2501.03729.

Images are classified in batches. Each class is a normal distribution with a mean m_c, at first the
unit features t_c of its prompt, and a variance v_c for each feature. Shares z of the classes in the
images x are computed in turn with m and v:

z_ic ~ softmax_c(scale x_i t_c) exp((log N(x_i; m_c, v_c) + r sum_j (A_ij + A_ji) z_jc) / 50)
m_c = unit(b_c unit(sum_i z_ic x_i) + (1 - b_c) t_c)
v_c = b_c sum_i z_ic (x_i - m_c)^2 / sum_i z_ic + (1 - b_c) (v_0 + (t_c - m_c)^2)

A_ij is the cosine of image i and each of its k nearest images, r = 25 / k times the strength, and
b_c = n_c / (n_c + anchor), where n_c images have class c as their largest share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.encoders import States
from rmadapter.methods.parts.features import unit
from rmadapter.prompts import cosine_logits, zero_shot_weights
from rmadapter.settings import Positive, Size
from rmadapter.training.contract import (
    PUBLISHED,
    About,
    Fitted,
    Known,
    ToLogits,
    Traits,
    Untrained,
    Uses,
)

SHARE_STEPS = 5  # of the shares, between two steps of means and variances
DENSITY_DIVISOR = 50.0  # divisor of the log-densities
SMALLEST_SUM = 1e-12  # sum of the shares, and variance


@dataclass(frozen=True)
class StatA(Untrained):
    """Zero-shot whose classes move towards the images of a batch.

    An answer depends on the other images of its batch; here, 64 are classified together.

    Args:
        anchor: Number of images that the prompt of a class counts for.
        strength: Strength of the pull between similar images.
        neighbours: Number k of similar images of each.
        rounds: How often means and variances are computed.
    """

    title = "StatA"
    source = (
        "Zanella et al., CVPR 2025 (arXiv 2501.03729); solvers/StatA.py and main.py of "
        "github.com/MaxZanella/StatA"
    )
    traits = Traits(
        uses=Uses(
            track="test time",
            constants="the words of the prompt",
            test_time="features of the other images of a batch, in a random order",
            tuned=PUBLISHED,
        ),
        about=About(
            "nothing",
            "zero-shot whose classes move towards a batch of images",
            "many unlabelled images asked about at once",
        ),
        reads="features",
    )
    anchor: Positive = 1.0
    strength: Annotated[float, Field(ge=0)] = 1.0
    neighbours: Size = 3
    rounds: Size = 10

    def restore(self, backbone: Backbone, known: Known, tensors: Mapping[str, Tensor]) -> Fitted:
        def for_classes(names: Sequence[str]) -> ToLogits:
            prompts = zero_shot_weights(backbone, names, known.templates)

            @torch.no_grad()
            def score(states: States) -> Tensor:
                logits = cosine_logits(backbone, states.features, prompts)
                return self.shares(unit(states.features), prompts, logits).log()

            return score

        return Fitted(self, backbone, known, tensors, for_classes, remembers=True)

    def shares(self, x: Tensor, prompts: Tensor, logits: Tensor) -> Tensor:
        """Return shares [B, C] of the classes.

        Args:
            x: Unit features [B, e].
            prompts: Class features [C, e].
            logits: Logits [B, C] of zero-shot.
        """
        first = z = logits.softmax(-1)
        near = affinities(x, self.neighbours)
        near = self.strength * DENSITY_DIVISOR / (2 * self.neighbours) * (near + near.T)
        means = prompts
        at_first = spread(x, prompts, z).sum(0) / len(x)
        variances = at_first.expand_as(prompts)
        for number in range(self.rounds + 1):
            density = log_density(x, means, variances)
            for _ in range(SHARE_STEPS):
                pull = density + near @ z
                pull = pull - pull.amax(-1, keepdim=True)
                z = F.normalize(first * (pull / DENSITY_DIVISOR).exp(), p=1, dim=-1)
            if number == self.rounds:
                break
            held = torch.bincount(z.argmax(-1), minlength=len(prompts)).to(z)
            b = (held / (self.anchor + held))[:, None]
            means = unit(b * unit(z.T @ x) + (1 - b) * prompts)
            total = z.sum(0).clamp(min=SMALLEST_SUM)[:, None]
            anchored = at_first + (prompts - means) ** 2
            variances = b * spread(x, means, z) / total + (1 - b) * anchored
        return z.clamp(min=torch.finfo(z.dtype).tiny)


def spread(x: Tensor, means: Tensor, z: Tensor) -> Tensor:
    """Return the sums [C, e] of squared distances of images [B, e] from the classes' means [C, e],
    times the images' shares [B, C]."""
    total = z.sum(0)[:, None]
    return (z.T @ x**2 - 2 * means * (z.T @ x) + total * means**2).clamp(min=0)


def log_density(x: Tensor, means: Tensor, variances: Tensor) -> Tensor:
    """Return the logarithms [B, C], but for a constant, of normal densities of images [B, e], with
    means and variances [C, e]."""
    inverse = 1 / variances.clamp(min=SMALLEST_SUM)
    square = x**2 @ inverse.T - 2 * x @ (means * inverse).T + (means**2 * inverse).sum(-1)
    return -0.5 * (square - inverse.log().sum(-1))


def affinities(x: Tensor, neighbours: int) -> Tensor:
    """Return cosines [B, B] of unit features [B, e], 0 but for the nearest of each image."""
    cosines = x @ x.T
    found = torch.zeros_like(cosines)
    count = min(neighbours, len(x) - 1)
    if count:
        others = cosines.clone().fill_diagonal_(-torch.inf)
        rows = others.topk(count).indices
        found.scatter_(1, rows, cosines.gather(1, rows))
    return found
