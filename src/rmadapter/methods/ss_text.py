"""SS-Text: Silva-Rodriguez et al., "Few-Shot, Now for Real: Medical VLMs Adaptation without
Balanced Sets or Validation", MICCAI 2025 (arXiv 2506.17500), and SS-Text-U: Silva-Rodriguez and
Konukoglu, "Semi-Supervised Few-Shot Adaptation of Vision-Language Models", 2026 (arXiv
2603.02959).

Class weights in closed form, for N shots with unit features x, n_c of them of class c, whose prompt
has the unit features t_c. Logits are the scaled cosines of images and weights:

SS-Text    w_c = scale sum_{i in c} x_i + t_c
SS-Text+   v_c = scale (n_c / N) sum_{i in c} x_i + t_c,    w_c = v_c - unit(2 v_c - mean(v))
SS-Text-U  w_c = scale (n_c / 2N) sum_{i in c} x_i + scale / M sum_j z_jc u_j + t_c

z_jc is the share of class c in image u_j, one of M without labels: their softmax, moved by optimal
transport to the frequencies of the classes among the shots. w and z are computed in turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.methods.parts.features import Places, one_hot, unit
from rmadapter.prompts import Cosines, cosine_logits, untouched, zero_shot_weights
from rmadapter.settings import Positive, Size
from rmadapter.training.contract import (
    PUBLISHED,
    About,
    Fitted,
    Known,
    Shots,
    Trained,
    Traits,
    Untrained,
    Uses,
    shaped,
)


@dataclass(frozen=True)
class SSText(Untrained):
    """Nothing is trained and nothing is searched. Classes without shots have their prompts."""

    title = "SS-Text"
    source = (
        "Silva-Rodriguez et al., MICCAI 2025 (arXiv 2506.17500); solvers/sstext.py of "
        "github.com/jusiro/SS-Text"
    )
    traits = Traits(
        uses=Uses(tuned=PUBLISHED),
        about=About(
            "nothing",
            "sums of the shots' features, with the prompt as one more",
            "an answer at once, without choosing anything",
        ),
        reads="features",
    )

    def fit(self, backbone: Backbone, shots: Shots) -> Fitted:
        weights = {"weights": unit(self.weights(backbone, shots))}
        return self.restore(backbone, shots.known, weights).after(Trained(weighed=True))

    def weights(self, backbone: Backbone, shots: Shots) -> Tensor:
        """Return the weights [C, e] of the classes of the shots, not normalised."""
        prompts = zero_shot_weights(backbone, shots.classes, shots.templates)
        return backbone.logit_scale * one_hot(shots).T @ unit(shots.plain_features()) + prompts

    def restore(self, backbone: Backbone, known: Known, tensors: Mapping[str, Tensor]) -> Fitted:
        weights = shaped(tensors, "weights", len(known.classes), backbone.embedding_size)

        def for_classes(names: Sequence[str]) -> Cosines:
            places = Places.of(self.title, backbone, known.classes, names)
            every = zero_shot_weights(backbone, names, known.templates)
            every[places.old] = weights[places.rows]
            return Cosines(backbone, untouched, every)

        return Fitted(self, backbone, known, tensors, for_classes)


@dataclass(frozen=True)
class SSTextPlus(SSText):
    """SS-Text whose classes count by their numbers of shots, and are moved apart: what the released
    code runs by default."""

    title = "SS-Text+"
    traits = Traits(
        uses=Uses(tuned=PUBLISHED),
        about=About(
            "nothing",
            "sums of the shots' features, weighed by their number and moved apart",
            "classes with very different numbers of images",
        ),
        reads="features",
    )

    def weights(self, backbone: Backbone, shots: Shots) -> Tensor:
        prompts = zero_shot_weights(backbone, shots.classes, shots.templates)
        near = backbone.logit_scale * by_count(shots) + prompts
        return near - unit(2 * near - near.mean(0))


@dataclass(frozen=True)
class SSTextU(SSText):
    """SS-Text with images without labels.

    The images are all train images that are not tested on, and the names are those of all classes.
    Without such images, only the shots count.

    Args:
        rounds: How often weights and shares are computed.
        sinkhorn: Iterations of the transport.
        rare: How much rarer a class without shots is than the rarest of the others.
    """

    title = "SS-Text-U"
    source = (
        "Silva-Rodriguez and Konukoglu, 2026 (arXiv 2603.02959); libs/solvers/sstextu.py of "
        "github.com/jusiro/SS-Text-U"
    )
    traits = Traits(
        uses=Uses(
            track="extra data",
            extra="all train images without labels, and the names of all classes",
            tuned=PUBLISHED,
        ),
        unlabelled=True,
        about=About(
            "nothing",
            "sums of features of the shots and of images without labels",
            "few labels and many images without",
        ),
        reads="features",
    )
    rounds: Size = 3
    sinkhorn: Size = 10
    rare: Positive = 4.0

    def weights(self, backbone: Backbone, shots: Shots) -> Tensor:
        images = shots.unlabelled
        names = shots.classes if images is None else images.classes
        rows = [names.index(name) for name in shots.classes]
        fixed = zero_shot_weights(backbone, names, shots.templates)
        every = fixed.clone()
        fixed[rows] += backbone.logit_scale * by_count(shots) / 2
        if images is None:
            return fixed[rows]
        shares = fixed.new_zeros(len(names))
        shares[rows] = one_hot(shots).sum(0).to(shares)
        shares = self.frequencies(shares)
        pool = unit(shots.plain_features(images))
        for _ in range(self.rounds):
            logits = cosine_logits(backbone, pool, F.normalize(every, dim=-1))
            found = transport(logits, shares, self.sinkhorn)
            every = fixed + backbone.logit_scale * found.T @ pool / len(pool)
        return every[rows]

    def frequencies(self, counts: Tensor) -> Tensor:
        """Return the expected frequencies [C] of classes with these numbers of shots [C]."""
        shares = counts / counts.sum()
        rarest = shares[shares > 0].min() / self.rare
        shares = torch.where(shares > 0, shares, rarest)
        return shares / shares.sum()


def by_count(shots: Shots) -> Tensor:
    """Return the sums [C, e] of the unit features of each class's shots, times its share of all
    shots."""
    members = one_hot(shots)
    shares = members.sum(0) / members.sum()
    return shares[:, None] * (members.T @ unit(shots.plain_features()))


def transport(logits: Tensor, shares: Tensor, iterations: int) -> Tensor:
    """Return the probabilities [M, C] of M images, whose means come close to the shares [C] of the
    classes: Sinkhorn's iterations from exp(logits), with images last."""
    log, wanted = logits, shares.log()
    for _ in range(iterations):
        log = log - log.logsumexp(0) + wanted
        log = log - log.logsumexp(1, keepdim=True)
    return log.exp()
