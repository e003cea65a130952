"""From a task to its record: draw the shots, fit the method, and only then look at test images."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from typing import Any

from rmadapter.artifacts.predictions import Evaluation
from rmadapter.artifacts.record import FORMAT, BackboneName, MethodName, Record
from rmadapter.backbones import Backbone
from rmadapter.backbones.load import identity_of, is_published
from rmadapter.data.fewshot import FewShot, half, order_digest, split_digest
from rmadapter.data.read import ImageSet
from rmadapter.errors import UserError, quoted
from rmadapter.methods import METHODS, check_text, published_settings
from rmadapter.methods.uses import named_sums
from rmadapter.runs.evaluate import evaluate
from rmadapter.runs.lab import Lab, Sets
from rmadapter.settings import Machine, check_range, settings_of
from rmadapter.support.files import own_name
from rmadapter.support.machine import all_seeded, describe, peak, reset_peak, versions
from rmadapter.task import SHARED_GROUPS, Task
from rmadapter.training.cache import Cache
from rmadapter.training.contract import Fitted, Method, Shots
from rmadapter.training.shots import Callback, Unfinished


@dataclass(frozen=True, eq=False)
class Outcome:
    """A finished run: its record, its model, and its answers on every set."""

    record: Record
    fitted: Fitted
    evaluations: list[Evaluation]

    def with_facts(self, **facts: object) -> Outcome:
        """Return a copy with some fields of the record replaced."""
        return replace(self, record=self.record.model_copy(update=facts))


def run_task(
    task: Task,
    method: Method,
    lab: Lab,
    name: str = "",
    unfinished: Unfinished | None = None,
    baselines: Mapping[str, Method] | None = None,
    temperature: float | None = None,
    callbacks: Sequence[Callback] = (),
) -> Outcome:
    """Run a task with a method: draw the shots, fit, and only then look at test images.

    Args:
        task: What to learn from, and what to test.
        method: Method that is fitted to the shots.
        lab: Lab that holds the data and the backbone.
        name: Name of the method, which `load_method` accepts.
        unfinished: File to save progress in.
        baselines: Other methods to fit to the same shots; the evaluations hold their answers, too.
        temperature: Divisor of the logits, as in `Fitted`.
        callbacks: Functions that follow the training of the method, but not of baselines.

    Returns:
        The `record`, the `fitted` method, and the `evaluations`, which hold its answers on every
        set.

    Raises:
        UserError: The data, the settings or the shots do not fit together.
        NotApplicable: The method cannot answer the first question.

    Example:
        >>> from rmadapter import Lab, Task, load_method, run_task
        >>> task = Task("colors", backbone="tiny", shots=4)
        >>> outcome = run_task(task, load_method("ridge"), Lab(progress=False), "ridge")
        >>> outcome.record.score("all").images
        16
    """
    # a method made in Python was not checked yet
    check_range(settings_of(method), f"{name}: " if name else "")
    few = lab.draw(task)
    sets, train, cache = lab.tests(task, few), half(few.train, task.classes), lab.train_cache(task)
    reset_peak(cache.device)
    frozen_before, started = cache.seconds, time.perf_counter()
    watch = (*lab.callbacks, *callbacks)
    fitted = learn(method, train, task, few, lab, unfinished, callbacks=watch)
    trained, frozen = time.perf_counter() - started, cache.seconds - frozen_before
    memory = peak(cache.device)
    fitted = replace(fitted, temperature=temperature or 1.0)
    fitted = fitted.fitted_to(cache.features(train)[0])
    others, spent = _fit_baselines(baselines or {}, train, task, few, lab)
    resumed = time.perf_counter()
    evaluations, scores = evaluate(fitted, sets, lab.test_cache(task), others, task.seed)
    evaluated = time.perf_counter() - resumed
    seconds = {
        "frozen": frozen,
        "train": trained - frozen,
        "evaluate": evaluated,
        "total": trained + evaluated,
        **spent,
    }
    record = describe_run(
        task,
        method,
        lab,
        name,
        few,
        scores=scores,
        reason=next((score.reason for score in scores if score.reason), ""),
        parameters=fitted.parameters,
        temperature=temperature,
        seconds={what: round(value, 3) for what, value in seconds.items()},
        step_seconds=fitted.trained.step_seconds,
        **memory,
        machine=describe(cache.device),
        notes=_notes(task, few, lab, learnt_from(method, train, task, few, lab), sets),
    )
    return Outcome(record, fitted, evaluations)


def _fit_baselines(
    baselines: Mapping[str, Method], train: ImageSet, task: Task, few: FewShot, lab: Lab
) -> tuple[dict[str, Fitted], dict[str, float]]:
    """Fit other methods; return them and the seconds that each took, without those of frozen
    activations, by name."""
    fitted: dict[str, Fitted] = {}
    seconds: dict[str, float] = {}
    plain = task.augmentation == "none"
    cache = lab.train_cache(task) if plain else lab.test_cache(task)
    for name, method in baselines.items():
        frozen, started = cache.seconds, time.perf_counter()
        fitted[name] = fit_baseline(method, train, task, few, lab)
        seconds[name] = time.perf_counter() - started - (cache.seconds - frozen)
    return fitted, seconds


def _notes(task: Task, few: FewShot, lab: Lab, learnt: ImageSet, sets: Sets) -> tuple[str, ...]:
    """Return what a reader of the record must know about its images."""
    splits = lab.splits(task.data)
    elsewhere = splits.get("test") or all(question.data for question in task.questions)
    return (
        *few.short,
        *(() if elsewhere else few.notes),
        *_shared_groups(learnt, sets),
        *dict.fromkeys(images.ignored for images in splits.values() if images.ignored),
        *(note for images in splits.values() for note in images.skipped),
    )


def _shared_groups(train: ImageSet, sets: Sets) -> list[str]:
    """Describe each test split of the same data that shares groups with the training images."""
    notes = []
    for question, images, _ in sets:
        rows = [] if question.data else images.sharing_groups(train)
        names = list(dict.fromkeys(images.groups[i] for i in rows))
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            notes.append(
                f"{SHARED_GROUPS} {quoted(names[0])}{more}: {len(rows)} of {len(images)} test "
                f"images ({question.name} classes) inflate the accuracy; a judgement leaves them "
                "out"
            )
    return notes


def learn(
    method: Method,
    images: ImageSet,
    task: Task,
    few: FewShot,
    lab: Lab,
    unfinished: Unfinished | None = None,
    cache: Cache | None = None,
    callbacks: Sequence[Callback] | None = None,
) -> Fitted:
    """Fit a method to some of the shots, of all classes of a task.

    Args:
        method: The method.
        images: Shots to fit it to.
        task: The task.
        few: The draw.
        lab: Lab that holds the data and the backbone.
        unfinished: File to save progress in.
        cache, callbacks: Used instead of those of the task and the lab.

    Raises:
        UserError: The images have weights that the method cannot use, or it needs a text encoder
            that the backbone lacks.
    """
    check_text(method, lab.backbone(task.backbone))
    val = None if few.val is None else _detached(half(few.val, task.classes))
    shots = Shots(
        _detached(images),
        cache or lab.train_cache(task),
        task.templates,
        task.seed,
        val,
        unfinished,
        lab.progress,
        lab.callbacks if callbacks is None else callbacks,
        lab.unlabelled(task, few, images) if method.traits.unlabelled else None,
        lab.next_training(),
    )
    if lab.team:
        whole = half(few.train, task.classes)
        lab.team.announce(method, images, whole, unfinished.key if unfinished else "")
    with all_seeded(task.seed):
        fitted = method.fit(lab.backbone(task.backbone), shots)
    if shots.weights is not None and not fitted.trained.weighed:
        raise UserError(
            f"{method.title} cannot weight images: leave out sample_weight and class_weight"
        )
    return fitted


def _detached(images: ImageSet) -> ImageSet:
    """Return images without the folder they came from, which also holds the test images."""
    return replace(images, root=None, skipped=(), ignored="")


def fit_baseline(method: Method, images: ImageSet, task: Task, few: FewShot, lab: Lab) -> Fitted:
    """Like `learn`, but never augmented."""
    cache = None if task.augmentation == "none" else lab.test_cache(task)
    return learn(method, images, task, few, lab, cache=cache)


def learnt_from(method: Method, images: ImageSet, task: Task, few: FewShot, lab: Lab) -> ImageSet:
    """Return all images that a method learns from, with labels or without."""
    return lab.unlabelled(task, few, images) if method.traits.unlabelled else images


def describe_run(
    task: Task, method: Method, lab: Lab, name: str, few: FewShot | None, **facts: Any
) -> Record:
    """Build the record of a finished or failed run.

    Args:
        task: The task of the run.
        method: Its method.
        lab: Lab that holds the backbone.
        name: Name of the method.
        few: The shots, if they were drawn.
        **facts: Other fields of the record.
    """
    backbone = lab.backbone(task.backbone)
    settings = json.loads(json.dumps(settings_of(method)))
    ours = name in METHODS  # whose code says the rest
    described = MethodName(
        name=name,
        title=method.title,
        source=method.source,
        settings=settings,
        uses=None if ours else method.traits.uses,
        sums=tuple(named_sums(name, settings)) if few else (),
        published={} if ours else published_settings(name),
    )
    return Record(
        format=FORMAT,
        task=task,
        method=described,
        backbone=BackboneName(
            name=backbone.name, digest=backbone.digest, revision=backbone.revision
        ),
        precision=lab.machine.precision,
        key=run_key(task, method, name, lab.machine, backbone, few) if few else "",
        split_digest=split_digest(few) if few else "",
        versions=versions(),
        finished=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **facts,
    )


def run_key(
    task: Task, method: Method, name: str, machine: Machine, backbone: Backbone, few: FewShot
) -> str:
    """Hash everything that affects the result; paths, caches and device do not count."""
    settings = settings_of(method)
    question = {
        **task.values(),
        "data": own_name(task.data),
        "backbone": task.backbone if is_published(task.backbone) else own_name(task.backbone),
        "tests": [asdict(test) for test in task.questions],
    }
    sums = named_sums(name, settings)
    parts = [question, name, settings, *sums, machine.precision, identity_of(backbone)]
    text = json.dumps([*parts, *image_digests(method, few)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def image_digests(method: Method, few: FewShot) -> list[str]:
    """Return SHA-256 digests, dependent on order, of the images in a draw that a training depends
    on."""
    drawn = order_digest(few)
    return [drawn, few.heldout.digest] if method.traits.unlabelled else [drawn]
