"""Detect out-of-distribution images, and reject at most a promised share of in-distribution ones.
docs/studies/unfamiliar.md says how far to trust it.

NumPy only, since exports hold this file.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rmadapter.answers.held_out import (
    ESTIMATED,
    MAX_CALIBRATION_IMAGES,
    HeldOut,
    Origin,
    describe_images,
    one_of_each_group,
)

NONE_OF_THESE = "none of these"
ODDS_WEIGHT = 0.5  # of the log-odds beside the distance; chosen in docs/studies/unfamiliar.md
MIN_DOUBT = 1e-6  # a smaller one is rounding
MIN_DEVIATION = 1e-9  # of equal values


@dataclass(frozen=True)
class RejectionScore(HeldOut):
    """An out-of-distribution score, relative to images of a model's classes that it was not fitted
    to.

    The score of an image is the distance of its features from the nearest class mean, minus half of
    the log-odds of its most probable class, each in standard deviations from its mean on those
    images.

    Attributes:
        sure: Probability of the most probable class of each of N images.
        distances: 1 - the cosine to the nearest class mean, of image features, for each image.
        source, grouped: As for `HeldOut`.
    """

    sure: tuple[float, ...]
    distances: tuple[float, ...]
    source: Origin
    grouped: bool = False

    numbers = ("sure", "distances")
    request = "to turn away"

    def __post_init__(self) -> None:
        if not 0 < len(self.sure) == len(self.distances) <= MAX_CALIBRATION_IMAGES:
            raise ValueError("no images, too many, or not one distance for each")
        if not all(0 <= share <= 1 for share in self.sure):
            raise ValueError("a probability outside 0 to 1")
        if not all(0 <= distance <= 2 for distance in self.distances):
            raise ValueError("a distance outside 0 to 2")

    @classmethod
    def of(
        cls,
        probabilities: np.ndarray,
        distances: np.ndarray,
        source: Origin,
        groups: np.ndarray | None = None,
        seed: int = 0,
    ) -> RejectionScore:
        """Keep what was found on N images; of more than 10,000, as many are drawn at random.

        Args:
            probabilities: Table [N, C].
            distances: Distances [N].
            source: Where the images are from.
            groups, seed: As for `Calibration.of`.
        """
        rows, grouped = one_of_each_group(len(probabilities), groups, seed)
        sure = probabilities[rows].max(1).astype(np.float64).round(6)
        far = distances[rows].astype(np.float64).round(6)
        return cls(tuple(sure.tolist()), tuple(far.tolist()), source, grouped)

    def scores(self, probabilities: np.ndarray, distances: np.ndarray) -> np.ndarray:
        """Return the out-of-distribution scores [B] of new images: about 0 for those of the model's
        classes, and higher for others.

        Args:
            probabilities: Table [B, C].
            distances: Distances [B].
        """
        own_odds, own_distances = _odds(np.array(self.sure)), np.array(self.distances)
        far = (distances.astype(np.float64) - own_distances.mean()) / _deviation(own_distances)
        surer = (_odds(probabilities.max(1)) - own_odds.mean()) / _deviation(own_odds)
        scores: np.ndarray = far - ODDS_WEIGHT * surer
        return scores

    def accepts(self, probabilities: np.ndarray, distances: np.ndarray, share: float) -> np.ndarray:
        """Return whether each of B images is in distribution, [B] bool.

        An image is rejected if fewer than k of the N held-out images have as high a score, with the
        k of `rank`. Of new images of the model's classes that are like these, at most `share` are,
        for about nine of ten draws of the N images.

        Args:
            probabilities: Table [B, C].
            distances: Distances [B].
            share: Share of images, above 0 and below 1.

        Raises:
            UserError: A share outside 0 to 1, or fewer images than it needs.
        """
        places = self.rank(share)
        own_odds, own_distances = _odds(np.array(self.sure)), np.array(self.distances)
        accepted = []
        odds_of_images = _odds(probabilities.max(1))
        for odds, far in zip(odds_of_images, distances.astype(np.float64), strict=True):
            # the new image counts in the deviations, like the held-out ones: only then has each of
            # all these images the highest score with the same chance
            farther = (own_distances - far) / _deviation(np.append(own_distances, far))
            surer = (own_odds - odds) / _deviation(np.append(own_odds, odds))
            accepted.append(np.count_nonzero(farther - ODDS_WEIGHT * surer >= 0) >= places)
        return np.array(accepted, bool)

    def promise(self, share: float) -> str:
        return (
            f"{ESTIMATED[self.source]}at most {100 * share:g} % of images like these "
            f"{describe_images(**self.facts)}, are called {NONE_OF_THESE}, in nine of ten draws "
            "like this one"
        )


def _odds(sure: np.ndarray) -> np.ndarray:
    """Return log-odds of probabilities."""
    doubt = np.maximum(1 - sure.astype(np.float64), MIN_DOUBT)
    odds: np.ndarray = np.log(np.maximum(1 - doubt, MIN_DOUBT) / doubt)
    return odds


def _deviation(values: np.ndarray) -> float:
    """Return the standard deviation, or a tiny one of equal values."""
    return max(float(values.std()), MIN_DEVIATION)
