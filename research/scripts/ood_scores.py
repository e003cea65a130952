"""Scores of the literature for familiar.py, higher for stranger images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBOURS = 10  # of NNGuide


def energy(logits: Tensor) -> Tensor:
    """Return minus the log of the sum of exponentials, [B] (Liu et al., NeurIPS 2020). logits:
    [B, C]."""
    return -logits.logsumexp(-1)


def virtual_logit(shots: Tensor, shot_logits: Tensor, new: Tensor, logits: Tensor) -> Tensor:
    """Return ViM, [B] (Wang et al., CVPR 2022): how far features are outside of the principal
    directions of the shots', scaled to the logits, plus the energy.

    The origin is 0, as for cosines, and the number of principal directions half of the shots, at
    most half of the width: the paper's 512 would leave nothing of so few. shots: [N, e].
    shot_logits: [N, C]. new: [B, e]. logits: [B, C].
    """
    kept = min(len(shots), shots.shape[1]) // 2
    _, directions = torch.linalg.eigh(shots.T.double() @ shots.double() / len(shots))
    outside = directions[:, : shots.shape[1] - kept].to(shots.dtype)
    scale = shot_logits.amax(-1).mean() / (shots @ outside).norm(dim=-1).mean()
    return scale * (new @ outside).norm(dim=-1) + energy(logits)


def guided(shots: Tensor, shot_logits: Tensor, new: Tensor, logits: Tensor) -> Tensor:
    """Return NNGuide, [B] (Park et al., ICCV 2023): the energy times the mean cosine to the nearest
    shots, each weighted by its own. Arguments as for `virtual_logit`."""
    bank = -energy(shot_logits)[:, None] * F.normalize(shots, dim=-1)
    nearest = (F.normalize(new, dim=-1) @ bank.T).topk(min(NEIGHBOURS, len(bank))).values
    return nearest.mean(-1) * energy(logits)


def concepts(new: Tensor, weights: Tensor) -> Tensor:
    """Return MCM, [B] (Ming et al., NeurIPS 2022): minus the largest softmax of cosines. new: [B,
    e]. weights: unit text features of the classes, [C, e]."""
    return -(F.normalize(new, dim=-1) @ weights.T).softmax(-1).amax(-1)


def negatives(new: Tensor, weights: Tensor, words: Tensor, scale: float) -> Tensor:
    """Return NegLabel, [B] (Jiang et al., ICLR 2024): the share of the softmax that goes to words
    that are no class. Of the words, the half that is least like the classes is used; a word is as
    like them as 95 % of its cosines are at most.

    words: unit text features [W, e]. scale: of the cosines, the backbone's logit scale. Others as
    for `concepts`.
    """
    like = (words @ weights.T).quantile(0.95, dim=1)
    apart = words[like.argsort()[: len(words) // 2]]
    cosines = F.normalize(new, dim=-1) @ torch.cat([weights, apart]).T
    return (scale * cosines).softmax(-1)[:, len(weights) :].sum(-1)
