"""What a run answers about its own shots, each by a model that did not see it: left out in closed
form, if the method knows these answers, or by models that were fitted to folds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from rmadapter import metrics
from rmadapter.artifacts.predictions import Evaluation
from rmadapter.data.duplicates import halves
from rmadapter.data.read import ImageSet
from rmadapter.encoders import PARTS
from rmadapter.methods import load_method
from rmadapter.methods.linear_probe import LinearProbe
from rmadapter.methods.zero_shot import ZeroShot
from rmadapter.runs.evaluate import predict_all
from rmadapter.runs.features import distances_left_out
from rmadapter.runs.folds import Folds, fitted_temperature
from rmadapter.runs.promises import Answered
from rmadapter.training.cache import Cache
from rmadapter.training.contract import Fitted, Method

ZERO_SHOT = "zero-shot"
BASELINES = {"linear-probe": LinearProbe()}  # by the name that --method takes
TITLE = "cross-validated, all classes"


@dataclass(frozen=True)
class Unseen:
    """Answers about M of the N shots.

    Attributes:
        answers: The answers, calibrated as the model is; None if nothing was answered by a model of
            this method.
        places: Number [M] of each image's part: those of one are judged by what the others
            calibrate.
        how: By what the method is judged, in words.
        evaluate: Returns the answers to judge by, beside those of others.
    """

    answers: Answered | None
    places: np.ndarray
    how: str
    evaluate: Callable[[], Evaluation]

    def __bool__(self) -> bool:
        return len(self.places) > 0


def unseen(
    fitted: Fitted, name: str, folds: Folds, train: ImageSet, cache: Cache, seed: int
) -> Unseen | None:
    """Return what is known of answers about the shots by models that did not see them: by the
    method itself, or else by folds; None without either.

    Args:
        fitted: The model.
        name: Name of its method, as `load_method` accepts it.
        folds: Folds of the shots, none if none are wanted.
        train: The shots.
        cache: Cache that holds what the method read of them.
        seed: Seed of the halves.
    """
    if fitted.left_out:
        return left_out(fitted, train, cache, seed)
    return by_folds(folds, fitted.method, name, fitted.temperature) if folds else None


def left_out(fitted: Fitted, train: ImageSet, cache: Cache, seed: int) -> Unseen:
    """Return what a method says of its shots itself.

    Args:
        fitted: Model with `Fitted.left_out`.
        train: Its N shots.
        cache: Cache that holds what it read of them.
        seed: Seed of the halves.
    """
    assert fitted.left_out is not None
    table, judged, groups = fitted.left_out
    rows = np.flatnonzero(judged)
    images = train.subset(rows.tolist())
    answers = Answered.on(images, table[rows])
    if fitted.first in (None, PARTS) and len(rows):  # features that no training has seen
        features, classes = cache.features(train)[0], len(train.classes)
        far = distances_left_out(features, train.labels, classes, groups)
        answers = replace(answers, distances=far[rows])

    def evaluate() -> Evaluation:
        untouched = None
        if fitted.backbone.has_text:
            model = ZeroShot().restore(fitted.backbone, fitted.known, {}).score()
            tables = predict_all({ZERO_SHOT: model}, fitted, cache, images, seed)
            untouched = tables[ZERO_SHOT].numpy()
        return Evaluation(TITLE, images, table[rows], untouched)

    places = halves(groups[rows], seed) if len(rows) else np.empty(0, int)
    how = f"on {len(rows):,} training images, each by a model that was fitted without it"
    return Unseen(answers if len(rows) else None, places, how, evaluate)


def by_folds(folds: Folds, method: Method, name: str, temperature: float) -> Unseen:
    """Return what models that were fitted to folds say of the shots.

    Args:
        folds: Folds of the shots.
        method: Method of the run.
        name: Its name, as `load_method` accepts it.
        temperature: Temperature of the run's model.
    """
    answers = folds.tempered(method, name, temperature)
    return Unseen(answers, folds.places, folds.how, lambda: cross_validated(folds, method, name))


def cross_validated(folds: Folds, method: Method, name: str) -> Evaluation:
    """Evaluate on the shots, each answered by a model that was fitted to the other folds; the
    method's own answers are also calibrated on the other folds."""
    answers = folds.answers(method, name)
    untouched = None
    if folds.lab.backbone(folds.task.backbone).has_text:
        untouched = folds.answers(load_method(ZERO_SHOT), ZERO_SHOT).table
    others = {
        title: folds.answers(other, title, baseline=True).table
        for title, other in BASELINES.items()
    }
    table = calibrated(answers.table, folds)
    return Evaluation(TITLE, folds.judged, table, untouched, beside=others)


def calibrated(table: np.ndarray, folds: Folds) -> np.ndarray:
    """Return probabilities [M, C] over the folds, those of each of `Folds.places` at the
    temperature that suits the others best."""
    labels, groups, which = np.array(folds.judged.labels), folds.judged.group_numbers, folds.places
    result: np.ndarray = table.copy()
    for number in np.unique(which):
        own, others = which == number, which != number
        best = fitted_temperature(table[others], labels[others], groups[others], folds.task.seed)
        result[own] = metrics.tempered(table[own], best)
    return result
