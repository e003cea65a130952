"""The shots as methods on frozen features see them: features, labels, held-out parts, the only classes they know."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rmadapter.backbone import Backbone
from rmadapter.bench.methods.base import NotApplicable, Training
from rmadapter.bench.methods.zero_shot import text_features
from rmadapter.data.images import ImageSet

FOLDS = 4  # parts of the shots that are held out in turn where there is no validation split


def shot_features(train: Training) -> Tensor:
    """Features [V, N, e] of V views of the shots, as the untouched encoder gives them; not normalised."""
    frozen = train.frozen()
    return frozen.features.unflatten(0, (frozen.views, len(frozen))).to(train.device)


def plain_features(train: Training, images: ImageSet) -> Tensor:
    """Features [N, e] of the images, shots or validation images, without augmentation; not normalised."""
    return train.frozen(images=images).features.to(train.device)


def labels_of(train: Training, images: ImageSet | None = None) -> Tensor:
    """Labels [N] of the shots or of other images."""
    return torch.tensor((train.images if images is None else images).labels, device=train.device)


def folds(labels: Tensor, seed: int) -> list[tuple[Tensor, Tensor]]:
    """(rows to fit, rows held out) for at most FOLDS parts, every class in every fit; none if a class has one shot."""
    from sklearn.model_selection import StratifiedKFold

    parts = min(FOLDS, int(torch.bincount(labels).min()))
    if parts < 2:
        return []
    found = labels.cpu().numpy()
    splits = StratifiedKFold(parts, shuffle=True, random_state=seed).split(found, found)
    return [(torch.from_numpy(fit), torch.from_numpy(held)) for fit, held in splits]


def columns(title: str, classes: Sequence[str], names: Sequence[str]) -> list[int]:
    """Where the names stand among the classes that were trained. Raises NotApplicable for another name."""
    place = {name: i for i, name in enumerate(classes)}
    if new := [name for name in names if name not in place]:
        raise NotApplicable(f"{title} knows the classes it was trained on alone, not {new[0]!r}")
    return [place[name] for name in names]


def embedding_size(backbone: Backbone) -> int:
    """Length e of a feature."""
    return text_features(backbone, ["a"], ["{}"]).shape[-1]
