"""Do each run of an experiment once, whatever is killed or works in parallel, and write it as one
line of JSON."""

from __future__ import annotations

import contextlib
import multiprocessing
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from rmadapter.artifacts.record import Record, read_record
from rmadapter.bench.done import CHANGED, CHOOSE, Board, answers, copied
from rmadapter.bench.plan import Plan
from rmadapter.bench.pool import pool_on, to_share
from rmadapter.bench.protocols import Job
from rmadapter.errors import UserError
from rmadapter.methods.uses import TUNED, named_sums
from rmadapter.settings import settings_of
from rmadapter.support.files import ACTIVATIONS, parts
from rmadapter.support.locks import claim, shared
from rmadapter.support.terminal import bar, escape

PAUSE = 0.5  # seconds between two looks at what other processes have done


def run_all(
    plan: Plan, processes: int = 1, progress: bool = True, engine: Callable[..., None] | None = None
) -> list[Record]:
    """Do the jobs that `plan.out` does not hold yet, and return the records of all, in the order
    given.

    Any number of calls may work on one folder at the same time; each returns when all of its jobs
    are done, by any of them. engine: does the jobs that are left, called with (plan, board, lab,
    processes, look), instead of processes of this machine; it needs the folder to itself. Raises
    UserError, before anything starts, for settings that do not exist and for records in the folder
    that were made with other settings.
    """
    check_settings(plan)
    lab, board = plan.lab(), Board(plan)
    board.check()
    if left := board.left():
        check_images(plan, lab, left)
    if left or _leftovers(plan):  # the folder of a finished bench may be read-only
        first, last = lambda: _remove(_parts(plan)), lambda: _remove(_leftovers(plan))
        with shared(plan.out, first, last, alone=engine is not None):
            if left:
                _work_through(plan, board, lab, processes, progress, engine)
            _remove(
                _locks(plan)
            )  # no longer needed, even if another process holds one for a moment
        board.check()  # what others did meanwhile
    return [read_record(plan.out / job.path) for job in plan.jobs]


def _leftovers(plan: Plan) -> list[Path]:
    """Files that only unfinished runs need, and those that killed ones left."""
    found = [*_locks(plan), *plan.out.glob(".*lock"), plan.out / ACTIVATIONS]
    return [path for path in found if path.exists()] + _parts(plan)


def _locks(plan: Plan) -> list[Path]:
    return [_lock(plan, job) for job in plan.jobs]


def _parts(plan: Plan) -> list[Path]:
    return parts(
        *{(plan.out / job.path).parent for job in plan.jobs}, *plan.out.glob(f"{ACTIVATIONS}/*")
    )


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


@contextlib.contextmanager
def _look(
    plan: Plan, board: Board, processes: int, progress: bool
) -> Iterator[Callable[..., None]]:
    """A function that shows progress. It takes a note on the next run, and the record of a run this
    process did."""
    with bar(progress) as display:
        task = display.add_task("runs", total=len(plan.jobs), note="")
        done = len(list(board.news()))

        def look(note: str | None = None, did: Record | None = None) -> None:
            nonlocal done
            news = list(board.news())
            done += len(news)
            for record in (news if processes > 1 else [did] if did else []) if progress else ():
                display.console.print(
                    escape(line(record)), markup=False, highlight=False, soft_wrap=True
                )
            display.update(task, completed=done, **({} if note is None else {"note": note}))

        yield look
        look("")


def check_settings(plan: Plan) -> None:
    """Raise UserError for two runs with one path, for settings of methods not in use and for
    invalid settings."""
    paths = [job.path for job in plan.jobs]
    if len(set(paths)) < len(paths):
        double = next(path for path in paths if paths.count(path) > 1)
        raise UserError(
            f"two of these runs would be written to {double}: run them with different --out"
        )
    methods = sorted({job.method for job in plan.jobs})
    for method in plan.values:
        if method not in methods:
            raise UserError(
                f"--set {method}.*: no run uses the method {method!r}; in use are {', '.join(methods)}"
            )
    for job in {(job.method, job.values): job for job in plan.jobs}.values():
        plan.method(job)


