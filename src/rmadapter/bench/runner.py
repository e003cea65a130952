"""Do each run of an experiment once, whatever is killed or works in parallel, and write it as one
line of JSON."""

from __future__ import annotations

import contextlib
import multiprocessing
import shutil
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeAlias

from rmadapter.artifacts.record import Record, read_record
from rmadapter.artifacts.run_folder import RunFolder
from rmadapter.backbones import Backbone
from rmadapter.bench.plan import CHANGED, CHOOSE, Plan, Progress, finished_records, mark_copied
from rmadapter.bench.protocols import TUNED, Job
from rmadapter.data.fewshot import split_digest
from rmadapter.errors import UserError
from rmadapter.methods import traits_of
from rmadapter.methods.uses import named_sums
from rmadapter.runs.lab import Lab
from rmadapter.runs.run import describe_run, run_key, run_task
from rmadapter.settings import settings_of
from rmadapter.support.escape import escape
from rmadapter.support.files import parts
from rmadapter.support.locks import hold, shared
from rmadapter.support.machine import make_pool, shared_gpus, uninterrupted
from rmadapter.support.terminal import bar
from rmadapter.training.contract import Method, NotApplicable

PAUSE = 0.5  # seconds between two looks at what other processes have done


# shows what is done, with a note on the next run, and the job that this process has just done
Display: TypeAlias = "Callable[[str, Job | None], None]"
Engine: TypeAlias = "Callable[[Plan, Progress, Lab, int, Display], None]"


def run_all(
    plan: Plan, processes: int = 1, progress: bool = True, engine: Engine | None = None
) -> list[Record]:
    """Do the jobs that `plan.out` does not hold yet, and return the records of all in the order of
    the plan.

    Several calls may work on one folder at the same time; each returns when all of its jobs are
    done, by any of them.

    Args:
        plan: The jobs.
        processes: Number of processes.
        progress: Whether to show how far they are.
        engine: Does the remaining jobs instead of processes of this machine; it needs the folder
            to itself.

    Raises:
        UserError: There are settings that do not exist, or records in the folder that were made
            with other settings; before anything starts.
    """
    lab, state = plan.lab(), Progress(plan)
    remaining = check_plan(plan, lab, state)
    if remaining or _leftovers(plan):  # the folder of a finished bench may be read-only
        with shared(
            plan.out,
            first=lambda: _remove(_partial_files(plan)),
            last=lambda: _remove(_leftovers(plan)),
            alone=engine is not None,
        ):
            if remaining:
                with _display(plan, state, engine is not None or processes > 1, progress) as show:
                    (engine or _work_here)(plan, state, lab, processes, show)
        state.check()  # also the records that other processes wrote meanwhile
    return [read_record(plan.out / job.path) for job in plan.jobs]


def _leftovers(plan: Plan) -> list[Path]:
    """Return existing files that only unfinished runs need or that killed ones left."""
    locks = [*(_lock(plan, job) for job in plan.jobs), *plan.out.glob(".*lock")]
    paths = [*locks, RunFolder(plan.out).activations]
    return [path for path in paths if path.exists()] + _partial_files(plan)


def _partial_files(plan: Plan) -> list[Path]:
    folders = {(plan.out / job.path).parent for job in plan.jobs}
    return parts(*folders, *RunFolder(plan.out).activations.glob("*"))


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


@contextlib.contextmanager
def _display(plan: Plan, state: Progress, all_records: bool, progress: bool) -> Iterator[Display]:
    """Show a progress bar for the block, and a line for each run.

    Args:
        plan: The bench.
        state: What is done.
        all_records: Whether to log the runs that other processes do, too.
        progress: Whether to show anything.
    """
    with bar(progress) as progress_bar:  # whose console is silent without progress
        done = len(list(state.new_records()))
        task = progress_bar.add_task("runs", total=len(plan.jobs), completed=done, note="")

        def show(note: str, own: Job | None) -> None:
            for job, record in state.new_records():
                if all_records or job == own:
                    text = escape(describe_record(job, record))
                    progress_bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
                progress_bar.advance(task)
            progress_bar.update(task, note=note)

        yield show
        show("", None)


def check_plan(plan: Plan, lab: Lab, state: Progress) -> list[Job]:
    """Return the jobs that are left, and write nothing. Raises UserError for settings, data,
    backbones and records that a bench refuses before anything starts."""
    _check_settings(plan)
    state.check()
    remaining = state.remaining()
    if remaining:
        _check_images(plan, lab, remaining)
    return remaining


