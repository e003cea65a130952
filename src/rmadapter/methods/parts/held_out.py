"""Hold out images to choose a setting by: validation images, or parts of the shots held out in
turn."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from rmadapter.training.contract import Shots

FOLDS = 4


def held_out(shots: Shots) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return (rows of the shots to fit, features [M, e] and labels, as in `Shots`, to judge by):
    one, or one per fold.

    Folds are drawn whatever the groups, which change no model: nothing is reported on them.
    """
    labels = shots.labels
    if shots.val:
        targets = replace(shots, images=shots.val).labels
        return [(torch.arange(len(labels)), shots.plain_features(shots.val), targets)]
    plain = shots.plain_features()
    return [(rows, plain[held], labels[held]) for rows, held in folds(labels, shots.seed)]


def folds(labels: Tensor, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Return (rows to fit, rows held out) for at most FOLDS parts; none if a class has one shot.
    Every fit has every class."""
    from sklearn.model_selection import StratifiedKFold

    parts = min(FOLDS, int(torch.bincount(labels).min()))
    if parts < 2:
        return []
    numbers = labels.cpu().numpy()
    splits = StratifiedKFold(parts, shuffle=True, random_state=seed).split(numbers, numbers)
    return [(torch.from_numpy(fit), torch.from_numpy(held)) for fit, held in splits]
