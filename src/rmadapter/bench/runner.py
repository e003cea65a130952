"""All runs of an experiment: each done once, whoever is killed or works beside us, and written as one JSON file."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rmadapter.bench.board import CHOOSE, Board, answers, read_record
from rmadapter.bench.protocols import Run
from rmadapter.config import Config
from rmadapter.errors import UserError
from rmadapter.files import read_json, write_json
from rmadapter.progress import bar

PAUSE = 0.5  # seconds between two looks at what other processes have done


@dataclass(frozen=True)
class Plan:
    """What a process needs to know to take part. settings, values, own_templates: as `Lab` has them."""

    runs: tuple[Run, ...]
    out: Path
    root: Path
    settings: Config
    values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    own_templates: bool = False

    def lab(self) -> Any:
        from rmadapter.bench.measure import Lab

        return Lab(self.root, self.settings, self.values, self.own_templates, self.out / ".activations", progress=False)


def run_all(
    runs: Sequence[Run],
    out: Path,
    *,
    root: Path = Path(),
    settings: Config | None = None,
    values: Mapping[str, Mapping[str, Any]] | None = None,
    own_templates: bool = False,
    jobs: int = 1,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Do the runs that `out` does not hold yet; returns the records of all, in the order given.

    settings: what all methods have in common. values: {method: {field: value}}. own_templates: prompt templates are the
    datasets' own where known. jobs: processes; any number of such calls may work on one `out` at the same time, and
    each returns when all of its runs are done, by whomever.
    Raises UserError, before anything starts, for settings that do not exist and for runs in `out` that had others.
    """
    from rmadapter.bench.measure import configuration

    plan = Plan(tuple(runs), out, root, settings or Config(), values or {}, own_templates)
    check_settings(plan)
    lab, board = plan.lab(), Board(out, plan.runs)
    board.check([configuration(run, lab) for run in runs])
    if left := board.left():
        check_images(plan, lab, left)
        with bar(progress) as display:
            task = display.add_task("runs", total=len(runs), note="")
            done = len(list(board.news()))

            def look(note: str | None = None, did: Mapping[str, Any] | None = None) -> None:
                nonlocal done
                news = list(board.news())
                done += len(news)
                for record in news if jobs > 1 else [did] if did else []:
                    if progress:
                        display.console.print(line(record), markup=False, highlight=False, soft_wrap=True)
                display.update(task, completed=done, **({} if note is None else {"note": note}))

            if jobs == 1:
                work(plan, board, lab=lab, look=look)
            else:
                _work_together(plan, board, jobs, look)
            look("")
        for run in runs:
            with contextlib.suppress(OSError):  # nobody needs it any more, even if somebody holds it for a moment
                _lock(plan, run).unlink()
        if not any(out.rglob("*.lock")):  # else somebody else is still at work
            shutil.rmtree(out / ".activations", ignore_errors=True)
    return [read_json(out / run.path) for run in runs]


def check_settings(plan: Plan) -> None:
    """Raises UserError for what cannot be right for any run."""
    paths = [run.path for run in plan.runs]
    if len(set(paths)) < len(paths):
        double = next(path for path in paths if paths.count(path) > 1)
        raise UserError(f"two of these runs would both be written to {double}: run them with different --out")
    methods = sorted({run.method for run in plan.runs})
    for method in plan.values:
        if method not in methods:
            raise UserError(f"--set {method}.*: no run is of the method {method!r}; there are {', '.join(methods)}")
    if plan.settings.augmentation == "standard" and not plan.settings.views:
        raise UserError("augmentation=standard needs a number of views per image, as --set views=8")


def check_images(plan: Plan, lab: Any, left: Sequence[Run]) -> None:
    """Raises UserError for a dataset or backbone that is missing, and for answers that were found with others."""
    from rmadapter.data.fewshot import split_digest

    for name in dict.fromkeys(name for run in left for name in (run.dataset, *run.targets)):
        lab.splits(name)
    digest = lab.backbone.digest
    drawn = {(run.dataset, run.shots, run.seed) for run in left}
    for run in plan.runs:
        path = plan.out / run.path
        if run not in left and (old := read_record(path)).get("status") == "finished":
            if (old.get("backbone") or {}).get("digest") != digest:
                raise UserError(f"{path} was run on other weights than {lab.backbone.name} has now: {CHOOSE}")
            same = (run.dataset, run.shots, run.seed) in drawn
            if same and old.get("split_digest") != split_digest(lab.draw(run)):
                raise UserError(f"{path} was run on other images than {run.dataset} has now: {CHOOSE}")


