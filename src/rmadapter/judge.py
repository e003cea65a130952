"""Is it good? A method beside a linear probe and the untouched backbone, on images that none of them learnt from."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rmadapter import metrics
from rmadapter.console import note
from rmadapter.data.duplicates import groups, looks, pairs
from rmadapter.data.images import ImageSet
from rmadapter.method import Method
from rmadapter.methods.linear_probe import LinearProbe
from rmadapter.record import Evaluation, Judgement, Rates, Score
from rmadapter.run import Lab, Outcome, evaluate, learn, learn_beside
from rmadapter.task import Question, Task

FOLDS = 5
BESIDE = {"linear-probe": LinearProbe()}  # by the name that --method takes
WIDE = 10.0  # points to either side of an accuracy, beyond which it says little
NOBODY = "no image is left to judge by: each is nearly the same as one that was trained on, or of its group"
LEVEL = 0.05  # of the test whether a simpler method is better


def judge(task: Task, method: Method, lab: Lab, done: Outcome, folds: int = FOLDS) -> Outcome:
    """The outcome of a run on all classes with what it is worth: on the test split; without one on the images that
    were not drawn, where they are as many as the shots and of every class; else by cross-validation of the shots.

    done: the run, with `BESIDE` asked along. Images nearly the same as one that was learnt from, or of its group, judge
    nothing.
    """
    record, evaluations, train = done.record, done.evaluations, lab.draw(task).train
    found, parts = (None, 0) if _enough(lab, task) else cross_validate(task, method, lab, folds)
    if found:
        record = record.model_copy(update={"scores": (_score(found), *record.scores)})
        evaluations = [found, *evaluations]
    if not evaluations:
        return done
    first, score = evaluations[0], record.scores[0]
    rows = list(range(len(first.labels)))
    how = {"test": "on the test split", "held out": "on images that were not drawn"}
    text = how.get(score.split, f"by {parts}-fold cross-validation of the training images")
    if score.split in how:
        copies = {i for i, _ in pairs(looks(first.images.images, lab.progress), looks(train.images, lab.progress))}
        akin = {*first.images.akin(train)} - copies
        rows = [row for row in rows if row not in copies | akin]
        text += f", without {len(copies)} nearly the same as a training image" if copies else ""
        text += f", without {len(akin)} of a group that was trained on" if akin else ""
    judgement = _judgement(text, first, rows, method) if rows else None
    record = record.model_copy(update={"judgement": judgement, "notes": (*record.notes, *([] if rows else [NOBODY]))})
    return replace(done, record=record, evaluations=evaluations)


def _enough(lab: Lab, task: Task) -> bool:
    """Whether there are other images than the shots to judge by."""
    train = lab.draw(task).train
    for _, images, tested in lab.tests(task):
        akin = {*images.akin(train)}
        labels = [label for i, label in enumerate(images.labels) if i not in akin]
        if tested or (len(labels) >= len(train) and {*labels} == {*train.labels}):
            return True
    return False


def cross_validate(task: Task, method: Method, lab: Lab, folds: int = FOLDS) -> tuple[Evaluation | None, int]:
    """Answers on the shots, each from a model that was fitted to the other folds, and the number of folds: fewer where
    classes are small, and none where no class can do without an image."""
    train = lab.draw(task).train
    parts = split(train, folds, task.seed, lab.progress)
    if not parts:
        return None, 0
    note(f"no test split: judging by {len(parts)}-fold cross-validation of the {len(train):,} training images")
    found = [_fold(train, judged, task, method, lab) for judged in parts]
    tables = {name: np.concatenate([getattr(e, name) for e in found]) for name in ("probabilities", "zero_shot")}
    beside = {name: np.concatenate([e.beside[name] for e in found]) for name in BESIDE}
    every = train.subset(i for judged in parts for i in judged)
    return Evaluation("cross-validated, all classes", every, **tables, beside=beside), len(parts)


def _score(found: Evaluation) -> Score:
    rates = [metrics.accuracy(table, found.labels) for table in (found.probabilities, found.zero_shot)]
    return Score(
        name="all", images=len(found.labels), classes=len(found.classes), split="cross-validated",
        accuracy=rates[0], zero_shot=rates[1],
    )  # fmt: skip


def split(images: ImageSet, folds: int, seed: int, progress: bool = False) -> list[list[int]]:
    """Rows to judge by, fold by fold, such that the rest still has every class; near-duplicates, and images of one
    group, share a fold.

    A class whose images all belong together is always trained on, and so is what belongs with them.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    together, labels = groups(looks(images.images, progress), images.groups), np.array(images.labels)
    sizes = Counter(label for label, _ in {*zip(images.labels, together.tolist(), strict=True)})
    always = {together[i] for i, label in enumerate(images.labels) if sizes[label] < 2}
    rows = np.array([i for i in range(len(images)) if together[i] not in always], int)
    folds = min(folds, max((sizes[label] for label in sizes), default=0), len(set(together[rows].tolist())))
    if folds < 2 or not len(rows):
        return []
    with warnings.catch_warnings():  # a class of two need not be in every fold
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        made = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        parts = list(made.split(rows, labels[rows], together[rows]))
    found = []
    for _, held in parts:
        judged = rows[held]
        rest = set(np.delete(labels, judged).tolist())
        kept = {together[i] for i in judged if labels[i] not in rest}
        found.append([int(i) for i in judged if together[i] not in kept])
    return [part for part in found if part]


