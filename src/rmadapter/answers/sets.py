"""Prediction sets that miss the right class no more often than promised: split conformal prediction
(Vovk et al., 2005) with sets of all classes that are probable enough (Sadinle et al., 2019).

NumPy only, since exports hold this file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypedDict, get_args

import numpy as np
from numpy.typing import ArrayLike

from rmadapter.errors import UserError

Source: TypeAlias = Literal["folds", "held out"]
ANSWER, UNSURE = "answer", "unsure"
ERRORS = (0.01, 0.05, 0.1)  # that are measured, and offered where there is a choice
MOST = 10_000  # images of a calibration
NOTHING = (
    "nothing can be promised with a method that learns from the images that it answers, as an "
    "answer depends on those before it: fit with another method"
)
SLACK = 5  # classes are calibrated by themselves if that costs at most this part of the error


# before what is promised: the models of folds are not the one that promises
ESTIMATED: dict[Source, str] = {"folds": "estimated on folds, ", "held out": ""}


class CalibrationFacts(TypedDict):
    """By how many images, and by which, an error can be promised. grouped: as in `Calibration`."""

    images: int
    source: Source
    grouped: bool


@dataclass(frozen=True)
class Calibration:
    """What a model's probabilities were worth on images that it was not fitted to.

    Attributes:
        shares: Probability of the own class of each of N images, ascending.
        classes: Index of that class, for each image.
        known: Number of classes of the model.
        source: "held out" for images that were not drawn; "folds" for the shots, each answered by a
            model that was fitted to the other folds.
        grouped: Whether the N images are one of each group of images, as images of a group say
            little more than one of them.
    """

    shares: tuple[float, ...]
    classes: tuple[int, ...]
    known: int
    source: Source
    grouped: bool = False

    def __post_init__(self) -> None:
        if not 0 < len(self.shares) == len(self.classes) <= MOST:
            raise ValueError("no images, too many, or not one class for each")
        if not all(0 <= share <= 1 for share in self.shares) or min(self.classes) < 0:
            raise ValueError("a probability outside 0 to 1, or a negative class")
        if max(self.classes) >= self.known:
            raise ValueError("an unknown class")
        if [*self.shares] != sorted(self.shares):
            raise ValueError("probabilities that do not ascend")

    @classmethod
    def of(
        cls,
        probabilities: np.ndarray,
        labels: ArrayLike,
        source: Source,
        groups: np.ndarray | None = None,
        seed: int = 0,
    ) -> Calibration:
        """Calibrate by a table.

        Args:
            probabilities: Table [N, C].
            labels: [N], indices of the right classes. Of more than 10,000 images, as many are drawn
                at random.
            source: Where the images are from.
            groups: [N], number of each image's group, of which one image is drawn; None where each
                stands alone.
            seed: Of that draw.
        """
        which = np.asarray(labels)
        shares = probabilities[np.arange(len(which)), which].astype(np.float64)
        rows, grouped = drawn(len(which), groups, seed)
        rows = rows[np.argsort(shares[rows], kind="stable")]
        # rounded down, as a higher limit would miss the image itself
        rounded = np.floor(shares[rows] * 1e6) / 1e6
        return cls(
            tuple(rounded.tolist()),
            tuple(which[rows].tolist()),
            probabilities.shape[1],
            source,
            grouped,
        )

    @classmethod
    def from_json(cls, values: object) -> Calibration:
        """Check what `json` returned. Raises ValueError for anything else."""
        fields = {"shares", "classes", "known", "source"}
        if not isinstance(values, dict) or values.keys() - {"grouped"} != fields:
            raise ValueError("not the fields of a calibration")
        shares, classes, known = values["shares"], values["classes"], values["known"]
        if not isinstance(shares, list) or not isinstance(classes, list):
            raise ValueError("no lists")
        if {*map(type, shares)} - {int, float} or {*map(type, [*classes, known])} - {int}:
            raise ValueError("not numbers")
        if values["source"] not in get_args(Source):
            raise ValueError("an unknown source")
        return cls(tuple(shares), tuple(classes), known, values["source"], is_grouped(values))

    def json(self) -> dict[str, object]:
        """Return the fields as JSON has them."""
        return {
            "shares": [*self.shares],
            "classes": [*self.classes],
            "known": self.known,
            "source": self.source,
            "grouped": self.grouped,
        }

    @property
    def facts(self) -> CalibrationFacts:
        """How many images it is of, and which."""
        return {"images": len(self.shares), "source": self.source, "grouped": self.grouped}

    def possible(self) -> list[float]:
        """Return those of `ERRORS` for which there are enough images."""
        return [error for error in ERRORS if len(self.shares) >= needed(error)]

    def promise(self, error: float) -> str:
        """Return in words what sets with these limits promise."""
        images = describe_images(len(self.shares), self.source, self.grouped)
        return (
            f"{ESTIMATED[self.source]}the right class is missing from the sets of at most "
            f"{100 * error:g} % of images like these {images}"
        )

    def details(self, error: float, classes: int) -> list[str]:
        """Return what else is to be said of a promise for so many classes."""
        texts = []
        if self.by_class(error):
            texts.append("the same holds for each class by itself")
        elif self.known > 1:
            texts.append(self._frequencies())
        if classes > self.known:
            added = classes - self.known
            texts.append(f"more may be missed, as classes were added by name ({added})")
        return texts

    def _frequencies(self) -> str:
        """Say how frequent classes are to be where they share a limit."""
        fewest, most = min(self.counts), max(self.counts)
        each = f"{fewest:,} to {most:,}" if fewest < most else f"{most:,}"
        text = f"it holds where classes are as frequent as among these images ({each} of each)"
        if self.source == "folds":
            text += "; fit --draw natural draws them as frequent as in its data"
        return text

    def limits(self, error: float, classes: int) -> np.ndarray:
        """Return the probability [C] from which on a class belongs to the set.

        If new images are like the calibration's, the sets miss the right class of a share of at
        most `error` of them, on average over calibrations. For N images that is the k-th smallest
        probability, k = floor((N + 1) error). Classes have limits of their own if each has enough
        images; then the promise holds for every class.

        Args:
            error: Share of images, above 0 and below 1.
            classes: Number of classes to choose from. Those that the model was not calibrated with,
                which are the last, have the limit of all.

        Raises:
            UserError: An error outside 0 to 1, or fewer images than it needs.
        """
        least = needed(error)
        if len(self.shares) < least:
            raise UserError(
                f"an error of {100 * error:g} % needs {least:,} {'groups of ' * self.grouped}"
                f"images that the model was not fitted to, and there are {len(self.shares):,}: "
                f"allow {100 * least_share(len(self.shares)):g} % or more, "
                f"{how_to_get_more(self.source)}"
            )
        shares, which = np.array(self.shares), np.array(self.classes)
        limits = np.full(classes, shares[rank(len(shares), error) - 1])
        if self.by_class(error):
            by_class = shares[np.argsort(which, kind="stable")]
            counts = np.bincount(which, minlength=self.known)
            places = np.floor(np.round((counts + 1) * error, 9)).astype(int) - 1
            limits[: self.known] = by_class[np.cumsum(counts) - counts + places]
        return limits

    def by_class(self, error: float) -> bool:
        """Return whether every class has limits of its own at this error."""
        return min(self.counts) >= SLACK * (needed(error) + 1) - 1

    @property
    def counts(self) -> list[int]:
        """The number of images of each of the known classes."""
        counts: list[int] = np.bincount(self.classes, minlength=self.known).tolist()
        return counts

    def behind(self, error: float) -> list[int]:
        """Return the number of images behind each limit: of each class, or of all together."""
        return self.counts if self.by_class(error) else [len(self.shares)]


def drawn(count: int, groups: np.ndarray | None, seed: int) -> tuple[np.ndarray, bool]:
    """Return the rows of at most 10,000 of N images, in random order, and whether they are one of
    each group. count, groups, seed: N, and as for `Calibration.of`."""
    rows = np.arange(count)
    if groups is not None:
        order = np.random.default_rng(seed).permutation(count)
        rows = np.sort(order[np.unique(groups[order], return_index=True)[1]])
    mixed = np.random.default_rng(0).permutation(len(rows))[:MOST]
    return rows[mixed], len(rows) < count


def is_grouped(values: dict[str, object]) -> bool:
    """Return whether saved values are of one image of each group, which earlier versions did not
    say. Raises ValueError for what is neither true nor false."""
    grouped = values.get("grouped", False)
    if not isinstance(grouped, bool):
        raise ValueError("grouped, or not?")
    return grouped


def describe_images(count: int, source: Source, grouped: bool = False) -> str:
    """Say which images a promise rests on."""
    number = f"{count:,} groups of" if grouped else f"{count:,}"
    if source == "held out":
        return f"{number} images that were not drawn"
    return f"{number} training images, each answered by a model that had not seen it"


def how_to_get_more(source: Source) -> str:
    """Say what to do if a promise rests on too few images: a method that takes long to train
    answers only as many folds as its choice needs."""
    return "or fit again to more images" + (" or with --folds 4" if source == "folds" else "")


def limits_of(
    calibration: Calibration | None,
    error: float,
    known: Sequence[str],
    names: Sequence[str],
    remembers: bool = False,
) -> np.ndarray:
    """Return the limits [C] of a model's classes.

    Args:
        calibration: The model's, if it has one.
        error: As for `Calibration.limits`.
        known: Classes that the model was fitted to.
        names: The C classes to choose from.
        remembers: As for `Fitted`.

    Raises:
        UserError: No calibration, a model that remembers images, classes without a calibration, or
            as `Calibration.limits`.
    """
    if remembers:
        raise UserError(NOTHING)
    if calibration is None:
        raise UserError(
            "no error can be promised, as this model has no answers on images that it was not "
            "fitted to: fit again with --folds 4, or in Python call `calibrate`"
        )
    if (*names[: len(known)],) != (*known,):
        raise UserError("an error is promised for the classes that the model was fitted to alone")
    return calibration.limits(error, len(names))


def parse_share(text: str) -> float:
    """Parse a share such as 5% or 0.05, from 0 to below 1. Raises UserError for others."""
    word = text.strip()
    with suppress(ValueError):
        number = float(word.removesuffix("%")) / (100 if word.endswith("%") else 1)
        if 0 <= number < 1:
            return number
    raise UserError(f"{word[:100]!r} is no share such as 5% or 0.05")


def needed(error: float) -> int:
    """Return how many images an error needs. Raises UserError if it is not between 0 and 1."""
    if not 0 < error < 1:
        raise UserError(f"an error of {100 * error:g} %: give one above 0 and below 100 %")
    return math.ceil(round(min(1 / error, 1e12), 9)) - 1  # 1 / error may be infinite


def least_share(images: int) -> float:
    """Return the smallest error that so many images allow, rounded up to a tenth of a percent."""
    return math.ceil(round(1000 / (images + 1), 9)) / 1000


def rank(images: int, share: float) -> int:
    """Return k = floor((N + 1) share), the place of a limit among N images, from 1; 0 if they are
    too few."""
    return math.floor(round((images + 1) * share, 9))


def in_sets(probabilities: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Return which classes are in the set of each image, [B, C] bool; the most probable class
    always is.

    Args:
        probabilities: Table [B, C].
        limits: [C], as from `Calibration.limits`.
    """
    inside: np.ndarray = probabilities >= limits
    inside[np.arange(len(inside)), probabilities.argmax(1)] = True
    return inside


def chosen(probabilities: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Return the indices of the classes in the set of one image, the most probable first.

    Args:
        probabilities: [C].
        limits: [C], as for `in_sets`.
    """
    order = np.argsort(-probabilities, kind="stable")
    chosen_first: np.ndarray = order[in_sets(probabilities[None], limits)[0, order]]
    return chosen_first


def decide(labels: int) -> str:
    """Return what is decided by a set of so many labels: only one that stands alone is an
    answer."""
    return ANSWER if labels == 1 else UNSURE