def line(record: Mapping[str, Any]) -> str:
    """What a run found, for the log."""
    values = {k: v for k, v in (record.get("metrics") or {}).items() if isinstance(v, float)}
    found = " ".join(f"{name} {value:.2f}" for name, value in values.items()) or record.get("reason", "")
    names = [record["protocol"], record["dataset"], record["method"], *filter(None, [record["variant"]])]
    seconds = f" ({record['seconds']['total']:.0f} s)" if "seconds" in record else ""
    return f"{' | '.join(names)} | {record['shots']} shots, seed {record['seed']}: {record['status']} {found}{seconds}"


def _work_together(plan: Plan, board: Board, jobs: int, look: Callable[[], Any]) -> None:
    """Processes that each begin at another place, so that they read different datasets as long as there are some."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    others = {*multiprocessing.active_children()}
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _start, (threads,)) as pool:
        try:
            waiting = {pool.submit(work, plan, board, i * len(plan.runs) // jobs) for i in range(jobs)}
            while waiting:
                done, waiting = wait(waiting, timeout=PAUSE)
                look()
                for future in done:
                    future.result()
        except BrokenProcessPool:
            raise UserError(
                "a worker process died, maybe for want of memory: start again with fewer --jobs or less cache_memory"
            ) from None
        except BaseException:
            for process in {*multiprocessing.active_children()} - others:
                process.terminate()  # else leaving the pool would wait until they have done all runs
            raise


def _start(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def work(
    plan: Plan, board: Board, start: int = 0, lab: Any = None, look: Callable[..., Any] = lambda *news: None
) -> None:
    """Do whatever nobody does, until every run is settled; runs of another process that dies are taken over.

    start: number of the run to begin with. look: told what comes next, and the record of what was done.
    """
    from filelock import FileLock, Timeout

    lab, parent, known = lab or plan.lab(), multiprocessing.parent_process(), answers(plan.out)
    turn = {run: i for i, run in enumerate(in_order(plan.runs))}
    while left := sorted(board.left(), key=lambda run: (turn[run] - start) % len(turn)):
        busy = True
        for run in left:
            if parent and not parent.is_alive():
                return  # whoever wanted this is gone
            lock = FileLock(_writable(_lock(plan, run)))
            try:
                held = lock.acquire(blocking=False)
            except Timeout:
                continue
            with held:
                busy = False
                if not board.settled(run):  # before the lock was ours it may have been another's
                    look(str(run))
                    look("", do(run, lab, plan.out, known))
        if busy:
            look("waiting for another process")
            time.sleep(PAUSE)


def in_order(runs: Sequence[Run]) -> list[Run]:
    """Runs on the same images together; before those that need features alone, those whose tokens bring them along."""
    from rmadapter.bench.methods import load_method
    from rmadapter.bench.methods.adapters import Adapter

    first: dict[Any, int] = {}
    for run in runs:
        first.setdefault((run.dataset, run.seed, run.shots), len(first))
    tokens = {name: isinstance(load_method(name), Adapter) for name in {run.method for run in runs}}
    return sorted(runs, key=lambda run: (first[run.dataset, run.seed, run.shots], not tokens[run.method]))


def _lock(plan: Plan, run: Run) -> Path:
    return (plan.out / run.path).with_suffix(".lock")


def _writable(path: Path) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}): choose another --out") from None
    return path


def do(run: Run, lab: Any, out: Path, known: dict[str, Path]) -> dict[str, Any]:
    """One run and its record, whatever becomes of it. known: finished records by key, for runs of equal training.

    A training that another protocol asked for already, such as an ablation's row that is RMAdapter itself, is not
    done again; its record says where the figures are from.
    """
    from rmadapter.bench.measure import configuration, measure, record, run_key
    from rmadapter.bench.methods.base import NotApplicable
    from rmadapter.data.fewshot import split_digest

    config, key = configuration(run, lab), ""
    found: dict[str, Any]
    lab.backbone  # noqa: B018  # without it there is nothing to record
    try:
        key = run_key(config, lab.backbone.digest, split_digest(lab.draw(run)))
        if same := read_record(known[key]) if key in known else {}:
            found = {
                name: value for name, value in same.items() if name not in ("protocol", "variant", "axis", "value")
            }
            found.setdefault("copied_from", known[key].relative_to(out).as_posix())
        else:
            found = measure(run, lab)
    except NotApplicable as reason:
        found = {"status": "not-applicable", "reason": str(reason)}
    except UserError as error:
        found = {"status": "failed", "reason": " ".join(str(error).split())}
    except Exception as error:  # a bug or a full memory; the other runs may do better
        traceback.print_exc(file=sys.stderr)
        found = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
    written = record(run, lab, config, found, key)
    write_json(out / run.path, written)
    if written["status"] == "finished":
        known.setdefault(key, out / run.path)
    return written
