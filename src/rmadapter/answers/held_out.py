"""What a model found on images that it was not fitted to, by whose ranks shares of new images are
promised.

NumPy only, since exports hold this file.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import MISSING, fields
from typing import ClassVar, Literal, TypeAlias, TypedDict, TypeVar, get_args

import numpy as np
from numpy.typing import ArrayLike

from rmadapter.errors import UserError

Origin: TypeAlias = Literal["folds", "held out"]
HeldOutType = TypeVar("HeldOutType", bound="HeldOut")
SHARES = (0.01, 0.05, 0.1)  # that are measured, and offered where there is a choice
MAX_CALIBRATION_IMAGES = 10_000
# of the answers, kept by the first threshold that is tested: if fewer, one wrong answer among the
# surest ends the search; if more, thresholds that keep few are missed
FIRST_SHARE = 1 / 8
CONFIDENCE = 0.9  # share of draws of the images by which a promise is kept
# before what is promised: models that did not see a shot are not the one that promises
ESTIMATED: dict[Origin, str] = {"folds": "estimated on the training images, ", "held out": ""}


class HeldOutFacts(TypedDict):
    """How many images a promise rests on, and which: `source` and `grouped` of `HeldOut`."""

    images: int
    source: Origin
    grouped: bool


class HeldOut(ABC):
    """What a model found on N images that it was not fitted to: a frozen dataclass.

    Attributes:
        source: "held out" for images that were not drawn; "folds" for the shots, each answered by a
            model that was fitted without it.
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
    def images(self) -> int:
        """The number N of images."""
        return len(getattr(self, self.numbers[0]))

    @classmethod
    def from_json(cls: type[HeldOutType], values: object) -> HeldOutType:
        """Check what `json` returned; earlier versions wrote none of the fields that have a
        default. Raises ValueError for anything else."""
        own = fields(cls)  # type: ignore[arg-type]
        optional = {field.name: field.default for field in own if field.default is not MISSING}
        names = {field.name for field in own}
        if not isinstance(values, dict) or values.keys() | optional.keys() != names:
            raise ValueError(f"not the fields of {cls.__name__}")
        facts = {**optional, **values}
        for name in {*cls.numbers} & values.keys():
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
        """Return the number k of the N images that a promised share allows, as `rank`.

        Raises:
            UserError: The share is not between 0 and 1, or there are fewer images than it needs.
        """
        what = f"{self.request} {100 * share:g} %"
        if not 0 < share < 1:
            raise UserError(f"{what}: give more than 0 and less than 100 %")
        places = rank(self.images, share)
        if not places:
            # a method that trains answers a quarter of the shots unless it is asked for more
            folds = " or, if its method trains, with --folds 4" if self.source == "folds" else ""
            raise UserError(
                f"{what} needs {needed(share):,} {'groups of ' * self.grouped}images that the "
                f"model was not fitted to, and there are {self.images:,}: allow "
                f"{100 * self.least:g} % or more, or fit again to more images{folds}"
            )
        return places

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
    """Return how many images a share between 0 and 1 needs: the smallest N with a `rank`."""
    images = math.log(1 - CONFIDENCE) / math.log1p(-share)  # infinite for the tiniest shares
    return math.ceil(round(min(images, 1e12), 9))


def least_share(images: int) -> float:
    """Return the smallest share that so many images allow, rounded up to a tenth of a percent."""
    share = 1 - math.exp(math.log(1 - CONFIDENCE) / images)
    return math.ceil(round(1000 * share, 9)) / 1000


def rank(images: int, share: float) -> int:
    """Return the place k of a limit among N images, from 1, by which at most a share of new images
    is missed for nine of ten draws of the N images; 0 if they are too few.

    What lies below the k-th smallest of N numbers follows Beta(k, N + 1 - k), and is at most
    `share` with the probability that at least k of N uniform numbers are (Vovk, 2012).
    """
    fewer = np.arange(math.ceil(images * share) + 1)  # numbers below the share; the median is here
    ways = np.cumsum(np.log(np.append(1, (images - fewer[:-1]) / (fewer[:-1] + 1))))
    chances = np.exp(ways + fewer * math.log(share) + (images - fewer) * math.log1p(-share))
    return int(np.count_nonzero(chances.cumsum() <= 1 - CONFIDENCE))


def sure_from(confidence: ArrayLike, right: ArrayLike, wrong: float) -> float:
    """Return the lowest confidence from which on at most a share of new answers is wrong, for nine
    of ten draws of N images; infinity if no answer is sure enough.

    Thresholds are tested from the highest down until one fails (fixed-sequence testing;
    Angelopoulos et al., 2021, arXiv 2110.01052). How many answers each keeps depends on N alone:
    the first an eighth, or as many as pass without a wrong one if these are more; the next ones as
    few as pass with one more wrong answer each; the last all. One passes if so few wrong answers
    among those that it keeps had a probability of at most 0.1 if each were wrong with the
    probability `wrong` (the exact binomial test). Of the thresholds that keep too large a share of
    wrong answers only the first matters, and it passes for at most one of ten draws. This is exact
    if a lower threshold never keeps a smaller share of wrong answers than a higher one.

    Args:
        confidence: [N], probabilities of answers.
        right: [N] bool, whether each is right.
        wrong: Share of the answers from there on that may be wrong, above 0 and below 1.
    """
    values, correct = np.asarray(confidence, np.float64), np.asarray(right, bool)
    order = np.argsort(-values, kind="stable")
    values, misses = values[order], np.cumsum(~correct[order])
    threshold, passing = float("inf"), 0
    first = max(needed(wrong), int(len(values) * FIRST_SHARE))
    for count in range(first, len(values) + 1):
        places = rank(count, wrong)
        if places > passing or count == len(values):
            passing = places
            kept = int((values >= values[count - 1]).sum())  # equal ones are kept together
            if misses[kept - 1] >= rank(kept, wrong):
                break
            threshold = float(values[count - 1])
    return threshold
