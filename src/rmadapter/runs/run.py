"""From a task to its record: draw the shots, fit the method, and only then look at test images."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rmadapter.artifacts.evaluation import Evaluation
from rmadapter.artifacts.record import (
    FORMAT,
    BackboneName,
    MethodName,
    Record,
    Score,
    Split,
)
from rmadapter.backbones import Backbone, load_backbone
from rmadapter.backbones.load import identity_of, is_published
from rmadapter.data.catalog.sets import load_dataset
from rmadapter.data.fewshot import FewShot, few_shot, half, split_digest
from rmadapter.data.read import ImageSet
from rmadapter.errors import UserError, quoted
from rmadapter.methods.uses import named_sums
from rmadapter.methods.zero_shot import ZeroShot
from rmadapter.metrics import accuracy
from rmadapter.runs.order import ask_all
from rmadapter.runs.unlabelled import digests, pool, seen
from rmadapter.settings import Machine, settings_of
from rmadapter.support.distributed import announce
from rmadapter.support.files import own_name
from rmadapter.support.machine import all_seeded, describe, find_device, peak, reset_peak, versions
from rmadapter.task import AKIN, Question, Task
from rmadapter.training.cache import Cache
from rmadapter.training.callbacks import Callback
from rmadapter.training.contract import Fitted, Method, NotApplicable, Shots
from rmadapter.training.state import Unfinished

Splits = Mapping[str, ImageSet]
Sets = list[tuple[Question, ImageSet, Split]]


@dataclass(eq=False)
class Lab:
    """What the runs of one process share: the backbone, the images read, and frozen activations.

    root: folder of the data sets. outside, crops: as for `load_dataset`. folder: for activations
    that do not fit into memory. keep: whether to keep those of test images for the next run; a
    single run uses each of them once. callbacks: called at every step of a training. blocks: at
    which coming runs start, as for `Cache`.
    """

    machine: Machine = field(default_factory=Machine)
    root: Path = Path()
    folder: Path | None = None
    keep: bool = False
    progress: bool = True
    outside: bool = False
    crops: bool = False
    callbacks: Sequence[Callback] = ()
    blocks: Collection[int] = ()

    def __post_init__(self) -> None:
        self._backbone: Backbone | None = None
        self._splits: dict[str, Splits] = {}
        self._few: tuple[Any, FewShot] | None = None
        self._tests: dict[Any, ImageSet] = {}
        self._train: tuple[Any, Cache] | None = None
        self._test: Cache | None = None

    def add(self, name: str, splits: Splits) -> None:
        """Add images in memory as a data set of this name."""
        self._splits[name] = splits

    def add_backbone(self, backbone: Backbone) -> None:
        """Add one in memory, under its name, until another one replaces it."""
        self._backbone, self._train, self._test = backbone, None, None

    def splits(self, data: str) -> Splits:
        if data not in self._splits:
            self._splits[data] = load_dataset(
                data, self.root, outside=self.outside, crops=self.crops
            )
        return self._splits[data]

    def backbone(self, name: str) -> Backbone:
        """The backbone of this name, on the device; the last one is kept."""
        if self._backbone is None or self._backbone.name != name:
            self.add_backbone(load_backbone(name))
        assert self._backbone is not None
        return self._backbone.to(find_device(self.machine.device))

    def draw(self, task: Task) -> FewShot:
        """The shots of a task. The last draw is kept: for the same shots it is the same object,
        digest and all. Raises UserError if there is only one class."""
        key = (task.data, task.shots, task.seed)
        if self._few is None or self._few[0] != key:
            self._few = key, few_shot(self.splits(task.data), task.shots, task.seed)
        classes = half(self._few[1].train, task.classes).classes
        if len(classes) < 2:
            which = "" if task.classes == "all" else f"{task.classes} classes: "
            raise UserError(f"{which}{classes[0]!r} is the only class: give at least two")
        return self._few[1]

    def train_cache(self, task: Task) -> Cache:
        """Kept from run to run while tasks augment images alike, so that methods share activations."""
        made = {"augmentation": task.augmentation, "views": task.views, "seed": task.seed}
        backbone = self.backbone(task.backbone)
        if self._train is None or self._train[0] != made:
            folder = self.folder and self.folder / "train"
            cache = Cache(backbone, self.machine, **made, folder=folder, progress=self.progress)  # type: ignore[arg-type]
            self._train = made, cache
        return self._train[1]

    def test_cache(self, task: Task) -> Cache:
        """Of images without augmentation, alike whatever was trained: test images, and the shots in
        `learn_beside`."""
        backbone = self.backbone(task.backbone)
        if self._test is None:
            folder = self.folder and self.folder / "test"
            self._test = Cache(
                backbone, self.machine, folder=folder, hold=self.keep, progress=self.progress
            )
        self._test.blocks = self.blocks if self.keep else ()
        return self._test

    def tests(self, task: Task) -> Sets:
        """Each question, its images, and the split they are from; sets without images are left out."""
        found: Sets = []
        for test in task.asked:
            splits, own = self.splits(test.data or task.data), not test.data
            tested = splits.get("test") or (None if own else splits.get("all"))
            if tested is None and not own:
                raise UserError(f"{test.data}: has no test split, which a target needs")
            images = self.draw(task).apart if tested is None else tested
            key = (
                test.data or task.data,
                test.classes,
                None if tested else (task.shots, task.seed),
            )
            if key not in self._tests and len(images):
                self._tests[key] = half(images, test.classes)
            if len(self._tests.get(key, ())):
                found.append((test, self._tests[key], "held out" if tested is None else "test"))
        return found


@dataclass(frozen=True, eq=False)
class Outcome:
    record: Record
    fitted: Fitted
    evaluations: list[Evaluation]


def run_task(
    task: Task, method: Method, lab: Lab, name: str = "", unfinished: Unfinished | None = None,
    beside: Mapping[str, Method] | None = None, temperature: float | None = None,
) -> Outcome:  # fmt: skip
    """Run a task with a method. name: for `load_method`. unfinished: where the training is saved
    meanwhile. beside: other methods, fitted to the same shots, whose answers the evaluations hold
    too. temperature: as in `Fitted`.

    Raises UserError, and NotApplicable if the method cannot answer the first question.
    """
    few, sets = lab.draw(task), lab.tests(task)
    cache, train = lab.train_cache(task), half(few.train, task.classes)
    reset_peak(cache.device)
    before, started = cache.seconds, time.perf_counter()
    fitted = learn(method, train, task, lab, unfinished)
    fitted = replace(fitted, temperature=temperature or 1.0)
    trained, frozen = time.perf_counter() - started, cache.seconds - before
    high = peak(cache.device)
    fitted = fitted.fitted_to(cache.features(train)[0])
    others = (
        {title: learn_beside(other, train, task, lab) for title, other in (beside or {}).items()}
        if sets
        else {}
    )
    resumed = time.perf_counter()
    evaluations, scores = evaluate(fitted, sets, lab.test_cache(task), others, task.seed)
    evaluated = time.perf_counter() - resumed
    seconds = {
        "frozen": frozen,
        "train": trained - frozen,
        "evaluate": evaluated,
        "total": trained + evaluated,
    }
    record = describe_run(
        task, method, lab, name, few,
        scores=scores,
        reason=next((score.reason for score in scores if score.reason), ""),
        parameters=fitted.parameters,
        temperature=temperature,
        seconds={what: round(value, 3) for what, value in seconds.items()},
        step_seconds=fitted.trained.step_seconds,
        **high,
        machine=describe(cache.device),
        notes=(
            *few.short,
            *(() if lab.splits(task.data).get("test") or all(one.data for one in task.asked) else few.akin),
            *_shared(seen(method, few, train, lab.splits(task.data).get("test")), sets),
            *dict.fromkeys(images.ignored for images in lab.splits(task.data).values() if images.ignored),
            *(note for images in lab.splits(task.data).values() for note in images.skipped),
        ),
    )  # fmt: skip
    return Outcome(record, fitted, evaluations)


def _shared(train: ImageSet, sets: Sets) -> list[str]:
    """A sentence for each test split of the same data that shares groups with the training images."""
    found = []
    for test, images, split in sets:
        rows = [] if test.data or split != "test" else images.akin(train)
        if names := list(dict.fromkeys(images.groups[i] for i in rows)):
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            found.append(
                f"{AKIN} {quoted(names[0])}{more}: {len(rows)} of {len(images)} test images "
                f"({test.name} classes) inflate the accuracy; a judgement leaves them out"
            )
    return found


def learn(
    method: Method, images: ImageSet, task: Task, lab: Lab, unfinished: Unfinished | None = None,
    cache: Cache | None = None,
) -> Fitted:  # fmt: skip
    """Fit a method to some training images, of all classes of a task. cache: used instead of the
    task's own."""
    few, backbone = lab.draw(task), lab.backbone(task.backbone)
    val, cache = (
        None if few.val is None else _alone(half(few.val, task.classes)),
        cache or lab.train_cache(task),
    )
    more = (
        pool(few, images, asked=not lab.splits(task.data).get("test"))
        if method.traits.unlabelled
        else None
    )
    shots = Shots(
        _alone(images),
        cache,
        task.templates,
        task.seed,
        val,
        unfinished,
        lab.progress,
        lab.callbacks,
        more,
    )
    announce(
        method, images, lambda: half(few.train, task.classes), unfinished.key if unfinished else ""
    )
    with all_seeded(task.seed):
        fitted = method.fit(backbone, shots)
    if shots.weights is not None and not fitted.trained.weighed:
        raise UserError(
            f"{method.title} cannot weight images: leave out sample_weight and class_weight"
        )
    return fitted


