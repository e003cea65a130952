"""Evaluate a fitted method: in a run, later from its folder, and beside other runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from rmadapter import metrics
from rmadapter.artifacts.checkpoint import Saved, read_draw
from rmadapter.artifacts.predictions import Evaluation
from rmadapter.artifacts.record import Score
from rmadapter.artifacts.run_folder import RunFolder
from rmadapter.artifacts.value import Balanced, Level, Split
from rmadapter.data.fewshot import few_shot, half, read_split, split_digest
from rmadapter.data.names import custom_names, nfc
from rmadapter.data.read import ImageSet
from rmadapter.errors import UserError
from rmadapter.methods import changed_settings, name_with_settings
from rmadapter.methods.zero_shot import ZeroShot
from rmadapter.runs.lab import Sets, Splits
from rmadapter.settings import settings_of
from rmadapter.support.terminal import note
from rmadapter.task import Half, Question
from rmadapter.training.cache import Cache
from rmadapter.training.contract import Fitted, NotApplicable, ToLogits, answers


def evaluate(
    fitted: Fitted,
    sets: Sets,
    cache: Cache,
    baselines: Mapping[str, Fitted] | None = None,
    seed: int = 1,
) -> tuple[list[Evaluation], list[Score]]:
    """Evaluate the method and the untouched backbone, if it has a text encoder, on every image; the
    frozen part is computed once for both.

    Args:
        fitted: The fitted method.
        sets: Images, and what is asked of them.
        cache: Cache of frozen activations.
        baselines: Other methods, which read only features; the evaluations hold their answers
            where they know the classes.
        seed: Seed of the order of the images, if the method remembers images.

    Raises:
        NotApplicable: The method cannot answer the first set.
    """
    evaluations, scores = list[Evaluation](), list[Score]()
    for question, images, split in sets:
        score = Score(
            name=question.name,
            images=len(images),
            classes=len(images.classes),
            data=question.data,
            digest=images.digest,
            split=split,
            order=seed if fitted.remembers else None,
        )
        try:
            model = fitted.score(images.classes)
        except NotApplicable as error:
            if not scores:
                raise
            scores.append(score.model_copy(update={"reason": str(error)}))
            continue
        known = replace(fitted.known, classes=images.classes)
        others: dict[str, ToLogits] = {}
        for name, other in (baselines or {}).items():
            with suppress(NotApplicable):
                others[name] = other.score(images.classes)
        titled = {f"the baseline {name}": other for name, other in others.items()}
        models = {fitted.method.title or "the method": model, **titled}
        if fitted.backbone.has_text:
            models[""] = ZeroShot().restore(fitted.backbone, known, {}).score()
        tables = predict_all(models, fitted, cache, images, seed, f"evaluating {score.title}")
        zero_shot = tables.pop("").numpy() if "" in tables else None
        ours, *rest = (table.numpy() for table in tables.values())
        beside = dict(zip(others, rest, strict=True))
        evaluations.append(Evaluation(score.title, images, ours, zero_shot, beside))
        rates: dict[str, object] = {
            "accuracy": round(metrics.accuracy(ours, images.labels), 4),
            "open_world": _in_one_list(fitted, images, ours),
            "balanced": Balanced.of(ours, images.labels, images.group_numbers),
            "levels": levels_of(evaluations[-1]),
        }
        if zero_shot is not None:
            rates["zero_shot"] = round(metrics.accuracy(zero_shot, images.labels), 4)
        scores.append(score.model_copy(update=rates))
    return evaluations, scores


def levels_of(evaluation: Evaluation) -> tuple[Level, ...]:
    """Return the accuracies at the levels above the labels; none without a taxonomy."""
    taxonomy, labels = evaluation.images.taxonomy, evaluation.labels
    if taxonomy is None:
        return ()
    levels = []
    for level in range(1, taxonomy.depth + 1):
        names, which = taxonomy.groups(level)
        rates = [
            None
            if table is None
            else round(metrics.accuracy(taxonomy.sums(table, level), which[labels]), 4)
            for table in (evaluation.probabilities, evaluation.zero_shot)
        ]
        facts = {"accuracy": rates[0], "zero_shot": rates[1]}
        levels.append(Level.model_validate({"level": level, "groups": len(names), **facts}))
    return tuple(levels)


def _in_one_list(fitted: Fitted, images: ImageSet, table: np.ndarray) -> dict[str, float]:
    """Return `metrics.open_world` of probabilities [N, C] if the images are of trained classes and
    of others, after these; else nothing."""
    count = len(fitted.classes)
    if images.classes[:count] != fitted.classes:
        return {}
    if not min(images.labels) < count <= max(images.labels):
        return {}
    found = metrics.open_world(table, images.labels, count)
    return {name: round(rate, 4) for name, rate in found.items()}


def predict_all(
    models: Mapping[str, ToLogits],
    fitted: Fitted,
    cache: Cache,
    images: ImageSet,
    seed: int,
    text: str = "evaluating",
) -> dict[str, Tensor]:
    """Return probabilities [N, C] of each model, in the order of the images.

    A method that remembers images sees them in a random order, because data sets are sorted by
    class.

    Args:
        models: Models as for `answers`.
        fitted: Method whose encoders give the features.
        cache: Cache of frozen activations.
        images: N images.
        seed: Seed of the random order.
        text: What the progress bar says.

    Raises:
        UserError: As for `answers`.
    """
    order = shuffled(len(images), seed) if fitted.remembers else None
    stream = cache.stream(images, fitted.first, text, order, fitted.method.test_views)
    parts = list(answers(models, stream))
    tables = {name: torch.cat([part.pop(name) for part in parts]) for name in models}
    if order is None:
        return tables
    return {name: table[order.argsort()] for name, table in tables.items()}


def shuffled(count: int, seed: int) -> Tensor:
    """Return row numbers [count] in random order."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def refuse_stateful(fitted: Fitted, what: str) -> None:
    """Raise UserError for a method whose answers depend on earlier images."""
    if fitted.remembers:
        raise UserError(
            f"{what} classifies each image by itself, but {fitted.method.title} learns from "
            "earlier images: use `rmadapter predict` with all of them, or another method"
        )


