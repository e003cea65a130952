"""Folds of the shots: a model that was fitted to the other folds answers each image. On these
answers, `auto` compares its candidates."""

from __future__ import annotations

import hashlib
import json
import math
import random
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
import torch
from pydantic import ValidationError

from rmadapter import metrics
from rmadapter.artifacts.record import Candidate, Choice
from rmadapter.data.duplicates import groups
from rmadapter.data.fewshot import FewShot, half
from rmadapter.data.read import ImageSet
from rmadapter.errors import UserError
from rmadapter.runs.evaluate import predict_all
from rmadapter.runs.lab import Lab
from rmadapter.runs.run import fit_baseline, learn, run_key
from rmadapter.support.files import read_json, write_json, write_tensors
from rmadapter.support.terminal import note
from rmadapter.task import Task
from rmadapter.training.contract import Choices, Method, NotApplicable

FOLDS = 4  # divides 4, 8 and 16 shots per class evenly
ERRORS = 2  # standard errors; by chance alone, one of several candidates is often ahead by one


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
    few: FewShot
    lab: Lab
    images: ImageSet
    parts: list[list[int]]
    _known: dict[str, Answers] = field(default_factory=dict)

    @classmethod
    def make(cls, task: Task, few: FewShot, lab: Lab, count: int) -> Folds:
        """Make at most `count` folds: fewer if classes are small, none if no class can spare an
        image."""
        images = half(few.train, task.classes)
        return cls(task, few, lab, images, split(images, count, task.seed, lab.progress))

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

    def answers(
        self, method: Method, name: str, *, baseline: bool = False, deadline: float = float("inf")
    ) -> Answers:
        """Return the answers of a method, computed once.

        name: as `load_method` accepts it. baseline: fit as `fit_baseline` does. deadline: on the
        clock `time.monotonic`; raises OutOfTime as soon as the finished folds show that the others
        will be late.
        """
        plain = baseline and self.task.augmentation != "none"
        key = self._key(method, name, plain)
        if key not in self._known:
            file = self.lab.folder and self.lab.folder / f"folds-{key}.safetensors"
            saved = _read(file, len(self.rows)) if file else None
            answers = saved or self._compute(method, plain, deadline)
            if file and saved is None:
                table, seconds = torch.from_numpy(answers.table), torch.tensor(answers.seconds)
                write_tensors(file, {"table": table, "seconds": seconds})
            self._known[key] = answers
        return self._known[key]

    def _key(self, method: Method, name: str, plain: bool) -> str:
        backbone = self.lab.backbone(self.task.backbone)
        key = run_key(self.task, method, name, self.lab.machine, backbone, self.few)
        # groups move rows between folds
        parts = hashlib.sha256(json.dumps(self.parts).encode()).hexdigest()
        return f"{key[:24]}-{len(self)}-{parts[:12]}{'-beside' * plain}"

    def temperature(self, method: Method, name: str) -> float | None:
        """Return the temperature that calibrates models of this method; None without folds."""
        if not self.parts:
            return None
        table = self.answers(method, name).table
        return self.never_sharpen(metrics.temperature(table, self.judged.labels))

    def never_sharpen(self, temperature: float) -> float:
        """Return at least 1 for two folds: fold models that saw one image per class are
        underconfident, so never sharpen with their temperature."""
        return max(temperature, 1.0) if len(self) == 2 else temperature

    def _compute(self, method: Method, plain: bool, deadline: float) -> Answers:
        started, tables = time.monotonic(), list[torch.Tensor]()
        train = fit_baseline if plain else learn
        cache = self.lab.train_cache(self.task)
        cache.expect_parts(self.images)
        for part in self.parts:
            held_out = set(part)
            rest = self.images.subset(i for i in range(len(self.images)) if i not in held_out)
            fitted = train(method, rest, self.task, self.few, self.lab)
            models, judged = {method.title: fitted.score()}, self.images.subset(part)
            tables.append(predict_all(models, fitted, cache, judged, self.task.seed)[method.title])
            now, done = time.monotonic(), sum(map(len, tables))
            if now + (now - started) * (len(self.rows) - done) / done > deadline:
                raise OutOfTime
        return Answers(torch.cat(tables).numpy(), time.monotonic() - started)


def _read(file: Path, count: int) -> Answers | None:
    """Read saved answers on `count` images; None if there are none, or only damaged ones."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(file)
        answers = Answers(tensors["table"].numpy(), float(tensors["seconds"]))
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
    all belong together is always trained on, and so is everything that belongs with them. together:
    the `groups` of the images, if already known.
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


# Choosing a method


def choose_once(folds: Folds, choices: Choices, file: Path) -> Choice:
    """Load the saved choice or choose now; timings may differ after a restart."""
    with suppress(UserError, ValidationError):
        return Choice.model_validate(read_json(file))
    choice = choose(folds, choices)
    write_json(file, choice.model_dump(mode="json"))
    return choice


def choose(folds: Folds, choices: Choices) -> Choice:
    """Choose the most preferred candidate whose accuracy over the folds is within two standard
    errors of the best.

    The standard error is that of the paired difference. Without folds, the most preferred candidate
    is chosen. Raises UserError if no candidate could be judged.
    """
    methods, minutes = choices
    if not folds:
        return Choice(chosen=next(iter(methods)), minutes=minutes)
    deadline, labels = time.monotonic() + 60 * minutes, np.array(folds.judged.labels)
    hits: dict[str, np.ndarray] = {}
    rows = {name: Candidate(name=name, title=method.title) for name, method in methods.items()}
    for place, (name, method) in enumerate(methods.items(), 1):
        note(f"auto: {name} ({place} of {len(methods)})")
        try:
            answers = folds.answers(method, name, deadline=deadline)
        except (OutOfTime, NotApplicable, UserError) as error:
            reason = str(error) or "would not finish in time"
            rows[name] = rows[name].model_copy(update={"reason": reason})
            continue
        hits[name] = answers.table.argmax(1) == labels
        figures = {"accuracy": 100 * float(hits[name].mean()), "seconds": round(answers.seconds, 1)}
        rows[name] = rows[name].model_copy(update=figures)
    if not hits:
        first = next(iter(rows.values()))
        raise UserError(
            f"auto: no candidate could be judged; the first, {first.name}: {first.reason}"
        )
    table = np.stack(list(hits.values()))
    for name, (points, deviation) in zip(hits, behind(table).T.tolist(), strict=True):
        rows[name] = rows[name].model_copy(update={"behind": points, "error": deviation})
    chosen = list(hits)[pick(table)]
    return Choice(
        chosen=chosen,
        folds=len(folds),
        images=len(labels),
        minutes=minutes,
        rows=tuple(rows.values()),
    )


def pick(hits: np.ndarray) -> int:
    """Return the place of the first candidate within two standard errors of the best.

    hits: [K, M] bool, whether a candidate is right about an image.
    """
    points, error = behind(hits)
    return int(np.flatnonzero(points <= ERRORS * error)[0])


def behind(hits: np.ndarray) -> np.ndarray:
    """Return [2, K]: how many points each candidate is behind the best, and the standard error of
    that difference."""
    best = hits[hits.mean(1).argmax()]
    lost = best.astype(float) - hits
    return 100 * np.stack([lost.mean(1), lost.std(1) / math.sqrt(hits.shape[1])])
