"""Estimate the cost of a bench before it runs, from the time that a few steps of each method
take."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import TypeAlias, TypeVar

from rmadapter.bench.plan import Plan, Progress
from rmadapter.bench.protocols import Job
from rmadapter.bench.runner import check_images, check_settings, in_order
from rmadapter.data.fewshot import half
from rmadapter.data.read import ImageSet
from rmadapter.errors import UserError
from rmadapter.runs.evaluate import evaluate
from rmadapter.runs.lab import Lab, Sets
from rmadapter.runs.run import learn
from rmadapter.support.machine import find_device, peak, shared_gpus
from rmadapter.support.terminal import bar, note
from rmadapter.training.contract import Method, NotApplicable
from rmadapter.training.shots import Callback

TRAIN_IMAGES, TEST_IMAGES = 96, 48  # images to measure on; the latter of each test set
MIN_STEPS = 4  # measured; the first is not counted

T = TypeVar("T")
Kind: TypeAlias = "tuple[str, str, tuple[tuple[str, object], ...]]"


@dataclass(frozen=True)
class Timing:
    """Seconds of a method.

    Attributes:
        frozen: Freezing one view of an image.
        fixed: Training without its steps.
        step: One step.
        first_use: Extra of a test image the first time that it is used.
        test_set: A test set.
        image: A test image.
        images: Number of images trained on, to scale by.
        batch: Number of images of a step.
        first: First block of the encoder that it adapts, as in `Fitted`.
    """

    frozen: float
    fixed: float
    step: float
    first_use: float
    test_set: float
    image: float
    images: int
    batch: int
    first: int | None


@dataclass(frozen=True)
class CostLine:
    """Runs that differ only in their seed.

    Attributes:
        data: Data set.
        method: Method.
        variant: Variant of the protocol.
        shots: Shots per class.
        runs: Number of runs.
        left: Number of runs not done yet.
        seconds: Seconds of these; None if they could not be measured.
    """

    data: str
    method: str
    variant: str
    shots: int
    runs: int
    left: int
    seconds: float | None


@dataclass(frozen=True)
class Cost:
    """The cost of a bench.

    Attributes:
        runs: Number of runs.
        left: Number of runs not done yet.
        unmeasured: How many of these could not be measured; hours, disk and memory leave them out.
        device: Device that was measured.
        devices: Number of devices that share the work.
        hours: Hours of the runs that are left.
        disk: Bytes of activations that do not fit into memory.
        memory: Bytes that a process needs, apart from a GPU's: the most while measuring, where that
            is known, and the activations that it will hold.
        gpu_memory: Bytes of a GPU's memory that a process needs: the most of its tensors while
            measuring on it; elsewhere what the process grew by meanwhile, 0 where it is not known.
        spent: Seconds that measuring took.
        lines: Runs by data set, method and shots.
        order: Runs that are left, in their order.
    """

    runs: int
    left: int
    unmeasured: int
    device: str
    devices: int
    hours: float
    disk: int
    memory: int
    gpu_memory: int
    spent: float
    lines: tuple[CostLine, ...]
    order: tuple[str, ...]


def cost(plan: Plan, processes: int = 1, progress: bool = True) -> Cost:
    """Estimate the cost of the jobs that `plan.out` does not hold yet, and write nothing.

    Raises UserError for settings, data and backbones that a bench would refuse.
    """
    started = time.monotonic()
    state = Progress(plan)
    check_settings(plan)
    state.check()
    device = find_device(plan.machine.device)
    before = peak(device)["peak_mb"] or 0.0  # the backbone, whose weights count, is loaded later
    remaining = {*state.remaining()}
    jobs = [job for job in in_order(plan.jobs) if job in remaining]
    lab = replace(plan.lab(), folder=None)  # nothing is written
    if jobs:
        check_images(plan, lab, jobs)
    timings = _measure_all(plan, jobs, lab, progress)
    seconds = _seconds(plan, jobs, lab, timings, processes)
    devices = max(1, min(processes, len(shared_gpus(plan.machine.device))))
    room = plan.machine.cache_memory * 1e9
    sizes = _sizes(jobs, lab, timings)
    most = peak(device)
    measured = most["peak_mb"] or 0.0
    # what a cache for training images holds at most, and one for test images
    held = [min(room, sum(size for size in some if size <= room)) for some in sizes]
    return Cost(
        runs=len(plan.jobs),
        left=len(jobs),
        unmeasured=len(jobs) - len(seconds),
        device=str(device),
        devices=devices,
        hours=sum(seconds.values()) / 3600 / devices,
        disk=sum(size for some in sizes for size in some if size > room),
        memory=round(1e6 * measured + sum(held)),
        gpu_memory=round(1e6 * (most["peak_gpu_mb"] or measured - before)),
        spent=time.monotonic() - started,
        lines=tuple(_lines(plan.jobs, remaining, seconds)),
        order=tuple(map(str, jobs)),
    )


def _kind(job: Job) -> Kind:
    """Runs of the same kind take equally long for the same work."""
    return job.task.data, job.method, job.values


def _measure_all(plan: Plan, jobs: Sequence[Job], lab: Lab, progress: bool) -> dict[Kind, Timing]:
    """Measure a job of each kind. Methods on the same images follow each other: what they share is
    computed, and so measured, once.

    A method that cannot be measured is left out with a note.
    """
    timings: dict[Kind, Timing] = {}
    examples: dict[Kind, Job] = {}
    for job in jobs:
        examples.setdefault(_kind(job), job)
    with bar(progress) as progress_bar:
        task = progress_bar.add_task("measuring", total=len(examples), note="")
        for kind, job in examples.items():
            progress_bar.update(task, note=f"{job.task.data} {job.method}")
            classes = len(half(lab.draw(job.task).train, job.task.classes).classes)
            alike = (other.task for other in jobs if other.task.data == job.task.data)
            most = max(one.shots or TRAIN_IMAGES for one in alike)
            shots = min(most, math.ceil(TRAIN_IMAGES / classes))
            try:
                method = plan.method(job)
                if method.traits.unlabelled:
                    raise UserError(f"{method.title} learns from all train images, not from a few")
                timings[kind] = time_method(job, method, lab, shots)
            except (UserError, NotApplicable) as error:
                note(f"{job}: cannot be measured ({error})")
            progress_bar.update(task, advance=1)
    return timings


def time_method(job: Job, method: Method, lab: Lab, shots: int) -> Timing:
    """Time a method on a few steps with a few shots and on a few test images."""
    task = replace(job.task, shots=shots)
    few = lab.draw(task)
    train = half(few.train, task.classes)
    recipe, batch = method.recipe, len(train)
    if recipe:
        batch = min(recipe.batch_size, len(train))
        epochs = math.ceil(MIN_STEPS / math.ceil(len(train) / batch))
        short = replace(recipe, epochs=epochs, iterations=0)
        method = replace(method, recipe=short)  # type: ignore[type-var]
    stamps: list[float] = []
    watch = Callback(on_step=lambda _: stamps.append(time.perf_counter()))
    cache = lab.train_cache(task)
    sets: Sets = [
        (question, _sample(images), split) for question, images, split in lab.tests(job.task)
    ]
    single: Sets = [(question, images.subset([0]), split) for question, images, split in sets]
    frozen_before = cache.seconds
    seconds, fitted = _timed(lambda: learn(method, train, task, few, lab, callbacks=(watch,)))
    frozen = cache.seconds - frozen_before
    steps = [after - before for before, after in pairwise(stamps)]
    step = statistics.median(steps) if steps else 0.0
    count = sum(len(images) for _, images, _ in sets)
    fresh, again, minimal = (
        _timed(partial(evaluate, fitted, tested, lab.test_cache(task)))[0]
        for tested in (sets, sets, single)
    )
    return Timing(
        frozen=frozen / len(train) / max(1, task.views),
        fixed=max(0.0, seconds - frozen - step * len(stamps)),
        step=step,
        first_use=max(0.0, fresh - again) / count,
        test_set=minimal / len(sets),
        image=max(0.0, again - minimal) / max(1, count - len(sets)),
        images=len(train),
        batch=batch,
        first=fitted.first,
    )


def _sample(images: ImageSet) -> ImageSet:
    return images.subset(range(0, len(images), math.ceil(len(images) / TEST_IMAGES)))


def _timed(call: Callable[[], T]) -> tuple[float, T]:
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def _seconds(
    plan: Plan, jobs: Sequence[Job], lab: Lab, timings: dict[Kind, Timing], processes: int
) -> dict[Job, float]:
    """Return the seconds of each job that could be measured. Each process freezes the test images
    of a data set once, in its first run on it, and those that were not drawn for every draw."""
    seconds: dict[Job, float] = {}
    first_uses: dict[str, dict[tuple[str, int, int, str], bool]] = {}
    for job in jobs:
        draws = first_uses.setdefault(job.task.data, {})
        sets = lab.tests(job.task)
        undrawn = any(split == "held out" for *_, split in sets)  # others in every draw
        fresh = draws.setdefault(job.images, undrawn or len(draws) < processes)
        timing = timings.get(_kind(job))
        if timing is None:
            continue
        train = half(lab.draw(job.task).train, job.task.classes)
        recipe = plan.method(job).recipe
        if recipe:
            epochs, per_epoch = recipe.length(train.labels)
            batches = epochs * per_epoch * min(recipe.batch_size, len(train)) / timing.batch
            training = timing.fixed + timing.step * batches
        else:
            training = timing.fixed * len(train) / timing.images
        tested = sum(len(images) for _, images, _ in sets)
        evaluation = timing.test_set * len(sets)
        evaluation += tested * (timing.image + fresh * timing.first_use)
        freezing = timing.frozen * len(train) * max(1, job.task.views)
        seconds[job] = freezing + training + evaluation
    return seconds


def _sizes(
    jobs: Sequence[Job], lab: Lab, timings: dict[Kind, Timing]
) -> tuple[Collection[int], Collection[int]]:
    """Return the bytes of the activations of each set of training images, and of test images."""
    trained: dict[tuple[object, ...], int] = {}
    tested: dict[tuple[object, ...], int] = {}
    for job in jobs:
        timing = timings.get(_kind(job))
        if timing and timing.first is not None:
            cache = lab.train_cache(job.task)
            train = len(half(lab.draw(job.task).train, job.task.classes)) * max(1, job.task.views)
            size = cache.bytes_of(train, timing.first)
            trained[job.images, job.task.classes, timing.first] = size
            for question, images, _ in lab.tests(job.task):
                key = question.data or job.task.data, question.classes, timing.first
                tested[key] = cache.bytes_of(len(images), timing.first)
    return trained.values(), tested.values()


def _lines(
    jobs: Sequence[Job], remaining: Collection[Job], seconds: Mapping[Job, float]
) -> list[CostLine]:
    groups: dict[tuple[str, str, str, int], list[Job]] = {}
    for job in in_order(jobs):
        groups.setdefault((job.task.data, job.method, job.variant, job.task.shots), []).append(job)
    lines = []
    for key, group in groups.items():
        left = [job for job in group if job in remaining]
        known = [seconds[job] for job in left if job in seconds]
        total = sum(known) if len(known) == len(left) else None
        lines.append(CostLine(*key, runs=len(group), left=len(left), seconds=total))
    return lines