# Saved runs


def known_names(folder: Path, saved: Saved) -> dict[str, str]:
    """Return the prompt names that do not follow from the labels of a saved run, as `read_images`
    takes them; also those of the half that the run was not fitted to."""
    file = RunFolder(folder).split
    if not file.is_file():
        return saved.custom_names
    split = read_split(file)
    return {**custom_names(split.written, split.classes), **saved.custom_names}


def trained_on(folder: Path, images: ImageSet) -> int:
    """Count the images, recognised by their content, that a saved run has learnt from or has chosen
    settings by; 0 for a model that was saved without its draw."""
    try:
        task, _ = read_draw(folder)
        split = read_split(RunFolder(folder).split)
        learnt = split.contents(task.classes, images.root or Path())
    except UserError:
        return 0
    return sum(content.hex() in learnt for content in images.contents)


def used_by(folder: Path, images: ImageSet) -> int:
    """Count the images, recognised by their content, that trained or calibrated a saved run; those
    that were not drawn only where the run is not of an earlier version."""
    file = RunFolder(folder).split
    others = {*read_split(file).others} if file.is_file() else set()
    undrawn = sum(content.hex() in others for content in images.contents)
    return trained_on(folder, images) + undrawn


def evaluate_saved(
    folder: Path, fitted: Fitted, splits: Splits, split: str, classes: Half, cache: Cache
) -> tuple[list[Evaluation], list[Score]]:
    """Evaluate a saved run on one split of a data set, with the data set's class names.

    Args:
        folder: Folder of the run.
        fitted: Its model.
        splits: The data set.
        split: Split of the data, or "heldout": the train images that the run did not see.
        classes: Half of the classes, or all.
        cache: Cache of frozen activations.

    Raises:
        UserError: The split is missing or empty, or it is "heldout", and the method saw these
            images or was fitted to other data.
    """
    hint = _hint_of_other_classes(fitted, splits)
    if split == "heldout":
        images = _heldout(folder, fitted, splits, classes)
    else:
        check_split(splits, split, "heldout", hint)
        images = half(splits[split], classes)
        if hint:
            note(hint)
    if not len(images):
        raise UserError(f"{split}: there are no images to evaluate on")
    known = trained_on(folder, images)
    if known:
        note(
            f"{known} of these {len(images)} images were trained on: this accuracy says little "
            "about new ones"
        )
    seed = (
        read_draw(folder)[0].seed if fitted.remembers and RunFolder(folder).record.is_file() else 1
    )
    named = cast(Split, "held out" if split == "heldout" else split)
    return evaluate(fitted, [(Question(classes, classes=classes), images, named)], cache, seed=seed)


