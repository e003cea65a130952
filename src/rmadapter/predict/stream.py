"""Answer a stream of images: each is decoded once, in threads while the model works, and encoded
once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np

from rmadapter.answers.answer import Answer
from rmadapter.answers.taxonomy import Taxonomy
from rmadapter.data.transforms import decode_batches, with_hint
from rmadapter.encoders import States
from rmadapter.methods.zero_shot import ZeroShot
from rmadapter.runs.features import outputs_of
from rmadapter.training.contract import Fitted, probabilities

BadImages = list[tuple[Path, str]]  # unreadable images, each with the reason


class AnswerSource(Protocol):
    """What answers images: a `Predictor` in this process, or a cluster."""

    def predict(
        self,
        images: Sequence[Path],
        zero_shot: bool = False,
        bad: BadImages | None = None,
        unfamiliar: bool = False,
    ) -> Iterator[list[Answer]]: ...


class Predictor:
    """A model and the classes that it chooses from.

    Args:
        fitted: The model.
        names: Names of C classes, as in prompts.
        labels: Labels of the same classes, as in answers.
        top: Answers per image.
        error, reject_rate: As for `Decider`.
        tree: Taxonomy of the labels, if they have parents.

    Raises:
        NotApplicable: The method cannot handle the names.
        UserError: As `Fitted.decider`.
    """

    def __init__(
        self,
        fitted: Fitted,
        names: Sequence[str],
        labels: Sequence[str],
        top: int = 5,
        error: float | None = None,
        reject_rate: float | None = None,
        tree: Taxonomy | None = None,
    ) -> None:
        self.fitted, self.names = fitted, tuple(names)
        self.decider = fitted.decider(names, labels, tree, error, reject_rate)
        self.top = min(top, len(labels))
        self._outputs = outputs_of(fitted, names, reject_rate is not None)

    def predict(
        self,
        images: Iterable[Path],
        zero_shot: bool = False,
        bad: BadImages | None = None,
        unfamiliar: bool = False,
    ) -> Iterator[list[Answer]]:
        """Yield answers in the order of the images, in batches; nothing else is kept.

        Args:
            images: Paths of the images.
            zero_shot: Whether to answer with the untouched backbone, too, if it has a text encoder.
            bad: Collects unreadable images, as in `decode_batches`.
            unfamiliar: Whether to measure how unfamiliar each image is.

        Raises:
            UserError: An image is unreadable, or as `Fitted.unfamiliar`.
        """
        fitted, labels = self.fitted, self.decider.labels
        untouched = untouched_scores(fitted, self.names) if zero_shot else None
        for batch, pixels in with_hint(decode_batches(images, fitted.transform, fitted.batch, bad)):
            states = fitted.states(pixels, features=untouched is not None or unfamiliar)
            found = self.decider.answer(*self._outputs(states), self.top)
            zero_shot_labels = [""] * len(batch)
            if untouched:
                zero_shot_labels = [labels[i] for i in untouched(states).argmax(1)]
            distances: list[float | None] = [None] * len(batch)
            if unfamiliar:
                distances = [round(far, 6) for far in fitted.unfamiliar(states.features).tolist()]
            yield [
                replace(answer, image=image, zero_shot=label, unfamiliar=far)
                for answer, image, label, far in zip(
                    found, batch, zero_shot_labels, distances, strict=True
                )
            ]


def untouched_scores(fitted: Fitted, names: Sequence[str]) -> Callable[[States], np.ndarray] | None:
    """Return the function from states with features to probabilities [B, C] by the untouched
    backbone; None if it has no text encoder."""
    if not fitted.backbone.has_text:
        return None
    known = replace(fitted.known, classes=tuple(names))
    score = ZeroShot().restore(fitted.backbone, known, {}).score()
    return lambda states: probabilities(score(states), "the untouched backbone").numpy()
