"""Methods whose answer to an image depends on the images before it: in which order to ask, and
where to refuse them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rmadapter.data.read import ImageSet
from rmadapter.errors import UserError
from rmadapter.training.cache import Cache
from rmadapter.training.contract import Fitted, ToLogits, answers


def ask_all(
    models: Mapping[str, ToLogits],
    fitted: Fitted,
    cache: Cache,
    images: ImageSet,
    seed: int,
    text: str = "evaluating",
) -> dict[str, Tensor]:
    """Probabilities [N, C] of each model, in the order of the images. models: as for
    `Fitted.answers`.

    A method that remembers images sees them in a random order that depends on the seed, because
    data sets are sorted by class. Raises UserError as `answers` does.
    """
    order = shuffled(len(images), seed) if fitted.remembers else None
    parts = list(answers(models, cache.stream(images, fitted.first, text, order)))
    tables = {name: torch.cat([part.pop(name) for part in parts]) for name in models}
    return (
        tables
        if order is None
        else {name: table[order.argsort()] for name, table in tables.items()}
    )


def shuffled(count: int, seed: int) -> Tensor:
    """[count]: row numbers in random order."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def each_alone(fitted: Fitted, what: str) -> None:
    """Raises UserError for a method whose answers depend on earlier images."""
    if fitted.remembers:
        raise UserError(
            f"{what} answers each image by itself, but {fitted.method.title} learns from the images that it is asked "
            "about: use `rmadapter predict` with all of them, or another method"
        )
