"""Folds of the shots: a model that was fitted to the other folds answers each image."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from numpy.typing import ArrayLike

from rmadapter import metrics
from rmadapter.answers.held_out import one_of_each_group
from rmadapter.data.duplicates import groups, halves
from rmadapter.data.fewshot import FewShot, half
from rmadapter.data.read import ImageSet
from rmadapter.runs.evaluate import predict_all
from rmadapter.runs.features import distances_of, with_means
from rmadapter.runs.lab import Lab
from rmadapter.runs.promises import Answered
from rmadapter.runs.run import fit_baseline, learn, run_key
from rmadapter.support.files import write_tensors
from rmadapter.task import Task
from rmadapter.training.contract import Method

FOLDS = 4  # divides 4, 8 and 16 shots per class evenly
# What most methods need on images that they have not seen, and how much that varies: the median and
# the standard deviation of the logarithm.
TEMPERATURE, DEVIATION = 1.5, 0.5
MAX_TEMPERATURE = 20.0  # the highest temperature, and one over the lowest


@dataclass(frozen=True)
class FoldAnswers:
    """What a method answers on folds.

    Attributes:
        table: Probabilities [M, C] of the images in the first rows of `Folds.rows`.
        seconds: Seconds for fitting and evaluating.
        distances: [M], as in `RejectionScore`; none of a method without features, and of a
            baseline.
    """

    table: np.ndarray
    seconds: float
    distances: np.ndarray = field(default_factory=lambda: np.empty(0))


@dataclass(eq=False)
class Folds:
    """Folds of a task's shots.

    Answers are kept in the lab's folder, if it has one, so that a killed run can resume.

    Attributes:
        task: The task.
        few: The draw.
        lab: Lab that holds the data and the backbone.
        images: The N shots, of the classes of the task.
        parts: Rows to judge by, fold by fold; near-duplicates share a fold.
    """

    task: Task
    few: FewShot
    lab: Lab
    images: ImageSet
    parts: list[list[int]]
    _known: dict[str, list[FoldAnswers]] = field(default_factory=dict)

    @classmethod
    def make(cls, task: Task, few: FewShot, lab: Lab, count: int | None = None) -> Folds:
        """Make at most `count` folds: fewer if classes are small, none if no class can spare an
        image, or for 0. By default hold a quarter out once."""
        images = half(few.train, task.classes)
        parts = split(images, count or FOLDS, task.seed, lab.progress) if count != 0 else []
        return cls(task, few, lab, images, parts[:1] if count is None else parts)

    def __len__(self) -> int:
        return len(self.parts)

    @property
    def rows(self) -> list[int]:
        """Return the rows of the images to judge by, M of the N shots."""
        return [row for part in self.parts for row in part]

    @property
    def judged(self) -> ImageSet:
        """Return the M images to judge by."""
        return self.images.subset(self.rows)

    @property
    def how(self) -> str:
        """Return by what the folds judge, in words."""
        if len(self) == 1:
            return f"on {len(self.rows):,} training images, held out from a first training"
        return f"by {len(self)}-fold cross-validation of the training images"

    @property
    def places(self) -> np.ndarray:
        """Return a number [M] for each image to judge by, such that images of one number can be
        judged by what the others calibrate: of its fold, or its half of the only one."""
        if len(self) == 1:
            return halves(self.judged.group_numbers, seed=0)
        return np.repeat(np.arange(len(self)), [len(part) for part in self.parts])

    def answers(
        self,
        method: Method,
        name: str,
        *,
        baseline: bool = False,
    ) -> FoldAnswers:
        """Return the answers of a method on the first folds; each fold is computed once.

        Args:
            method: The method.
            name: Its name, as `load_method` accepts it.
            baseline: Whether to fit as `fit_baseline` does.
        """
        plain = baseline and self.task.augmentation != "none"
        key = self._key(method, name, plain)
        done = self._known.setdefault(key, [])
        while len(done) < len(self):
            self.lab.expect_training(len(done) + 1, len(self) + 1)  # the last is on all images
            done.append(self._fold(method, plain, key, len(done)))
        return FoldAnswers(
            np.concatenate([one.table for one in done]),
            sum(one.seconds for one in done),
            np.concatenate([one.distances for one in done]),
        )

    def _key(self, method: Method, name: str, plain: bool) -> str:
        backbone = self.lab.backbone(self.task.backbone)
        key = run_key(self.task, method, name, self.lab.machine, backbone, self.few)
        # groups move rows between folds
        parts = hashlib.sha256(json.dumps(self.parts).encode()).hexdigest()
        return f"{key[:24]}-{len(self)}-{parts[:12]}{'-beside' * plain}"

    def _fold(
        self,
        method: Method,
        plain: bool,
        key: str,
        number: int,
    ) -> FoldAnswers:
        """Return the answers on one fold, which are saved if the lab has a folder."""
        part = self.parts[number]
        file = self._file(key, number)
        saved = _read(file, len(part)) if file else None
        if saved:
            return saved
        started = time.monotonic()
        cache = self.lab.train_cache(self.task)
        cache.expect_parts(self.images)
        held_out = set(part)
        rest = self.images.subset(i for i in range(len(self.images)) if i not in held_out)
        if plain:
            fitted = fit_baseline(method, rest, self.task, self.few, self.lab)
        else:
            fitted = learn(
                method,
                rest,
                self.task,
                self.few,
                self.lab,
            )
        models, judged = {method.title: fitted.score()}, self.images.subset(part)
        table = predict_all(models, fitted, cache, judged, self.task.seed)[method.title]
        far = np.empty(0)
        if not plain:
            far = distances_of(with_means(fitted, rest, cache), judged, cache)
        seconds = time.monotonic() - started
        if file:
            numbers = {"distances": torch.from_numpy(far), "seconds": torch.tensor(seconds)}
            write_tensors(file, {"table": table, **numbers})
        return FoldAnswers(table.numpy(), seconds, far)

    def _file(self, key: str, number: int) -> Path | None:
        """Return where the answers on one fold are kept, if anywhere."""
        return self.lab.folder and self.lab.folder / f"folds-{key}-{number}.safetensors"

    def temperature(self, method: Method, name: str) -> float | None:
        """Return the temperature that calibrates models of a method; None without folds.

        Args:
            method: Method to be fitted.
            name: Name of the method, as `load_method` accepts it.
        """
        if not self.parts:
            return None
        table, groups = self.answers(method, name).table, self.judged.group_numbers
        return fitted_temperature(table, self.judged.labels, groups, self.task.seed)

    def tempered(self, method: Method, name: str, temperature: float) -> Answered:
        """Return the answers of a method, calibrated."""
        answers = self.answers(method, name)
        table = metrics.tempered(answers.table, temperature)
        return replace(Answered.on(self.judged, table), distances=answers.distances)


def _read(file: Path, count: int) -> FoldAnswers | None:
    """Read saved answers on `count` images; None if there are none, or only damaged ones."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(file)
        seconds, far = float(tensors["seconds"]), tensors["distances"].numpy()
        answers = FoldAnswers(tensors["table"].numpy(), seconds, far)
    except (SafetensorError, OSError, KeyError, ValueError):
        return None
    return answers if len(answers.table) == count else None


