"""Judge a method beside a linear probe and the untouched backbone, on images that none of them
learnt from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rmadapter import metrics
from rmadapter.answers.sets import Calibration
from rmadapter.artifacts.predictions import Evaluation
from rmadapter.artifacts.record import LEVEL, Judgement, Rates, Score
from rmadapter.artifacts.summary import describe_tie
from rmadapter.artifacts.value import Balanced, Promise, Split
from rmadapter.data.duplicates import halves, pairs
from rmadapter.data.fewshot import FewShot
from rmadapter.data.read import ImageSet
from rmadapter.runs.evaluate import levels_of
from rmadapter.runs.features import distances_of
from rmadapter.runs.lab import Lab, Sets
from rmadapter.runs.promises import Answered
from rmadapter.runs.run import Outcome, learnt_from
from rmadapter.runs.unseen import ZERO_SHOT, Unseen
from rmadapter.task import Task
from rmadapter.training.contract import Fitted, Method

WIDE = 10.0  # points to either side of an accuracy beyond which it says little
NO_IMAGES = (
    "no image is left to judge by: each nearly duplicates a training image or shares its group"
)
UNSEEN = {"test": "on the test split", "held out": "on images that were not drawn"}


def judge(
    task: Task,
    method: Method,
    lab: Lab,
    outcome: Outcome,
    few: FewShot,
    unseen: Unseen | None = None,
) -> Outcome:
    """Add a judgement to the outcome of a run on all classes: by the test split or by images that
    were not drawn; if `enough` says that these are too few, by the shots themselves.

    Near-duplicates of training and validation images, and images that share a group with one, do
    not count.

    Args:
        task: What the run learned from, and what it tested.
        method: Its method.
        lab: Lab that holds the data and the backbone.
        outcome: Outcome of the run, with the answers of `BASELINES`.
        few: The shots.
        unseen: Answers about the shots by models that did not see them, if there are any.
    """
    if unseen and not enough(lab.tests(task, few), few.train):
        evaluation = unseen.evaluate()
        outcome = replace(outcome, evaluations=[evaluation, *outcome.evaluations])
        outcome = outcome.with_facts(scores=(_score(evaluation), *outcome.record.scores))
    if not outcome.evaluations:
        return outcome
    record, evaluation = outcome.record, outcome.evaluations[0]
    split, rows = record.scores[0].split, list(range(len(evaluation.labels)))
    if split in UNSEEN:
        known = [learnt_from(method, few.train, task, few, lab)]
        if few.val is not None:
            known.append(few.val)  # by these, settings are chosen
        rows, without = _unseen_rows(evaluation.images, known, lab.progress)
        how = UNSEEN[split] + without
    else:
        how = unseen.how if unseen else ""
    if not rows:
        return outcome.with_facts(judgement=None, notes=(*record.notes, NO_IMAGES))
    judgement = _judgement(how, evaluation, rows, record.method.title, record.method.name)
    images = evaluation.images.subset(rows)
    answers = Answered.on(images, evaluation.probabilities[rows])
    if split == "held out":
        far = distances_of(outcome.fitted, images, lab.test_cache(task))
        calibrated = replace(answers, distances=far).calibrate(outcome.fitted, split, task.seed)
        outcome = replace(outcome, fitted=calibrated)
    promises = _promises(outcome.fitted.calibration, answers, split, unseen, task.seed)
    judgement = judgement.model_copy(update={"promises": promises})
    outcome = outcome.with_facts(judgement=judgement)
    outcome = replace(outcome, fitted=_with_measured(outcome.fitted, judgement))
    tie = describe_tie(outcome.record)
    return outcome.with_facts(notes=(*record.notes, tie)) if tie else outcome


def _with_measured(fitted: Fitted, judgement: Judgement) -> Fitted:
    """Return a model whose calibration knows which of its promises were not kept."""
    broken = [promise for promise in judgement.promises if promise.is_broken]
    if not fitted.calibration or not broken:
        return fitted
    errors = tuple(promise.error / 100 for promise in broken)
    missed = tuple(promise.missed / 100 for promise in broken)
    return replace(fitted, calibration=replace(fitted.calibration, broken=errors, missed=missed))


def _promises(
    calibration: Calibration | None,
    answers: Answered,
    split: Split,
    unseen: Unseen | None,
    seed: int,
) -> tuple[Promise, ...]:
    """Measure the promises of a calibration, by images that are not among its own.

    Args:
        calibration: The calibration, if there is one.
        answers: Answers on the images.
        split: What the images are.
        unseen: As for `judge`.
        seed: Seed of the run.
    """
    if calibration is None:
        return ()
    if split == "held out":
        return answers.cross_measured(halves(answers.groups, seed=0), calibration.source, seed)
    if unseen and split == "cross-validated":
        return answers.cross_measured(unseen.places, calibration.source, seed)
    return answers.measured(calibration)


def _unseen_rows(
    images: ImageSet, known: Sequence[ImageSet], progress: bool
) -> tuple[list[int], str]:
    """Return the rows of images that are unlike all known ones, and which others are left out."""
    looks = np.concatenate([part.looks(progress) for part in known])
    copies = {row for row, _ in pairs(images.looks(progress), looks)}
    related = {row for part in known for row in images.sharing_groups(part)} - copies
    without = f", without {len(copies)} nearly identical to training images" if copies else ""
    if related:
        without += f", without {len(related)} that share a group with training images"
    return [row for row in range(len(images)) if row not in copies | related], without


def enough(sets: Sets, train: ImageSet) -> bool:
    """Return whether there are images to judge by besides the shots: a test split, or as many as
    the shots, of every class."""
    return any(
        split == "test" or (len(images) >= len(train) and {*images.labels} == {*train.labels})
        for _, images, split in sets
    )


def _score(evaluation: Evaluation) -> Score:
    labels, untouched = evaluation.labels, evaluation.zero_shot
    return Score(
        name="all",
        images=len(labels),
        classes=len(evaluation.classes),
        split="cross-validated",
        accuracy=metrics.accuracy(evaluation.probabilities, labels),
        zero_shot=None if untouched is None else metrics.accuracy(untouched, labels),
        balanced=Balanced.of(evaluation.probabilities, labels, evaluation.images.group_numbers),
        levels=levels_of(evaluation),
    )


def _judgement(
    how: str, evaluation: Evaluation, rows: Sequence[int], title: str, name: str
) -> Judgement:
    """Rate the methods.

    Args:
        how: By what they are judged, in words.
        evaluation: Answers of the method and the baselines.
        rows: Rows of the images to judge by.
        title, name: Those of the method; its row is the last, and is not repeated if it is one of
            the baselines, too.
    """
    names = tuple(map(str, evaluation.images.written))
    labels, groups = evaluation.labels[rows], evaluation.images.subset(rows).group_numbers
    others = dict(evaluation.beside)
    if evaluation.zero_shot is not None:
        others = {ZERO_SHOT: evaluation.zero_shot, **others}
    tables = {other: table[rows] for other, table in others.items() if other != name}
    tables[title] = evaluation.probabilities[rows]
    right = {other: table.argmax(1) == labels for other, table in tables.items()}
    rated = tuple(
        _rates(other, table, labels, groups, right[other], None if other == title else right[title])
        for other, table in tables.items()
    )
    counts = np.bincount(labels, minlength=len(evaluation.classes))
    missing = [names[i] for i in np.flatnonzero(counts == 0)]
    together = len(np.unique(groups))
    return Judgement(
        how=how,
        images=len(labels),
        groups=together if together < len(labels) else 0,
        classes=names,
        majority=100 * counts.max() / len(labels),
        rows=rated,
        doubts=tuple(_doubts(rated, right, missing)),
    )


def _rates(
    name: str,
    table: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    right: np.ndarray,
    ours: np.ndarray | None,
) -> Rates:
    """Rate a baseline, or the method itself.

    Args:
        name: Its name in the judgement.
        table: Probabilities [M, C].
        labels: Indices of the right classes, [M].
        groups: [M], number of each image's group.
        right: [M], where it is right.
        ours: [M], where the method is right; None for itself.
    """
    from sklearn.metrics import f1_score

    answers, present = table.argmax(1), sorted({*labels.tolist()})
    recalls = metrics.per_class_accuracy(labels, answers, table.shape[1])
    low, high = metrics.interval(right, groups)
    return Rates(
        name=name,
        accuracy=metrics.accuracy(table, labels),
        low=low,
        high=high,
        macro_f1=100 * f1_score(labels, answers, labels=present, average="macro", zero_division=0),
        calibration_error=metrics.calibration_error(table.max(1), right),
        recalls=[None if np.isnan(recall) else float(recall) for recall in recalls],
        p=None if ours is None else metrics.paired(ours, right, groups)[3],
        balanced=Balanced.of(table, labels, groups),
    )


def _doubts(
    rated: Sequence[Rates], right: dict[str, np.ndarray], missing: Sequence[str]
) -> list[str]:
    """Return warnings that the figures do not give by themselves.

    Args:
        rated: Rates of the baselines and, last, of the method.
        right: Where each of them is right, by name.
        missing: Classes without images to judge by.
    """
    *others, ours = rated
    doubts = []
    if (ours.high - ours.low) / 2 > WIDE:
        doubts.append(
            f"{len(right[ours.name])} images are too few to judge by: any accuracy from "
            f"{ours.low:.0f} to {ours.high:.0f} % is plausible; add images"
        )
    if missing:
        more = " ..." if len(missing) > 5 else ""
        doubts.append(f"no images to judge these classes by: {', '.join(missing[:5])}{more}")
    for other in others:
        if other.accuracy > ours.accuracy and other.p is not None and other.p < LEVEL:
            doubts.append(
                f"{other.name} is right more often, {other.accuracy:.1f} against "
                f"{ours.accuracy:.1f} % (McNemar's test, p = {other.p:.2g}): "
                f"fit again with --method {other.name}"
            )
    return doubts
