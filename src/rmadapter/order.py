"""Images asked one after the other, where the answer to one depends on those before it; and where that cannot be."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rmadapter.cache import Cache
from rmadapter.data.images import ImageSet
from rmadapter.errors import UserError
from rmadapter.method import Fitted, ToLogits, answers


def ask_all(
    models: Mapping[str, ToLogits], fitted: Fitted, cache: Cache, images: ImageSet, seed: int, text: str = "evaluating"
) -> dict[str, Tensor]:
    """Probabilities [N, C] of each model, in the order of the images. models: as `Fitted.answers` has them.

    A method that remembers images is asked in a random order, the same one for a seed, as they lie class by class in a
    data set. Raises UserError as `answers`.
    """
    order = shuffled(len(images), seed) if fitted.remembers else None
    parts = list(answers(models, cache.stream(images, fitted.first, text, order), fitted.known.several))
    tables = {name: torch.cat([part.pop(name) for part in parts]) for name in models}
    return tables if order is None else {name: table[order.argsort()] for name, table in tables.items()}


def shuffled(count: int, seed: int) -> Tensor:
    """[count], rows in a random order."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def each_alone(fitted: Fitted, what: str) -> None:
    """Raises UserError for a method whose answers depend on the images before."""
    if fitted.remembers:
        raise UserError(
            f"{what} answers each image by itself, but {fitted.method.title} learns from the images that it is asked "
            "about: use `rmadapter predict` with all of them, or another method"
        )
