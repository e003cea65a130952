"""Configure methods for short trainings and collect their probabilities."""

from __future__ import annotations

from typing import Any

import torch

from rmadapter.data.read import ImageSet
from rmadapter.methods import load_method
from rmadapter.settings import settings_of
from rmadapter.training.contract import Fitted
from tests.helpers.shots import REQUIRED_SETTINGS

QUICK = {
    "epochs": 2, "iterations": 4, "batch_size": 3, "first_block": 3, "rank": 4, "layer": 3,
    "n_ctx": 2, "views": 4,
}  # fmt: skip


def quick_method(name: str) -> Any:
    """Return a method with little to do on four blocks."""
    own = settings_of(load_method(name))
    values = {key: value for key, value in QUICK.items() if key in own}
    if not own.get("iterations"):
        values.pop("iterations", None)
    return load_method(name, values | REQUIRED_SETTINGS.get(name, {}))


def probabilities(
    fitted: Fitted, images: ImageSet, names: tuple[str, ...] | None = None
) -> torch.Tensor:
    return torch.cat(list(fitted.probabilities(images.images, names)))
