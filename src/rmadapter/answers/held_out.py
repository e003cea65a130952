"""What a model found on images that it was not fitted to, by whose ranks shares of new images are
promised.

NumPy only, since exports hold this file.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import fields
from typing import ClassVar, Literal, TypeAlias, TypedDict, TypeVar, get_args

import numpy as np

from rmadapter.errors import UserError

Origin: TypeAlias = Literal["folds", "held out"]
HeldOutType = TypeVar("HeldOutType", bound="HeldOut")
SHARES = (0.01, 0.05, 0.1)  # that are measured, and offered where there is a choice
MAX_CALIBRATION_IMAGES = 10_000
CONFIDENCE = 0.95  # of a bound
BOUND_STEPS = 50  # halvings of 0 to 1, after which a bound is as exact as a float
# before what is promised: the models of folds are not the one that promises
ESTIMATED: dict[Origin, str] = {"folds": "estimated on folds, ", "held out": ""}
IF_EXACT: dict[Origin, str] = {"folds": ", if the folds were such a draw", "held out": ""}


class HeldOutFacts(TypedDict):
    """How many images a promise rests on, and which: `source` and `grouped` of `HeldOut`."""

    images: int
    source: Origin
    grouped: bool


class HeldOut(ABC):
    """What a model found on N images that it was not fitted to: a frozen dataclass.

    Attributes:
        source: "held out" for images that were not drawn; "folds" for the shots, each answered by a
            model that was fitted to the other folds.
        grouped: Whether the N images are one of each group of images, as images of a group say
            little more than one of them.
        numbers: Names of the fields that hold a number of each image.
        request: What a user asks for with a share, in percent.
    """

    source: Origin
    grouped: bool
    numbers: ClassVar[tuple[str, ...]]
    request: ClassVar[str]

    @property
    @abstractmethod
    def images(self) -> int:
        """The number N of images."""

    @classmethod
    def from_json(cls: type[HeldOutType], values: object) -> HeldOutType:
        """Check what `json` returned; earlier versions wrote no `grouped`. Raises ValueError for
        anything else."""
        names = {field.name for field in fields(cls)}  # type: ignore[arg-type]
        if not isinstance(values, dict) or values.keys() | {"grouped"} != names:
            raise ValueError(f"not the fields of {cls.__name__}")
        facts = {"grouped": False, **values}
        for name in cls.numbers:
            if not isinstance(facts[name], list) or {*map(type, facts[name])} - {int, float}:
                raise ValueError(f"{name}: not a list of numbers")
            facts[name] = tuple(facts[name])
        if facts["source"] not in get_args(Origin) or not isinstance(facts["grouped"], bool):
            raise ValueError("an unknown source, or grouped is neither true nor false")
        return cls(**facts)

    def json(self) -> dict[str, object]:
        """Return the fields as JSON has them."""
        return {
            name: [*value] if isinstance(value, tuple) else value
            for name, value in vars(self).items()
        }

    @property
    def facts(self) -> HeldOutFacts:
        """How many images it is of, and which."""
        return {"images": self.images, "source": self.source, "grouped": self.grouped}

    def possible(self) -> list[float]:
        """Return those of `SHARES` for which there are enough images."""
        return [share for share in SHARES if rank(self.images, share)]

    @property
    def least(self) -> float:
        """The smallest share that can be promised."""
        return least_share(self.images)

    def rank(self, share: float) -> int:
        """Return k = floor((N + 1) share), the number of places among N + 1 images that a promised
        share allows.

        Raises:
            UserError: The share is not between 0 and 1, or there are fewer images than it needs.
        """
        what = f"{self.request} {100 * share:g} %"
        if not 0 < share < 1:
            raise UserError(f"{what}: give more than 0 and less than 100 %")
        places = rank(self.images, share)
        if not places:
            # a method that takes long to train answers only as many folds as its choice needs
            folds = " or with --folds 4" if self.source == "folds" else ""
            raise UserError(
                f"{what} needs {needed(share):,} {'groups of ' * self.grouped}images that the "
                f"model was not fitted to, and there are {self.images:,}: allow "
                f"{100 * self.least:g} % or more, or fit again to more images{folds}"
            )
        return places

    def bound(self, share: float) -> float:
        """Return the share that stands for the promised one in 95 % of draws of the images, as from
        `most_missed`."""
        return most_missed(self.images, share)

    @abstractmethod
    def promise(self, share: float) -> str:
        """Return in words what is promised of a share of images."""


def one_of_each_group(count: int, groups: np.ndarray | None, seed: int) -> tuple[np.ndarray, bool]:
    """Draw images to keep.

    Args:
        count: Number N of images, of which at most 10,000 are kept.
        groups: [N], number of each image's group; None where each stands alone.
        seed: Seed of the draw of one image from each group.

    Returns:
        The rows of the images, in random order, and whether they are one of each group.
    """
    rows = np.arange(count)
    if groups is not None:
        order = np.random.default_rng(seed).permutation(count)
        rows = np.sort(order[np.unique(groups[order], return_index=True)[1]])
    mixed = np.random.default_rng(0).permutation(len(rows))[:MAX_CALIBRATION_IMAGES]
    return rows[mixed], len(rows) < count


def describe_images(images: int, source: Origin, grouped: bool = False) -> str:
    """Say which images a promise rests on."""
    number = f"{images:,} groups of" if grouped else f"{images:,}"
    if source == "held out":
        return f"{number} images that were not drawn"
    return f"{number} training images, each answered by a model that had not seen it"


def needed(share: float) -> int:
    """Return how many images a share above 0 needs."""
    return math.ceil(round(min(1 / share, 1e12), 9)) - 1  # 1 / share may be infinite


def least_share(images: int) -> float:
    """Return the smallest share that so many images allow, rounded up to a tenth of a percent."""
    return math.ceil(round(1000 / (images + 1), 9)) / 1000


def rank(images: int, share: float) -> int:
    """Return k = floor((N + 1) share), the place of a limit among N images, from 1; 0 if they are
    too few."""
    return math.floor(round((images + 1) * share, 9))


def most_missed(images: int, share: float) -> float:
    """Return the share of new images below the k-th smallest of N numbers, at most, with 95 %
    confidence (Vovk, 2012).

    It follows Beta(k, N + 1 - k), k = floor((N + 1) share), whose mean is at most `share`, and is
    below x with the probability that at least k of N uniform numbers are. Raises ValueError if k is
    0.
    """
    k = rank(images, share)
    if not k:
        raise ValueError(f"{images} images for a share of {share}")
    fewer = np.arange(k)  # numbers below x: fewer than k
    ways = np.cumsum(np.log(np.append(1, (images - fewer[:-1]) / (fewer[:-1] + 1))))
    low, high = 0.0, 1.0
    for _ in range(BOUND_STEPS):
        x = (low + high) / 2
        chances = np.exp(ways + fewer * math.log(x) + (images - fewer) * math.log1p(-x))
        if chances.sum() > 1 - CONFIDENCE:
            low = x
        else:
            high = x
    return high