def check_split(splits: Splits, split: str, other: str = "", hint: str = "") -> None:
    """Raise UserError if the data lacks a split.

    Args:
        splits: The data.
        split: Name of the split.
        other: Another name that --split takes.
        hint: What may be wrong with the data.
    """
    if split in splits:
        return
    more = f"; {hint}" if hint else ""
    choices = ", ".join([*splits, *([other] if other else [])])
    if [*splits] == ["all"]:
        raise UserError(
            f"the data is not divided into train and test: for all of its images give --split all "
            f"(--split takes {choices}){more}"
        )
    raise UserError(f"the data has no {split} split: give --split one of {choices}{more}")


def _hint_of_other_classes(fitted: Fitted, splits: Splits) -> str:
    """Return a hint if no class of the data is one of the run's, as where folders of images without
    labels are read as classes; else ""."""
    known = {name.casefold() for name in fitted.known.classes}
    classes = next(iter(splits.values())).classes
    if any(name.casefold() in known for name in classes):
        return ""
    named = ", ".join(map(repr, classes[:3])) + ", ..." * (len(classes) > 3)
    return (
        f"none of the data's classes ({named}) is one of the run's: if its folders are no classes, "
        "use `rmadapter predict`"
    )


def _heldout(folder: Path, fitted: Fitted, splits: Splits, classes: Half) -> ImageSet:
    """Return the train images that a run did not see. Raises UserError if there are none."""
    if fitted.method.traits.unlabelled:
        raise UserError(
            f"{fitted.method.title} has seen the images that were not drawn: give --split test"
        )
    task, digest = read_draw(folder)
    few = few_shot(splits, task.shots, task.seed, task.draw)
    if split_digest(few) != digest:
        raise UserError(
            f"{folder} was trained on different images: --split heldout needs the data it was "
            "fitted to"
        )
    images = half(few.unrelated, classes)
    if not len(images):
        raise UserError(
            "heldout: every train image was drawn or shares a group with one: give --split test, "
            "or see the results of `fit` with `rmadapter report`"
        )
    for text in few.notes:
        note(text)
    return images


# Several runs on one test set


@dataclass(frozen=True)
class Line:
    """The accuracy of a run, beside that of the first run.

    Attributes:
        run: Folder of the run.
        method: Method with its changed settings.
        accuracy: Accuracy in percent.
        difference: Difference from the first run in points; None, as all below, for that run.
        low: Lower end of the difference's 95 % interval.
        high: Upper end of it.
        p: P value, as in `metrics.paired`.
    """

    run: str
    method: str
    accuracy: float
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None

    def row(self) -> list[str]:
        """Return the cells of a table's row."""
        cells = [self.run, self.method, f"{self.accuracy:.1f}"]
        if self.difference is None:
            return [*cells, "", "", ""]
        interval = f"{self.low:+.1f} to {self.high:+.1f}"
        return [*cells, f"{self.difference:+.1f}", interval, f"{self.p:.2g}"]


def compare(
    runs: Sequence[tuple[Path, Saved]], images: ImageSet, split: str = "test"
) -> list[Line]:
    """Return one line per run; each run uses the class names that it was trained with.

    Args:
        runs: Folders of the runs and their models.
        images: Images to compare on.
        split: Split of the data that they are.

    Raises:
        UserError: There are no images, or a method cannot score a class of the data.
    """
    if not len(images):
        raise UserError("there are no images to compare on")
    lines: list[Line] = []
    first: np.ndarray | None = None
    for folder, saved in runs:
        labels = [nfc(str(label)) for label in images.written]
        pairs = zip(labels, images.classes, strict=True)
        names = tuple(saved.custom_names.get(label, name) for label, name in pairs)
        cache = Cache(saved.fitted.backbone, hold=False)
        sets: Sets = [(Question("all"), replace(images, classes=names), cast(Split, split))]
        try:
            [evaluation], _ = evaluate(saved.fitted, sets, cache)
        except NotApplicable as error:
            raise UserError(f"{folder}: {error}") from None
        right = evaluation.probabilities.argmax(1) == evaluation.labels
        groups = evaluation.images.group_numbers
        comparison = () if first is None else metrics.paired(first, right, groups)
        accuracy = 100 * float(right.mean())
        changed = changed_settings(saved.name, settings_of(saved.fitted.method))
        name = name_with_settings(saved.name, changed)
        lines.append(Line(str(folder), name, accuracy, *comparison))
        first = right if first is None else first
    return lines