def check_images(plan: Plan, lab: Any, left: Sequence[Job]) -> None:
    """Raise UserError for a missing data set or backbone, and for answers that were made with other
    ones."""
    from rmadapter.data.fewshot import has_digest
    from rmadapter.runs.run import run_key

    for job in left:
        for name in (job.task.data, *(test.data for test in job.task.tests if test.data)):
            lab.splits(name)
        if not lab.tests(job.task):
            raise UserError(
                f"{job.task.data}: there is no test split, and no training image is left over: draw fewer shots"
            )
    backbone, drawn = lab.backbone(left[0].task.backbone), {job.images for job in left}
    again = {
        job.task.data for job in left if lab.splits(job.task.data).get("test")
    }  # may be averaged with old runs
    for job in plan.jobs:
        path = plan.out / job.path
        if job not in left and (old := read_record(path)).status == "finished":
            if old.backbone.digest != backbone.digest:
                raise UserError(
                    f"{path} used different weights of {backbone.name} from the current ones: {CHOOSE}"
                )
            if job.images in drawn and not has_digest(lab.draw(job.task), old.split_digest):
                raise UserError(
                    f"{path} used different images of {job.task.data} from the current ones: {CHOOSE}"
                )
            if (job.images in drawn or job.task.data in again) and (
                others := old.other_images(lab.tests(job.task))
            ):
                raise UserError(
                    f"{path} was tested on different {others[0]} images from the current ones: {CHOOSE}"
                )
            method = plan.method(job)
            if not job.trials and (
                method.traits.unlabelled or named_sums(job.method, settings_of(method))
            ):
                few = lab.draw(job.task)
                if old.key != run_key(job.task, method, job.method, plan.machine, backbone, few):
                    raise UserError(CHANGED.format(path))


def line(record: Record) -> str:
    """What a run found, for the log."""
    found = (
        " ".join(f"{name} {value:.2f}" for name, value in record.metrics.items()) or record.reason
    )
    names = [record.protocol, record.task.data, record.method.name, *filter(None, [record.variant])]
    seconds = f" ({record.seconds['total']:.0f} s)" if "total" in record.seconds else ""
    where = f"{record.task.shots} shots, seed {record.task.seed}"
    return f"{' | '.join(names)} | {where}: {record.status} {found}{seconds}"


def _work_through(
    plan: Plan, board: Board, lab: Any, processes: int, progress: bool, engine: Any
) -> None:
    with _look(plan, board, 2 if engine else processes, progress) as look:
        if engine:
            engine(plan, board, lab, processes, look)
        elif processes == 1:
            work(plan, board, lab=lab, look=look)
        else:
            _work_together(plan, board, processes, look)


def _work_together(plan: Plan, board: Board, processes: int, look: Callable[[], Any]) -> None:
    """Work in several processes. Each starts at another job, so that they read different data sets
    while they can."""
    others = {*multiprocessing.active_children()}
    with pool_on(to_share(plan.machine.device), processes) as pool:
        try:
            waiting = {
                pool.submit(work, plan, board, i * len(plan.jobs) // processes)
                for i in range(processes)
            }
            while waiting:
                done, waiting = wait(waiting, timeout=PAUSE)
                look()
                for future in done:
                    future.result()
        except BrokenProcessPool:
            raise UserError(
                "a worker process died, perhaps out of memory: start again with fewer --jobs or less cache_memory"
            ) from None
        except BaseException:
            for process in {*multiprocessing.active_children()} - others:
                # else leaving the pool would wait until they have done all jobs
                process.terminate()
            raise


def work(
    plan: Plan,
    board: Board,
    start: int = 0,
    lab: Any = None,
    look: Callable[..., Any] = lambda *news: None,
) -> None:
    """Do jobs that no other process is doing, until all are settled. The jobs of a process that
    dies are taken over.

    start: number of the job to begin with. look: made by `_look`.
    """
    from filelock import Timeout

    lab, known = lab or plan.lab(), answers(plan.out)
    if left := board.left():
        each = {(job.method, job.values): plan.method(job) for job in left}
        lab.blocks = blocks_read(each.values(), lab.backbone(left[0].task.backbone))
    turn = {job: i for i, job in enumerate(in_order(plan.jobs))}
    while left := sorted(board.left(), key=lambda job: (turn[job] - start) % len(turn)):
        busy = True
        for job in left:
            lock = claim(_writable(_lock(plan, job)))
            try:
                held = lock.acquire(blocking=False)
            except Timeout:
                continue
            with held:
                busy = False
                if not board.settled(
                    job
                ):  # another process may have done it before we got the lock
                    look(str(job))
                    look("", do(job, plan, lab, known))
        if busy:
            look("waiting for another process")
            time.sleep(PAUSE)


def blocks_read(methods: Iterable[Any], backbone: Any) -> set[int]:
    """The blocks of the image encoder at which methods start, if they say so (`starts_at`): one
    pass over the images can then give the inputs of all."""
    found: set[Any] = set()
    for method in methods:
        with contextlib.suppress(
            Exception
        ):  # a method that does not work on this backbone says so in `fit`
            found.add(method.starts_at(backbone))
    return found - {None}


def in_order(jobs: Sequence[Job]) -> list[Job]:
    """Jobs on the same images together, those that need only features last: methods on tokens
    compute these anyway."""
    from rmadapter.methods import ON_FEATURES

    first: dict[Any, int] = {}
    for job in jobs:
        first.setdefault(job.images, len(first))
    return sorted(jobs, key=lambda job: (first[job.images], job.method in ON_FEATURES))


def _lock(plan: Plan, job: Job) -> Path:
    return (plan.out / job.path).with_suffix(".lock")


def _writable(path: Path) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}): choose another --out"
        ) from None
    return path