def split(
    images: ImageSet,
    folds: int,
    seed: int,
    progress: bool = False,
    together: np.ndarray | None = None,
) -> list[list[int]]:
    """Return rows to judge by, fold by fold, such that the rest still has every class;
    near-duplicates, and images of one group, share a fold.

    The images of each class are dealt in turn. There are no more folds than a class usually has
    images: every class should lose equally many, as a model that saw fewer images of a class
    answers it less often, and so would be wrong about exactly those held out. A class whose images
    all belong together is always trained on, and so is everything that belongs with them.

    Args:
        images: The images.
        folds: Number of folds at most.
        seed: Seed of the order in which a class's images are dealt.
        progress: Whether to show a bar on stderr.
        together: The `groups` of the images, if already known.
    """
    if together is None:
        together = groups(images.looks(progress), images.groups)
    group_of, labels = together.tolist(), images.labels
    groups_of: dict[int, list[int]] = defaultdict(list)  # class -> its groups, each once
    for group, label in dict.fromkeys(zip(group_of, labels, strict=True)):
        groups_of[label].append(group)
    always = {members[0] for members in groups_of.values() if len(members) == 1}
    sizes = [len(members) for members in groups_of.values() if len(members) > 1]
    count = min(folds, int(median(sizes))) if sizes else 0
    if count < 2:
        return []
    rng = random.Random(seed)
    fold_of: dict[int, int] = {}
    for label in sorted(groups_of):
        rng.shuffle(groups_of[label])
        for group in groups_of[label]:
            if group not in always and group not in fold_of:
                fold_of[group] = len(fold_of) % count
    place = np.array([fold_of.get(group, -1) for group in group_of])
    parts = []
    for fold in range(count):
        held_out = np.flatnonzero(place == fold).tolist()
        rest = {labels[i] for i in np.flatnonzero(place != fold).tolist()}
        needed = {group_of[i] for i in held_out if labels[i] not in rest}
        part = [i for i in held_out if group_of[i] not in needed]
        if part:
            parts.append(part)
    return parts if len(parts) > 1 else []


def fitted_temperature(
    table: np.ndarray,
    labels: ArrayLike,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> float:
    """Return the temperature that suits answers on held-out images, and what most methods need.

    Args:
        table: The answers [N, C].
        labels: [N] int.
        groups, seed: As for `one_of_each_group`.
    """
    rows = np.sort(one_of_each_group(len(table), groups, seed)[0])
    right = np.asarray(labels)[rows]
    return metrics.temperature(table[rows], right, MAX_TEMPERATURE, TEMPERATURE, DEVIATION)
