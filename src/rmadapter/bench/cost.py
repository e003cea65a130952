"""Estimate the cost of a bench before it runs, from the time that a few steps of each method take."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

from rmadapter.bench.done import Board
from rmadapter.bench.plan import Plan
from rmadapter.bench.pool import to_share
from rmadapter.bench.protocols import Job
from rmadapter.bench.runner import check_images, check_settings, in_order
from rmadapter.data.fewshot import half
from rmadapter.data.read import ImageSet
from rmadapter.errors import UserError
from rmadapter.runs.run import Lab, Sets, evaluate, learn
from rmadapter.support.machine import find_device
from rmadapter.support.terminal import bar, note
from rmadapter.training.callbacks import Callback
from rmadapter.training.contract import Method, NotApplicable

TRIED, ASKED = 96, 48  # training images, and images of each test set, to measure on
STEPS = 4  # at least; the first is not counted


@dataclass(frozen=True)
class Rates:
    """Seconds of a method. frozen: to freeze a view of an image. fixed: training without its steps.
    step: on `batch` images. once: extra per test image the first time it is used. asked: per test
    set. image: per test image.

    images: number trained on, to scale by. first: as in `Fitted`.
    """

    frozen: float
    fixed: float
    step: float
    once: float
    asked: float
    image: float
    images: int
    batch: int
    first: int | None


@dataclass(frozen=True)
class Line:
    """Runs that differ only in their seed. left: number not done yet. seconds: of these."""

    data: str
    method: str
    variant: str
    shots: int
    runs: int
    left: int
    seconds: float


@dataclass(frozen=True)
class Cost:
    """The cost of a bench. device: measured on. devices: how many of them share the work. disk:
    bytes of activations that do not fit into memory. order: of the runs left. spent: seconds that
    measuring took."""

    runs: int
    left: int
    device: str
    devices: int
    hours: float
    disk: int
    spent: float
    lines: tuple[Line, ...]
    order: tuple[str, ...]


def cost(plan: Plan, processes: int = 1, progress: bool = True) -> Cost:
    """Estimate the cost of the jobs that `plan.out` does not hold yet, and write nothing.

    Raises UserError for settings, data and backbones that a bench would refuse.
    """
    started, board = time.monotonic(), Board(plan)
    check_settings(plan)
    board.check()
    left = {*board.left()}
    jobs = [job for job in in_order(plan.jobs) if job in left]
    lab = Lab(
        plan.machine, plan.root, keep=True, progress=False, outside=plan.outside, crops=plan.crops
    )
    if jobs:
        check_images(plan, lab, jobs)
    rates = _measured(plan, jobs, lab, progress)
    seconds = _seconds(plan, jobs, lab, rates, processes)
    devices = max(1, min(processes, len(to_share(plan.machine.device))))
    return Cost(
        len(plan.jobs), len(jobs), str(find_device(plan.machine.device)), devices,
        hours=sum(seconds.values()) / 3600 / devices,
        disk=_disk(jobs, lab, rates),
        spent=time.monotonic() - started,
        lines=tuple(_lines(plan.jobs, seconds)),
        order=tuple(map(str, jobs)),
    )  # fmt: skip


def _key(job: Job) -> tuple[Any, ...]:
    """Runs with the same key take equally long for the same work."""
    return job.task.data, job.method, job.values


def _measured(
    plan: Plan, jobs: Sequence[Job], lab: Lab, progress: bool
) -> dict[tuple[Any, ...], Rates]:
    """Rates by key. Methods on the same images follow each other: what they share is computed, and
    so measured, once.

    A method that cannot be measured is left out with a note.
    """
    found: dict[tuple[Any, ...], Rates] = {}
    kinds: dict[tuple[Any, ...], Job] = {}
    for job in jobs:
        kinds.setdefault(_key(job), job)
    most = {
        job.task.data: max(j.task.shots or TRIED for j in jobs if j.task.data == job.task.data)
        for job in jobs
    }
    with bar(progress) as display:
        task = display.add_task("measuring", total=len(kinds), note="")
        for key, job in kinds.items():
            display.update(task, note=f"{job.task.data} {job.method}")
            classes = len(half(lab.draw(job.task).train, job.task.classes).classes)
            shots = min(most[job.task.data], math.ceil(TRIED / classes))
            try:
                method = plan.method(job)
                if method.traits.unlabelled:
                    raise UserError(
                        f"{method.title} learns from all train images, and a few of them tell nothing"
                    )
                found[key] = measure(job, method, lab, shots)
            except (UserError, NotApplicable) as error:
                note(f"{job}: cannot be measured ({error})")
            display.update(task, advance=1)
    return found


def measure(job: Job, method: Method, lab: Lab, shots: int) -> Rates:
    """Measure rates on a few steps with a few shots and on a few test images."""
    task, stamps = replace(job.task, shots=shots), []
    train, recipe = half(lab.draw(task).train, task.classes), method.recipe
    batch = min(recipe.batch_size, len(train)) if recipe else len(train)
    if recipe:
        short = replace(
            recipe, epochs=math.ceil(STEPS / math.ceil(len(train) / batch)), iterations=0
        )
        method = replace(method, recipe=short)  # type: ignore[type-var]
    lab.callbacks = (Callback(on_step=lambda _: stamps.append(time.perf_counter())),)
    cache, sets = (
        lab.train_cache(task),
        [(q, _some(images), tested) for q, images, tested in lab.tests(job.task)],
    )
    frozen = cache.seconds
    seconds, fitted = _timed(lambda: learn(method, train, task, lab))
    frozen = cache.seconds - frozen
    steps = [after - before for before, after in pairwise(stamps)]
    step = statistics.median(steps) if steps else 0.0
    count = sum(len(images) for _, images, _ in sets)
    single: Sets = [(q, images.subset([0]), split) for q, images, split in sets]
    asks = [partial(evaluate, fitted, some, lab.test_cache(task)) for some in (sets, sets, single)]
    fresh, again, alone = (_timed(ask)[0] for ask in asks)
    return Rates(
        frozen=frozen / len(train) / max(1, task.views),
        fixed=max(0.0, seconds - frozen - step * len(stamps)),
        step=step,
        once=max(0.0, fresh - again) / count,
        asked=alone / len(sets),
        image=max(0.0, again - alone) / max(1, count - len(sets)),
        images=len(train), batch=batch, first=fitted.first,
    )  # fmt: skip


def _some(images: ImageSet) -> ImageSet:
    return images.subset(range(0, len(images), math.ceil(len(images) / ASKED)))


def _timed(do: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    found = do()
    return time.perf_counter() - started, found


def _seconds(
    plan: Plan, jobs: Sequence[Job], lab: Lab, rates: dict[tuple[Any, ...], Rates], processes: int
) -> dict[Job, float]:
    """Seconds of each job. Each process freezes the test images of a data set once, in its first
    run on it, and those that were not drawn for every draw."""
    found: dict[Job, float] = {}
    groups: dict[str, dict[Any, bool]] = {}
    for job in jobs:
        here = groups.setdefault(job.task.data, {})
        sets = lab.tests(job.task)
        undrawn = any(split == "held out" for *_, split in sets)  # others in every draw
        fresh = here.setdefault(job.images, undrawn or len(here) < processes)
        rate = rates.get(_key(job))
        if rate is None:
            found[job] = 0.0
            continue
        train, recipe = (
            half(lab.draw(job.task).train, job.task.classes),
            plan.method(job).recipe,
        )
        scale = len(train) / rate.images
        tested = sum(len(images) for _, images, _ in sets)
        if recipe:
            epochs, per_epoch = recipe.length(train.labels)
            trained = (
                rate.fixed
                + epochs * per_epoch * rate.step * min(recipe.batch_size, len(train)) / rate.batch
            )
        else:
            trained = rate.fixed * scale
        asked = rate.asked * len(sets) + tested * (rate.image + fresh * rate.once)
        found[job] = rate.frozen * len(train) * max(1, job.task.views) + trained + asked
    return found


def _disk(jobs: Sequence[Job], lab: Lab, rates: dict[tuple[Any, ...], Rates]) -> int:
    """Total bytes of those train and test activations that do not fit into the memory for them."""
    sizes: dict[Any, int] = {}
    for job in jobs:
        rate = rates.get(_key(job))
        if rate and rate.first is not None:
            cache = lab.train_cache(job.task)
            train = len(half(lab.draw(job.task).train, job.task.classes)) * max(1, job.task.views)
            sizes[job.images, job.task.classes, rate.first] = cache.bytes_of(train, rate.first)
            for question, images, _ in lab.tests(job.task):
                key = question.data or job.task.data, question.classes, rate.first
                sizes[key] = cache.bytes_of(len(images), rate.first)
    return sum(size for size in sizes.values() if size > lab.machine.cache_memory * 1e9)


def _lines(jobs: Sequence[Job], seconds: dict[Job, float]) -> list[Line]:
    groups: dict[tuple[str, str, str, int], list[Job]] = {}
    for job in in_order(jobs):
        groups.setdefault((job.task.data, job.method, job.variant, job.task.shots), []).append(job)
    return [
        Line(
            *key,
            len(group),
            sum(job in seconds for job in group),
            sum(seconds.get(job, 0.0) for job in group),
        )
        for key, group in groups.items()
    ]
