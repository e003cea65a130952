"""What two models, untouched and adapted, answer on a set of labelled images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Evaluation:
    """Answers on N images over C classes.

    title: what was evaluated, e.g. "test, base classes"
    classes: C class names
    labels: [N] int, index into `classes`
    probabilities: [N, C] float32, the adapted model
    zero_shot: [N, C] float32, the untouched backbone with the same prompts
    novelty: [N] float32, reconstruction error as a percentile (0..100) of the training images'; empty without it
    """

    title: str
    classes: tuple[str, ...]
    labels: np.ndarray
    probabilities: np.ndarray
    zero_shot: np.ndarray
    novelty: np.ndarray
