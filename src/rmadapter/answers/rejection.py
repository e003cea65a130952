"""Tell images that a model was not made for from those that it was, and turn away no more than a
promised share of the latter. docs/studies/unfamiliar.md says how far to trust it.

NumPy only, since exports hold this file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np

from rmadapter.answers.sets import (
    ERRORS,
    ESTIMATED,
    CalibrationFacts,
    Source,
    describe_images,
    drawn,
    how_to_get_more,
    is_grouped,
    least_share,
    needed,
    rank,
)
from rmadapter.errors import UserError

NONE = "none of these"
MOST_OWN = 10_000  # images kept
ODDS = 0.5  # weight of the log-odds beside the distance; chosen in docs/studies/unfamiliar.md
LEAST_DOUBT = 1e-6  # a smaller one is rounding


@dataclass(frozen=True)
class Familiarity:
    """What a model finds on images of its classes that it was not fitted to.

    Attributes:
        sure: Probability of the most probable class of each of N images.
        distances: 1 - the cosine to the nearest class mean, of image features, for each image.
        source, grouped: As for `Calibration`.
    """

    sure: tuple[float, ...]
    distances: tuple[float, ...]
    source: Source
    grouped: bool = False

    def __post_init__(self) -> None:
        if not 0 < len(self.sure) == len(self.distances) <= MOST_OWN:
            raise ValueError("no images, too many, or not one distance for each")
        if not all(0 <= share <= 1 for share in self.sure):
            raise ValueError("a probability outside 0 to 1")
        if not all(0 <= distance <= 2 for distance in self.distances):
            raise ValueError("a distance outside 0 to 2")

    @classmethod
    def of(
        cls,
        table: np.ndarray,
        distances: np.ndarray,
        source: Source,
        groups: np.ndarray | None = None,
        seed: int = 0,
    ) -> Familiarity:
        """Keep what was found on N images; of more than 10,000, as many are drawn at random.

        Args:
            table: Probabilities [N, C].
            distances: Distances [N].
            source: Where the images are from.
            groups, seed: As for `Calibration.of`.
        """
        rows, grouped = drawn(len(table), groups, seed)
        sure, far = table[rows].max(1).astype(np.float64), distances[rows].astype(np.float64)
        own = tuple(sure.round(6).tolist()), tuple(far.round(6).tolist())
        return cls(*own, source, grouped)

    @classmethod
    def from_json(cls, values: object) -> Familiarity:
        """Check what `json` returned. Raises ValueError for anything else."""
        fields = {"sure", "distances", "source"}
        if not isinstance(values, dict) or values.keys() - {"grouped"} != fields:
            raise ValueError("not the fields of a familiarity")
        sure, distances = values["sure"], values["distances"]
        if not isinstance(sure, list) or not isinstance(distances, list):
            raise ValueError("no lists")
        if {*map(type, [*sure, *distances])} - {int, float}:
            raise ValueError("not numbers")
        if values["source"] not in get_args(Source):
            raise ValueError("an unknown source")
        return cls(tuple(sure), tuple(distances), values["source"], is_grouped(values))

    def json(self) -> dict[str, object]:
        """Return the fields as JSON has them."""
        return {
            "sure": [*self.sure],
            "distances": [*self.distances],
            "source": self.source,
            "grouped": self.grouped,
        }

    @property
    def facts(self) -> CalibrationFacts:
        """How many images it is of, and which."""
        return {"images": len(self.sure), "source": self.source, "grouped": self.grouped}

    def possible(self) -> list[float]:
        """Return those of 1, 5 and 10 % that may be turned away by so many images."""
        return [share for share in ERRORS if rank(len(self.sure), share)]

    def strangeness(self, table: np.ndarray, distances: np.ndarray) -> np.ndarray:
        """Return how strange new images are, [B]: about 0 for those of the model's classes, and
        higher for others.

        It is the distance minus half of the log-odds of the most probable class, each in standard
        deviations from its mean on the own images.

        Args:
            table: Probabilities [B, C].
            distances: Distances [B].
        """
        own_odds, own_distances = _odds(np.array(self.sure)), np.array(self.distances)
        far = _standardised(distances.astype(np.float64), own_distances)
        result: np.ndarray = far - ODDS * _standardised(_odds(table.max(1)), own_odds)
        return result

    def promise(self, share: float) -> str:
        """Return in words what a limit for this share promises."""
        images = describe_images(len(self.sure), self.source, self.grouped)
        images += "," * (self.source == "folds")
        return (
            f"{ESTIMATED[self.source]}at most {100 * share:g} % of images like these {images} are "
            f"called {NONE}"
        )

    def familiar(
        self, table: np.ndarray, distances: np.ndarray, strangest: int, known: int
    ) -> np.ndarray:
        """Return whether each of B images is of the first `known` classes, those that the model was
        fitted to, or else most probably of one that was added by name.

        Args:
            table: Probabilities [B, C].
            distances: Distances [B].
            strangest: As from `strangest`.
            known: Number of classes that the model was fitted to.
        """
        own_odds, own_distances = _odds(np.array(self.sure)), np.array(self.distances)
        own = []
        for odds, far in zip(_odds(table.max(1)), distances.astype(np.float64), strict=True):
            # the new image counts in the deviations, like the own ones: only then is each of all
            # these images the strangest with the same chance
            more = (own_distances - far) / _deviation(np.append(own_distances, far))
            surer = (own_odds - odds) / _deviation(np.append(own_odds, odds))
            own.append(np.count_nonzero(more - ODDS * surer >= 0) >= strangest)
        result: np.ndarray = np.array(own, bool) | (table.argmax(1) >= known)
        return result

    def strangest(self, share: float) -> int:
        """Return how many images, the strangest of a new one and the N own ones, are none of the
        classes: k = floor((N + 1) share).

        Of new images of the model's classes that are like the own ones, at most `share` are among
        these k, on average over draws of the own ones. Here strangeness is in the deviations of all
        N + 1 images.

        Args:
            share: Share of images, above 0 and below 1.

        Raises:
            UserError: A share outside 0 to 1, or fewer images than it needs.
        """
        if not 0 < share < 1:
            raise UserError(f"{100 * share:g} % to turn away: give more than 0 and less than 100 %")
        count = rank(len(self.sure), share)
        if not count:
            raise UserError(
                f"to turn away {100 * share:g} % needs {needed(share):,} "
                f"{'groups of ' * self.grouped}images that the model was not fitted to, and there "
                f"are {len(self.sure):,}: allow "
                f"{100 * least_share(len(self.sure)):g} % or more, {how_to_get_more(self.source)}"
            )
        return count


def strangest(familiarity: Familiarity | None, share: float) -> int:
    """Return how many of the strangest images are none of a model's classes.

    Args:
        familiarity: The model's, if it has one.
        share: As for `Familiarity.strangest`.

    Raises:
        UserError: As `Familiarity.strangest`, and for a model without what it needs.
    """
    if familiarity is None:
        raise UserError(
            "this model cannot tell that an image is none of its classes, as it has no features of "
            "images that it was not fitted to: fit again with --folds 4, or with another method"
        )
    return familiarity.strangest(share)


def _odds(sure: np.ndarray) -> np.ndarray:
    """Return log-odds of probabilities."""
    doubt = np.maximum(1 - sure.astype(np.float64), LEAST_DOUBT)
    result: np.ndarray = np.log(np.maximum(1 - doubt, LEAST_DOUBT) / doubt)
    return result


def _standardised(values: np.ndarray, own: np.ndarray) -> np.ndarray:
    result: np.ndarray = (values - own.mean()) / _deviation(own)
    return result


def _deviation(values: np.ndarray) -> float:
    """Return the standard deviation, or a tiny one of equal values."""
    return max(float(values.std()), 1e-9)
