"""Prediction sets that miss the right class no more often than promised: split conformal prediction
(Vovk et al., 2005) with sets of all classes that are probable enough (Sadinle et al., 2019), and
limits that hold in nine of ten calibrations (Vovk, 2012).

NumPy only, since exports hold this file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from rmadapter.answers.held_out import (
    ESTIMATED,
    MAX_CALIBRATION_IMAGES,
    SHARES,
    HeldOut,
    Origin,
    describe_images,
    needed,
    one_of_each_group,
    rank,
)
from rmadapter.errors import UserError

# classes have limits of their own if each has so many times the images that the error needs: the
# confidence then costs less than half of the error on average
PER_CLASS_FACTOR = 3


@dataclass(frozen=True)
class Calibration(HeldOut):
    """What a model's probabilities were worth on images that it was not fitted to.

    Attributes:
        shares: Probability of the own class of each of N images, ascending.
        classes: Index of that class, for each image.
        known: Number of classes of the model.
        source, grouped: As for `HeldOut`.
        broken: Errors that were promised and not kept on the images that judged the model.
        missed: Share of those images that was missed, for each of these errors.
    """

    shares: tuple[float, ...]
    classes: tuple[int, ...]
    known: int
    source: Origin
    grouped: bool = False
    broken: tuple[float, ...] = ()
    missed: tuple[float, ...] = ()

    numbers = ("shares", "classes", "broken", "missed")
    request = "an error of"

    def __post_init__(self) -> None:
        if not 0 < len(self.shares) == len(self.classes) <= MAX_CALIBRATION_IMAGES:
            raise ValueError("no images, too many, or not one class for each")
        if not all(0 <= share <= 1 for share in self.shares) or min(self.classes) < 0:
            raise ValueError("a probability outside 0 to 1, or a negative class")
        if {type(number) for number in (self.known, *self.classes)} != {int}:
            raise ValueError("a class that is no whole number")
        if max(self.classes) >= self.known:
            raise ValueError("an unknown class")
        if [*self.shares] != sorted(self.shares):
            raise ValueError("probabilities that do not ascend")
        if len(self.broken) != len(self.missed) or len(self.broken) > len(SHARES):
            raise ValueError("not one missed share for each broken error, or too many")
        if not all(0 < share <= 1 for share in (*self.broken, *self.missed)):
            raise ValueError("a broken error or a missed share outside 0 to 1")

    @classmethod
    def of(
        cls,
        probabilities: np.ndarray,
        labels: ArrayLike,
        source: Origin,
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
            seed: Seed of that draw.
        """
        which = np.asarray(labels)
        shares = probabilities[np.arange(len(which)), which].astype(np.float64)
        rows, grouped = one_of_each_group(len(which), groups, seed)
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

    @property
    def counts(self) -> list[int]:
        """The number of images of each of the known classes."""
        counts: list[int] = np.bincount(self.classes, minlength=self.known).tolist()
        return counts

    def by_class(self, error: float) -> bool:
        """Return whether every class has a limit of its own at this error."""
        return min(self.counts) >= PER_CLASS_FACTOR * needed(error)

    def limits(self, error: float, classes: int) -> np.ndarray:
        """Return the probability [C] from which on a class belongs to the set.

        If new images are like the calibration's, the sets miss the right class of a share of at
        most `error` of them, for nine of ten calibrations. That is the k-th smallest probability
        with the k of `rank`. Classes have limits of their own if each has enough images; then the
        promise holds for each class, by nine of ten calibrations with its images.

        Args:
            error: Share of images, above 0 and below 1.
            classes: Number of classes to choose from. Those that the model was not calibrated with,
                which are the last, have the limit of all.

        Raises:
            UserError: An error outside 0 to 1, or fewer images than it needs.
        """
        place = self.rank(error) - 1
        shares, which = np.array(self.shares), np.array(self.classes)
        limits = np.full(classes, shares[place])
        if self.by_class(error):
            for number in range(self.known):
                own = shares[which == number]
                limits[number] = own[rank(len(own), error) - 1]
        return limits

    def doubt(self, error: float) -> str:
        """Return in words why an error cannot be counted on: a promise of as small an error was not
        kept, and missed more than this one allows. "" where no measurement speaks against it."""
        pairs = zip(self.broken, self.missed, strict=True)
        against = [pair for pair in pairs if pair[0] <= error < pair[1]]
        if not against:
            return ""
        broken, missed = max(against)
        return (
            f"do not count on an error of {100 * error:g} %: of the images that judged this model, "
            f"{100 * missed:.1f} % were missed where {100 * broken:g} % was promised"
        )

    @property
    def doubts(self) -> list[str]:
        """What is said of each error that was not kept."""
        return [self.doubt(error) for error in self.broken]

    def promise(self, error: float) -> str:
        doubt = self.doubt(error)
        if doubt:
            return doubt
        images = describe_images(**self.facts)
        return (
            f"{ESTIMATED[self.source]}the right class is missing from the sets of at most "
            f"{100 * error:g} % of images like these {images}, in nine of ten calibrations like "
            "this one"
        )

    def details(self, error: float, classes: int) -> list[str]:
        """Return what else is to be said of a promise for so many classes; nothing of one that is
        not kept."""
        texts: list[str] = []
        if self.doubt(error):
            return texts
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


def parse_share(text: str) -> float:
    """Parse a share such as 5% or 0.05, from 0 to below 1. Raises UserError for others."""
    word = text.strip()
    written = re.fullmatch(r"((?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE]-?[0-9]+)?) ?(%?)", word)
    if written:
        number = float(written[1]) / (100 if written[2] else 1)
        if number < 1:
            return number
    raise UserError(f"{word[:100]!r} is no share such as 5% or 0.05")