def _check_settings(plan: Plan) -> None:
    """Raise UserError for two runs with one path, for settings of methods not in use and for
    invalid settings."""
    paths = Counter(job.path for job in plan.jobs)
    double = next((path for path, count in paths.items() if count > 1), None)
    if double:
        raise UserError(
            f"two of these runs would be written to {double}: run them with different --out"
        )
    methods = sorted({job.method for job in plan.jobs})
    for method in plan.values:
        if method not in methods:
            in_use = ", ".join(methods)
            raise UserError(
                f"--set {method}.*: no run uses the method {method!r}; in use are {in_use}"
            )
    for job in {(job.method, job.values): job for job in plan.jobs}.values():
        plan.method(job)


def _check_images(plan: Plan, lab: Lab, remaining: Sequence[Job]) -> None:
    """Raise UserError for a missing data set or backbone, and for finished records that were made
    with other ones."""
    for job in remaining:
        for name in job.datasets:
            lab.splits(name)
        if not lab.tests(job.task):
            raise UserError(
                f"{job.task.data}: there is no test split, and no training image is left over: "
                "draw fewer shots"
            )
    lab.backbone(remaining[0].task.backbone)  # raises for one that cannot be had
    unfinished = {*remaining}
    drawn = {job.images for job in remaining}
    with_test = {job.task.data for job in remaining if lab.splits(job.task.data).get("test")}
    for job in plan.jobs:
        record = None if job in unfinished else read_record(plan.out / job.path)
        if record is None or record.status != "finished":
            continue
        again = job.images in drawn  # so that its images are read anyway
        tested = again or job.task.data in with_test
        for changed in _changes(plan, lab, job, record, again, tested):
            raise UserError(f"{plan.out / job.path} {changed}: {CHOOSE}")


def _changes(
    plan: Plan, lab: Lab, job: Job, record: Record, drawn: bool, tested: bool
) -> Iterator[str]:
    """Yield in what a finished record differs from the current data and backbone.

    Args:
        plan: The bench.
        lab: Its data and backbone.
        job: Job of the record.
        record: The record.
        drawn: Whether to compare the training images.
        tested: Whether to compare the test images: it may be averaged with new runs.
    """
    backbone, data = lab.backbone(job.task.backbone), job.task.data
    if record.backbone.digest != backbone.digest:
        yield f"used different weights of {backbone.name} from the current ones"
    if drawn and split_digest(lab.draw(job.task)) != record.split_digest:
        yield f"used different images of {data} from the current ones"
    for name in record.other_images(lab.tests(job.task)) if tested else ():
        yield f"was tested on different {name} images from the current ones"
    method = plan.method(job)
    reads_more = method.traits.unlabelled or named_sums(job.method, settings_of(method))
    if reads_more and not job.trials:  # than the shots
        few = lab.draw(job.task)
        if record.key != run_key(job.task, method, job.method, plan.machine, backbone, few):
            yield CHANGED


def describe_record(job: Job, record: Record) -> str:
    """Summarise a run in one line, for the log."""
    metrics = " ".join(f"{name} {value:.2f}" for name, value in record.metrics.items())
    seconds = f" ({record.seconds['total']:.0f} s)" if "total" in record.seconds else ""
    return f"{job}: {record.status} {metrics or record.reason}{seconds}"


def _work_here(plan: Plan, state: Progress, lab: Lab, processes: int, show: Display) -> None:
    """Work in processes of this machine."""
    if processes == 1:
        work(plan, state, lab=lab, show=show)
    else:
        _work_in_pool(plan, state, processes, show)