def _alone(images: ImageSet) -> ImageSet:
    """Images for a method: without the folder they came from, which also holds the test images."""
    return replace(images, root=None, skipped=(), ignored="")


def learn_beside(method: Method, images: ImageSet, task: Task, lab: Lab) -> Fitted:
    """As `learn`, without augmentation, whatever the task's own method uses."""
    return learn(
        method,
        images,
        task,
        lab,
        cache=None if task.augmentation == "none" else lab.test_cache(task),
    )


def evaluate(
    fitted: Fitted,
    sets: Sets,
    cache: Cache,
    beside: Mapping[str, Fitted] | None = None,
    seed: int = 1,
) -> tuple[list[Evaluation], list[Score]]:
    """Evaluate the method and the untouched backbone on every image; the frozen part is computed
    once for both.

    beside: other methods, which read only features; the evaluations hold their answers where they
    know the classes. seed: of the image order, if the method remembers images. Raises NotApplicable
    if it cannot answer the first set.
    """
    evaluations, scores = list[Evaluation](), list[Score]()
    for test, images, split in sets:
        score = Score(
            name=test.name, images=len(images), classes=len(images.classes), data=test.data, digest=images.digest,
            split=split, order=seed if fitted.remembers else None,
        )  # fmt: skip
        try:
            mine = fitted.score(images.classes)
        except NotApplicable as error:
            if not scores:
                raise
            scores.append(score.model_copy(update={"reason": str(error)}))
            continue
        untouched = (
            ZeroShot()
            .restore(fitted.backbone, fitted.known._replace(classes=images.classes), {})
            .score()
        )
        models = {fitted.method.title or "the method": mine, "": untouched}
        for name, other in (beside or {}).items():
            with suppress(NotApplicable):
                models[f"{name} beside it"] = other.score(images.classes)
        found = ask_all(models, fitted, cache, images, seed, f"evaluating {score.title}")
        tables = [table.numpy() for table in found.values()]
        others = dict(
            zip(
                (name.removesuffix(" beside it") for name in [*models][2:]), tables[2:], strict=True
            )
        )
        evaluations.append(Evaluation(score.title, images, tables[0], tables[1], others))
        rates = [round(accuracy(table, images.labels), 4) for table in tables]
        scores.append(score.model_copy(update={"accuracy": rates[0], "zero_shot": rates[1]}))
    return evaluations, scores


