"""Folds of the shots: a model that was fitted to the other folds answers each image."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
import torch

from rmadapter import metrics
from rmadapter.data.duplicates import groups
from rmadapter.data.fewshot import half
from rmadapter.data.read import ImageSet
from rmadapter.runs.order import ask_all
from rmadapter.runs.run import Lab, learn, learn_beside, run_key
from rmadapter.support.files import write_tensors
from rmadapter.task import Task
from rmadapter.training.contract import Method

FOLDS = 4  # divides 4, 8 and 16 shots per class evenly


class OutOfTime(Exception):
    """The remaining folds would not be done in time."""


@dataclass(frozen=True)
class Answers:
    """table: probabilities [M, C] of the images in `Folds.rows`. seconds: for fitting and
    evaluating."""

    table: np.ndarray
    seconds: float


@dataclass(eq=False)
class Folds:
    """Folds of a task's shots. parts: rows to judge by, fold by fold; near-duplicates share a fold.
    Answers are kept in the lab's folder, if it has one, so that a killed run can resume."""

    task: Task
    lab: Lab
    images: ImageSet
    parts: list[list[int]]
    _known: dict[str, Answers] = field(default_factory=dict)

    @classmethod
    def make(cls, task: Task, lab: Lab, count: int) -> Folds:
        """At most `count` folds: fewer if classes are small, none if no class can spare an image."""
        images = half(lab.draw(task).train, task.classes)
        return cls(task, lab, images, split(images, count, task.seed, lab.progress))

    def __len__(self) -> int:
        return len(self.parts)

    @property
    def rows(self) -> list[int]:
        """Rows of the images to judge by, M of the N shots."""
        return [row for part in self.parts for row in part]

    @property
    def judged(self) -> ImageSet:
        return self.images.subset(self.rows)

    def answers(
        self, method: Method, name: str, *, beside: bool = False, deadline: float = float("inf")
    ) -> Answers:
        """Answers of this method. name: as `load_method` accepts it. beside: as `learn_beside`.
        deadline: on the clock `time.monotonic`; raises OutOfTime as soon as the finished folds show
        that the others will be late."""
        few, backbone = self.lab.draw(self.task), self.lab.backbone(self.task.backbone)
        beside = beside and self.task.augmentation != "none"
        key = run_key(self.task, method, name, self.lab.machine, backbone, few)
        parts = hashlib.sha256(
            json.dumps(self.parts).encode()
        ).hexdigest()  # groups move rows between folds
        key = f"{key[:24]}-{len(self)}-{parts[:12]}{'-beside' * beside}"
        file = self.lab.folder and self.lab.folder / f"folds-{key}.safetensors"
        if key not in self._known:
            self._known[key] = (file and _read(file, len(self.rows))) or self._ask(
                method, beside, deadline
            )
            if file:
                kept = self._known[key]
                tensors = {
                    "table": torch.from_numpy(kept.table),
                    "seconds": torch.tensor(kept.seconds),
                }
                write_tensors(file, tensors)
        return self._known[key]

    def temperature(self, method: Method, name: str) -> float | None:
        """The temperature that calibrates models of this method; None without folds."""
        if not self.parts:
            return None
        return self.no_surer(
            metrics.temperature(self.answers(method, name).table, self.judged.labels)
        )

    def no_surer(self, temperature: float) -> float:
        """At least 1 for two folds: with two images per class, their models saw one of them, and
        are less sure than the model that sees both, so their temperature must not make that one
        surer."""
        return max(temperature, 1.0) if len(self) == 2 else temperature

    def _ask(self, method: Method, beside: bool, deadline: float) -> Answers:
        started, tables = time.monotonic(), []
        self.lab.train_cache(self.task).expect_parts(self.images)
        for part in self.parts:
            out = set(part)
            rest = self.images.subset(i for i in range(len(self.images)) if i not in out)
            fitted = (learn_beside if beside else learn)(method, rest, self.task, self.lab)
            cache, judged = self.lab.train_cache(self.task), self.images.subset(part)
            tables.append(
                ask_all({"it": fitted.score()}, fitted, cache, judged, self.task.seed)["it"]
            )
            now, done = time.monotonic(), sum(map(len, tables))
            if now + (now - started) * (len(self.rows) - done) / done > deadline:
                raise OutOfTime
        return Answers(torch.cat(tables).numpy(), time.monotonic() - started)


def _read(file: Path, count: int) -> Answers | None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(file)
        return (
            Answers(found["table"].numpy(), float(found["seconds"]))
            if len(found["table"]) == count
            else None
        )
    except (SafetensorError, OSError, KeyError, ValueError):
        return None  # it is computed again


def split(
    images: ImageSet,
    folds: int,
    seed: int,
    progress: bool = False,
    together: np.ndarray | None = None,
) -> list[list[int]]:
    """Rows to judge by, fold by fold, such that the rest still has every class; near-duplicates,
    and images of one group, share a fold.

    The images of each class are dealt in turn. There are no more folds than a class usually has
    images: every class should lose equally many, as a model that saw fewer images of a class
    answers it less often, and so would be wrong about exactly those held out. A class whose images
    all belong together is always trained on, and so is everything that belongs with them. together:
    the `groups` of the images, if already known.
    """
    if together is None:
        together = groups(images.looks(progress), images.groups)
    together, labels = together.tolist(), images.labels
    own: dict[int, list[int]] = defaultdict(list)  # class -> what belongs together, each once
    for group, label in dict.fromkeys(zip(together, labels, strict=True)):
        own[label].append(group)
    always = {group for some in own.values() if len(some) < 2 for group in some}
    sizes = [len(some) for some in own.values() if len(some) > 1]
    folds = min(folds, int(median(sizes))) if sizes else 0
    if folds < 2:
        return []
    deck, fold_of, turn = random.Random(seed), {}, 0
    for label in sorted(own):
        deck.shuffle(own[label])
        for group in own[label]:
            if group not in always and group not in fold_of:
                fold_of[group] = turn % folds
                turn += 1
    place = np.array([fold_of.get(group, -1) for group in together])
    found = []
    for fold in range(folds):
        held = np.flatnonzero(place == fold).tolist()
        rest = {labels[i] for i in np.flatnonzero(place != fold).tolist()}
        kept = {together[i] for i in held if labels[i] not in rest}
        found.append([i for i in held if together[i] not in kept])
    parts = [part for part in found if part]
    return parts if len(parts) > 1 else []