def _work_in_pool(plan: Plan, state: Progress, processes: int, show: Display) -> None:
    """Work in several processes. Each starts at another job, so that they read different data sets
    while they can."""
    earlier = {*multiprocessing.active_children()}
    with make_pool(shared_gpus(plan.machine.device), processes) as pool:
        try:
            starts = (i * len(plan.jobs) // processes for i in range(processes))
            with uninterrupted():
                waiting = {pool.submit(work, plan, state, start) for start in starts}
            while waiting:
                done, waiting = wait(waiting, timeout=PAUSE)
                show("", None)
                for future in done:
                    future.result()
        except BrokenProcessPool:
            raise UserError(
                "a worker process died, perhaps out of memory: "
                "start again with fewer --jobs or less cache_memory"
            ) from None
        except BaseException:
            # otherwise leaving the pool would wait until they have done all jobs
            for process in {*multiprocessing.active_children()} - earlier:
                process.terminate()
            raise


def _show_nothing(note: str, own: Job | None) -> None:
    pass


class _Taken(UserError):
    """Another process is doing a job."""


def work(
    plan: Plan,
    state: Progress,
    start: int = 0,
    lab: Lab | None = None,
    show: Display = _show_nothing,
) -> None:
    """Do jobs that no other process is doing, until all are settled. The jobs of a process that
    dies are taken over.

    Args:
        plan: The bench.
        state: What is done.
        start: Number of the job to begin with.
        lab: Data and backbone; by default as the plan names them.
        show: Shows progress.
    """
    lab = lab or plan.lab()
    finished = finished_records(plan.out)
    remaining = state.remaining()
    if remaining:
        methods = {(job.method, job.values): plan.method(job) for job in remaining}
        task = remaining[0].task
        lab.test_cache(task, blocks_read(methods.values(), lab.backbone(task.backbone)))
    turn = {job: i for i, job in enumerate(in_order(plan.jobs))}
    while remaining := sorted(state.remaining(), key=lambda job: (turn[job] - start) % len(turn)):
        all_taken = True
        for job in remaining:
            failed = f"{plan.out / job.path}: cannot be written (%s): choose another --out"
            with contextlib.suppress(_Taken), hold(_lock(plan, job), 0, _Taken(f"{job}"), failed):
                all_taken = False
                if not state.settled(job):  # another process may have done it before our lock
                    show(str(job), None)
                    make_record(job, plan, lab, finished).save(plan.out / job.path)
                    show("", job)
        if all_taken:
            show("waiting for another process", None)
            time.sleep(PAUSE)


def blocks_read(methods: Iterable[Method], backbone: Backbone) -> set[int]:
    """Return the blocks of the image encoder at which methods start, if they say so (`starts_at`):
    one pass over the images can then give the inputs of all."""
    blocks: set[int | None] = set()
    for method in methods:
        # a method that does not work on this backbone raises in `fit`
        with contextlib.suppress(Exception):
            blocks.add(method.starts_at(backbone))
    return {block for block in blocks if block is not None}


def in_order(jobs: Sequence[Job]) -> list[Job]:
    """Sort jobs so that those on the same images are together, and those that need only features
    come last: methods on tokens compute features anyway."""
    first: dict[tuple[str, int, int, str], int] = {}
    for job in jobs:
        first.setdefault(job.images, len(first))
    return sorted(
        jobs, key=lambda job: (first[job.images], traits_of(job.method).reads != "tokens")
    )


def _lock(plan: Plan, job: Job) -> Path:
    return (plan.out / job.path).with_suffix(".lock")


def make_record(job: Job, plan: Plan, lab: Lab, finished: dict[str, Record]) -> Record:
    """Do one job and return its record, also if it fails.

    A training that another protocol has done already, such as an ablation's row that is RMAdapter
    itself, is not repeated; its record says where the figures are from.

    Args:
        job: The job.
        plan: The bench.
        lab: Data and backbone.
        finished: Records by key, as from `finished_records`; the new one is added.
    """
    task = job.task
    method = plan.method(job)
    few = None
    search = ""
    spent = 0.0
    backbone = lab.backbone(task.backbone)  # without a backbone there is nothing to record
    try:
        drawn = lab.draw(task)
        if job.trials and plan.tune:
            method, judged_by, spent = plan.tune(method, job, lab)
            search = f"{TUNED} {job.trials} trials on {judged_by}"
        key = run_key(task, method, job.method, plan.machine, backbone, drawn)
        few = drawn
        old = finished.get(key)  # of another protocol
        # folders of the same name may share only their training images
        same = old and old.task.data == task.data and not old.other_images(lab.tests(task))
        record = old if old and same else run_task(task, method, lab, job.method).record
    except NotApplicable as error:
        record = describe_run(
            task, method, lab, job.method, few, status="not-applicable", reason=str(error)
        )
    except Exception as error:
        reason = " ".join(str(error).split())
        if not isinstance(error, UserError):  # a bug here or in an outside method, or no memory
            print(escape(traceback.format_exc()), end="", file=sys.stderr)
            reason = f"{type(error).__name__}: {error}"
        record = describe_run(task, method, lab, job.method, few, status="failed", reason=reason)
    facts = {"protocol": job.protocol, "variant": job.variant, "axis": job.axis, "value": job.value}
    record = with_search(record.model_copy(update={**facts, "crops": plan.crops}), search, spent)
    if record.status == "finished":
        finished.setdefault(record.key, mark_copied(record, job.path))
    return record


def with_search(record: Record, search: str, spent: float) -> Record:
    """Return the record with the search of this job, in place of that of the run it may be copied
    from.

    Args:
        record: The record.
        search: A sentence about the search; "" for none.
        spent: Its seconds.
    """
    seconds = dict(record.seconds)
    notes = [note for note in record.notes if not note.startswith(TUNED)]
    before = seconds.pop("search", 0.0)
    if search and "total" in seconds:
        seconds |= {"search": round(spent, 3), "total": round(seconds["total"] - before + spent, 3)}
    elif before:
        seconds["total"] -= before
    notes += [search] if search else []
    return record.model_copy(update={"seconds": seconds, "notes": tuple(notes)})