def describe_run(
    task: Task, method: Method, lab: Lab, name: str, few: FewShot | None, **found: Any
) -> Record:
    """The record of a run, however it ended. few: the shots, if they were drawn."""
    backbone = lab.backbone(task.backbone)
    settings = json.loads(json.dumps(settings_of(method)))
    own: Any = {
        "uses": method.traits.uses,
        "sums": tuple(named_sums(name, settings)) if few else (),
    }
    return Record(
        format=FORMAT,
        task=task,
        method=MethodName(
            name=name, title=method.title, source=method.source, settings=settings, **own
        ),
        backbone=BackboneName(name=backbone.name, digest=backbone.digest),
        precision=lab.machine.precision,
        key=run_key(task, method, name, lab.machine, backbone, few) if few else "",
        split_digest=split_digest(few) if few else "",
        versions=versions(),
        finished=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **found,
    )


def run_key(
    task: Task, method: Method, name: str, machine: Machine, backbone: Backbone, few: FewShot
) -> str:
    """Hash of all that a training depends on; not of where data and activations are, nor of what
    computes them."""
    model = task.backbone if is_published(task.backbone) else own_name(task.backbone)
    asked = {
        **asdict(task),
        "data": own_name(task.data),
        "backbone": model,
        "tests": [asdict(t) for t in task.asked],
    }
    parts = [
        asked,
        name,
        own := settings_of(method),
        *named_sums(name, own),
        machine.precision,
        identity_of(backbone),
    ]
    return hashlib.sha256(
        json.dumps([*parts, *digests(method, few)], sort_keys=True).encode()
    ).hexdigest()
