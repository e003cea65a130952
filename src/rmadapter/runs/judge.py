"""Is it good? A method beside a linear probe and the untouched backbone, on images that none of
them learnt from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rmadapter import metrics
from rmadapter.artifacts.evaluation import Evaluation
from rmadapter.artifacts.record import Judgement, Rates, Score
from rmadapter.data.duplicates import pairs
from rmadapter.methods import load_method
from rmadapter.methods.linear_probe import LinearProbe
from rmadapter.runs.folds import Folds
from rmadapter.runs.run import Lab, Outcome
from rmadapter.runs.unlabelled import seen
from rmadapter.task import Task
from rmadapter.training.contract import Method

ZERO_SHOT = "zero-shot"
BESIDE = {"linear-probe": LinearProbe()}  # by the name that --method takes
WIDE = 10.0  # points to either side of an accuracy beyond which it says little
NOBODY = "no image is left to judge by: each nearly duplicates a training image or shares its group"
LEVEL = 0.05  # significance level of the test whether a simpler method is better


def judge(
    task: Task, method: Method, lab: Lab, done: Outcome, folds: Folds | None = None
) -> Outcome:
    """Add a judgement to the outcome of a run on all classes: by the test split or by images that
    were not drawn; if `enough` says that these are too few, by folds of the shots.

    done: the run, with the answers of `BESIDE`. Near-duplicates of training and validation images,
    and images that share a group with one, do not count.
    """
    record, evaluations, few = done.record, done.evaluations, lab.draw(task)
    learnt = seen(method, few, few.train, lab.splits(task.data).get("test"))
    known = [
        images for images in (learnt, few.val) if images is not None
    ]  # by the latter settings are chosen
    if folds and not enough(lab, task):
        found = cross_validated(folds, method, record.method.name)
        record = record.model_copy(update={"scores": (_score(found), *record.scores)})
        evaluations = [found, *evaluations]
    if not evaluations:
        return done
    first, score = evaluations[0], record.scores[0]
    rows = list(range(len(first.labels)))
    how = {"test": "on the test split", "held out": "on images that were not drawn"}
    text = how.get(
        score.split, f"by {len(folds or ())}-fold cross-validation of the training images"
    )
    if score.split in how:
        asked = first.images
        learnt_looks = np.concatenate([images.looks(lab.progress) for images in known])
        copies = {i for i, _ in pairs(asked.looks(lab.progress), learnt_looks)}
        akin = {i for images in known for i in asked.akin(images)} - copies
        rows = [row for row in rows if row not in copies | akin]
        text += f", without {len(copies)} nearly identical to training images" if copies else ""
        text += f", without {len(akin)} that share a group with training images" if akin else ""
    judgement = (
        _judgement(text, first, rows, record.method.title, record.method.name) if rows else None
    )
    if judgement and record.choice and score.split not in how and len(record.choice.rows) > 1:
        doubt = f"{record.method.title} was also chosen on these images: it is likely to be a little worse elsewhere"
        judgement = judgement.model_copy(update={"doubts": (*judgement.doubts, doubt)})
    record = record.model_copy(
        update={"judgement": judgement, "notes": (*record.notes, *([] if rows else [NOBODY]))}
    )
    return replace(done, record=record, evaluations=evaluations)


def enough(lab: Lab, task: Task) -> bool:
    """Whether there are images to judge by besides the shots: a test split, or as many as the
    shots, of every class."""
    train = lab.draw(task).train
    for _, images, split in lab.tests(task):
        if split == "test" or (len(images) >= len(train) and {*images.labels} == {*train.labels}):
            return True
    return False


def cross_validated(folds: Folds, method: Method, name: str) -> Evaluation:
    """Answers on the shots, each from a model that was fitted to the other folds; the method's own
    are also calibrated on the other folds."""
    found, none = folds.answers(method, name), folds.answers(load_method(ZERO_SHOT), ZERO_SHOT)
    beside = {other: folds.answers(its, other, beside=True).table for other, its in BESIDE.items()}
    own = calibrated(found.table, folds)
    return Evaluation("cross-validated, all classes", folds.judged, own, none.table, beside=beside)


def calibrated(table: np.ndarray, folds: Folds) -> np.ndarray:
    """Probabilities [M, C] over the folds, each fold at the temperature that suits the others best."""
    labels, result = np.array(folds.judged.labels), table.copy()
    which = np.repeat(np.arange(len(folds)), [len(part) for part in folds.parts])
    for number in range(len(folds)):
        out = which == number
        found = metrics.temperature(table[~out], labels[~out])
        result[out] = metrics.tempered(table[out], folds.no_surer(found))
    return result


def _score(found: Evaluation) -> Score:
    rates = [
        metrics.accuracy(table, found.labels) for table in (found.probabilities, found.zero_shot)
    ]
    return Score(
        name="all", images=len(found.labels), classes=len(found.classes), split="cross-validated",
        accuracy=rates[0], zero_shot=rates[1],
    )  # fmt: skip


def _judgement(
    how: str, found: Evaluation, rows: Sequence[int], title: str, name: str
) -> Judgement:
    """title, name: of the method; its row is the last, and is not repeated if it is one of the
    others, too."""
    names = tuple(map(str, found.images.written))
    labels, others = found.labels[rows], {ZERO_SHOT: found.zero_shot, **found.beside}
    tables = {
        **{other: table for other, table in others.items() if other != name},
        title: found.probabilities,
    }
    tables = {other: table[rows] for other, table in tables.items()}
    right = {other: table.argmax(1) == labels for other, table in tables.items()}
    rated = tuple(
        _rates(other, table, labels, right[other], None if other == title else right[title])
        for other, table in tables.items()
    )
    counts = np.bincount(labels, minlength=len(found.classes))
    return Judgement(
        how=how,
        images=len(labels),
        classes=names,
        majority=100 * counts.max() / len(labels),
        rows=rated,
        doubts=tuple(_doubts(rated, right, [names[i] for i in np.flatnonzero(counts == 0)])),
    )


def _rates(
    name: str, table: np.ndarray, labels: np.ndarray, right: np.ndarray, own: np.ndarray | None
) -> Rates:
    from sklearn.metrics import f1_score

    answers, there = table.argmax(1), sorted({*labels.tolist()})
    recalls = metrics.per_class_accuracy(labels, answers, table.shape[1])
    low, high = metrics.wilson(int(right.sum()), len(right))
    return Rates(
        name=name,
        accuracy=metrics.accuracy(table, labels),
        low=low,
        high=high,
        macro_f1=100 * f1_score(labels, answers, labels=there, average="macro", zero_division=0),
        calibration_error=metrics.calibration_error(table.max(1), right),
        recalls=[None if np.isnan(recall) else float(recall) for recall in recalls],
        p=None if own is None else metrics.paired(own, right)[3],
    )


def _doubts(
    rated: Sequence[Rates], right: dict[str, np.ndarray], without: Sequence[str]
) -> list[str]:
    """Warnings that the figures do not give by themselves."""
    *others, own = rated
    found = []
    if (own.high - own.low) / 2 > WIDE:
        found.append(
            f"{len(right[own.name])} images are too few to judge by: any accuracy from {own.low:.0f} to "
            f"{own.high:.0f} % is plausible; add images"
        )
    if without:
        found.append(
            f"no images to judge these classes by: {', '.join(without[:5])}{' ...' * (len(without) > 5)}"
        )
    for other in others:
        if other.accuracy > own.accuracy and other.p is not None and other.p < LEVEL:
            found.append(
                f"{other.name} is right more often, {other.accuracy:.1f} against {own.accuracy:.1f} % (McNemar's test, "
                f"p = {other.p:.2g}): fit again with --method {other.name}"
            )
    return found
