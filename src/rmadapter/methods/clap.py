"""ZS-LP and CLAP, linear probes that start as zero-shot CLIP: Silva-Rodriguez et al., "A Closer
Look at the Few-Shot Adaptation of Large Vision-Language Models", CVPR 2024
(https://arxiv.org/abs/2312.12730).

    loss = cross-entropy + mean over classes c of strength_c |w_c - t_c|^2

w are the trained class features; they start at t, those of the text encoder. Neither is normalised
here, so their length determines how far one step turns them. Logits are cosines over CLIP's
temperature. ZS-LP has no penalty. CLAP holds a class more firmly the better zero-shot CLIP
recognises it: strength_c is the mean probability that zero-shot CLIP gives to c on the shots of c.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmadapter.backbones import Backbone
from rmadapter.methods.parts.features import columns, one_hot
from rmadapter.prompts import Cosines, cosine_logits, raw_text_features, untouched
from rmadapter.training.contract import (
    PUBLISHED,
    About,
    Batch,
    Fitted,
    Known,
    Method,
    Parameters,
    Recipe,
    Shots,
    ToLogits,
    Traits,
    Uses,
    minimise,
    shaped,
)

PAPER = (
    "Silva-Rodriguez et al., CVPR 2024 (arXiv 2312.12730); SGD_lr1e-1_B256_ep300 of "
    "github.com/jusiro/CLAP"
)


@dataclass(frozen=True)
class ZeroShotProbe(Method):
    """Class features trained as free weights, without a penalty. Only answers for the classes of
    its shots."""

    title = "linear probe, zero-shot start"
    source = f"ZS-LP of {PAPER}"
    traits = Traits(
        uses=Uses(tuned=PUBLISHED),
        about=About(
            "features",
            "a linear probe that starts as the class prompts",
            "class names that mean something",
            new_classes=False,
        ),
        reads="features",
    )
    penalised: ClassVar[bool] = False
    recipe: Recipe = Recipe(learning_rate=0.1, epochs=300, batch_size=256, weight_decay=0.0)

    def fit(self, backbone: Backbone, shots: Shots) -> Fitted:
        text = raw_text_features(backbone, shots.classes, shots.templates).mean(0)
        held = strengths(backbone, shots, text) if self.penalised else None
        probe = nn.ParameterDict({"weights": text.clone()})

        def loss(batch: Batch) -> dict[str, Tensor]:
            weights = probe["weights"]
            logits = cosine_logits(backbone, batch.images.features, F.normalize(weights, dim=-1))
            ce = F.cross_entropy(logits, batch.labels)
            if held is None:
                return {"loss": ce}
            penalty = (held * (weights - text).square().sum(-1)).mean()
            return {"loss": ce + penalty, "ce": ce, "penalty": penalty}

        trained = minimise(probe, loss, self.recipe, shots, shots.source())
        return self.restore(backbone, shots.known, probe.state_dict()).after(trained)

    def restore(self, backbone: Backbone, known: Known, tensors: Mapping[str, Tensor]) -> Fitted:
        weights = shaped(tensors, "weights", len(known.classes), backbone.embedding_size)
        trained = F.normalize(weights, dim=-1)

        def for_classes(names: Sequence[str]) -> ToLogits:
            return Cosines(backbone, untouched, trained[columns(self.title, known.classes, names)])

        return Fitted(self, backbone, known, tensors, for_classes, parameters=trained.numel())

    def parameters(self, backbone: Backbone, classes: int = 100, shots: int = 16) -> Parameters:
        return Parameters(classes * backbone.embedding_size)


@dataclass(frozen=True)
class CLAP(ZeroShotProbe):
    """A probe held near the text features. One setting for all data sets, as published; the
    strengths keep their initial values, as with constraint `l2` of the released code."""

    title = "CLAP"
    source = PAPER
    traits = Traits(
        uses=Uses(tuned=PUBLISHED),
        about=About(
            "features",
            "a linear probe held near the class prompts",
            "few shots of classes whose names CLIP knows",
            new_classes=False,
        ),
        reads="features",
    )
    penalised: ClassVar[bool] = True


def strengths(backbone: Backbone, shots: Shots, text: Tensor) -> Tensor:
    """Return strengths [C] in [0, 1], over all views of the shots.

    Args:
        backbone: Backbone of the fit.
        shots: Images of C classes.
        text: Class features [C, e].

    Raises:
        UserError: Views are drawn anew in every epoch.
    """
    # [N, C]
    probabilities = (
        cosine_logits(backbone, shots.features(), F.normalize(text, dim=-1)).softmax(-1).mean(0)
    )
    values = one_hot(shots)
    return (probabilities * values).sum(0) / values.sum(0).clamp(min=torch.finfo(values.dtype).tiny)