def _fold(train: ImageSet, judged: Sequence[int], task: Task, method: Method, lab: Lab) -> Evaluation:
    """Fitted to the others, asked about these."""
    out = set(judged)
    rest = train.subset(i for i in range(len(train)) if i not in out)
    fitted = learn(method, rest, task, lab)
    beside = {name: learn_beside(other, rest, task, lab) for name, other in BESIDE.items()}
    asked = [(Question("all"), train.subset(judged), False)]
    evaluations, _ = evaluate(fitted, asked, lab.train_cache(task), beside)
    return evaluations[0]


def _judgement(how: str, found: Evaluation, rows: Sequence[int], method: Method) -> Judgement:
    labels, tables = found.labels[rows], {"zero-shot": found.zero_shot, **found.beside, "": found.probabilities}
    tables = {name or method.title: table[rows] for name, table in tables.items()}
    right = {name: table.argmax(1) == labels for name, table in tables.items()}
    rated = tuple(
        _rates(name, table, labels, right[name], None if name == method.title else right[method.title])
        for name, table in tables.items()
    )
    counts = np.bincount(labels, minlength=len(found.classes))
    return Judgement(
        how=how,
        images=len(labels),
        classes=found.classes,
        majority=100 * counts.max() / len(labels),
        rows=rated,
        doubts=tuple(_doubts(rated, right, [found.classes[i] for i in np.flatnonzero(counts == 0)])),
    )


def _rates(name: str, table: np.ndarray, labels: np.ndarray, right: np.ndarray, own: np.ndarray | None) -> Rates:
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
        calibration_error=metrics.expected_calibration_error(table, labels),
        recalls=[None if np.isnan(recall) else float(recall) for recall in recalls],
        p=None if own is None else metrics.paired(own, right)[3],
    )


def _doubts(rated: Sequence[Rates], right: dict[str, np.ndarray], without: Sequence[str]) -> list[str]:
    """What the figures do not say by themselves."""
    *others, own = rated
    found = []
    if (own.high - own.low) / 2 > WIDE:
        found.append(
            f"{len(right[own.name])} images are too few to judge by: any accuracy from {own.low:.0f} to "
            f"{own.high:.0f} % is plausible; add images"
        )
    if without:
        found.append(f"no image to judge by: {', '.join(without[:5])}{' ...' * (len(without) > 5)}")
    for other in others:
        if other.accuracy > own.accuracy and other.p is not None and other.p < LEVEL:
            found.append(
                f"{other.name} is right more often, {other.accuracy:.1f} against {own.accuracy:.1f} % (McNemar's test, "
                f"p = {other.p:.2g}): fit again with --method {other.name}"
            )
    return found