def do(job: Job, plan: Plan, lab: Any, known: dict[str, Record]) -> Record:
    """Do one job, write its record and return it. known: as in `made`."""
    record = made(job, plan, lab, known)
    record.save(plan.out / job.path)
    return record


def _with_search(record: Record, told: str, spent: float) -> Record:
    """The record with the search of this job, in place of that of the run it may be copied from."""
    seconds, notes = (
        dict(record.seconds),
        [note for note in record.notes if not note.startswith(TUNED)],
    )
    before = seconds.pop("search", 0.0)
    if told and "total" in seconds:
        seconds |= {"search": round(spent, 3), "total": round(seconds["total"] - before + spent, 3)}
    elif before:
        seconds["total"] -= before
    return record.model_copy(update={"seconds": seconds, "notes": (*notes, *filter(None, [told]))})


def made(job: Job, plan: Plan, lab: Any, known: dict[str, Record]) -> Record:
    """Do one job and return its record, also if it fails. known: finished records by key, as from
    `answers`; grows.

    A training that another protocol has done already, such as an ablation's row that is RMAdapter
    itself, is not repeated; its record says where the figures are from.
    """
    from rmadapter.runs.run import describe_run, run_key, run_task
    from rmadapter.training.contract import NotApplicable

    task, method, few, told, spent = job.task, plan.method(job), None, "", 0.0
    backbone = lab.backbone(task.backbone)  # without it there is nothing to record
    try:
        drawn = lab.draw(task)
        if job.trials and plan.tune:
            method, told, spent = plan.tune(method, job, lab)
        key, few = run_key(task, method, job.method, plan.machine, backbone, drawn), drawn
        old = known.get(
            key
        )  # of another protocol; folders of the same name may share only their train images
        same = old and old.task.data == task.data and not old.other_images(lab.tests(task))
        record = old if old and same else run_task(task, method, lab, job.method).record
    except NotApplicable as error:
        record = describe_run(
            task, method, lab, job.method, few, status="not-applicable", reason=str(error)
        )
    except Exception as error:
        reason = " ".join(str(error).split())
        if not isinstance(
            error, UserError
        ):  # a bug of ours or of an outside method, or out of memory
            print(escape(traceback.format_exc()), end="", file=sys.stderr)
            reason = f"{type(error).__name__}: {error}"
        record = describe_run(task, method, lab, job.method, few, status="failed", reason=reason)
    place = {"protocol": job.protocol, "variant": job.variant, "axis": job.axis, "value": job.value}
    record = _with_search(record.model_copy(update={**place, "crops": plan.crops}), told, spent)
    if record.status == "finished":
        known.setdefault(record.key, copied(record, job.path))
    return record
