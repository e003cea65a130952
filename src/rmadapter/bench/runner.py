"""All runs of an experiment: each done once, whoever is killed or works beside us, and written as one JSON file."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rmadapter.bench.protocols import Run
from rmadapter.config import Config
from rmadapter.errors import UserError
from rmadapter.files import read_json, write_json
from rmadapter.progress import bar

SETTLED = ("finished", "not-applicable")
CHOOSE = "choose another --out, or delete that file"
PAUSE = 0.5  # seconds between two looks at what other processes have done
SHARED = ("templates", "augmentation", "views", "precision", "device", "cache_memory", "workers")


@dataclass(frozen=True)
class Plan:
    """What a process needs to know to take part. settings and values: as `Lab` has them."""

    runs: tuple[Run, ...]
    out: Path
    root: Path
    settings: Config
    values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    own_templates: bool = False

    def lab(self, progress: bool = False) -> Any:
        from rmadapter.bench.measure import Lab

        return Lab(self.root, self.settings, self.values, self.own_templates, self.out / ".activations", progress)


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
    datasets' own where known. jobs: processes; any number of such calls may work on one `out` at the same time.
    Raises UserError, before anything starts, for settings that do not exist and for runs in `out` that had others.
    """
    from rmadapter.bench.measure import configuration

    plan = Plan(tuple(runs), out, root, settings or Config(), values or {}, own_templates)
    check_settings(plan)
    lab = plan.lab()
    configs = [configuration(run, lab) for run in runs]
    before = _look_at(plan, configs)
    board = Board(plan, {path: _stamp(path) for path in before})
    if not all(board.settled(run) for run in runs):
        check_images(plan, board, lab)
        if jobs == 1:
            _work_alone(plan, board, lab, progress)
        else:
            _work_together(plan, board, jobs, progress)
        shutil.rmtree(out / ".activations", ignore_errors=True)
    return [read_json(out / run.path) for run in runs]


def split_settings(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """--set as settings common to all methods, and {method: {field: value}}. Raises UserError for what is neither."""
    shared: dict[str, Any] = {}
    values: dict[str, dict[str, Any]] = {}
    for name, value in given.items():
        method, dot, own = name.partition(".")
        if dot:
            values.setdefault(method, {})[own] = value
        elif name in SHARED:
            shared[name] = value
        else:
            raise UserError(
                f"--set {name}: write METHOD.{name} for a method's setting; common to all are {', '.join(SHARED)}"
            )
    return shared, values


def describe_methods(backbone: str, classes: int, shots: int) -> list[dict[str, Any]]:
    """Name, title, source, settings and number of trainable parameters of every method."""
    from rmadapter.backbone import load_backbone
    from rmadapter.bench.measure import settings_of
    from rmadapter.bench.methods import METHODS, load_method

    loaded = load_backbone(backbone)
    methods = {name: load_method(name) for name in METHODS}
    return [
        {
            "name": name,
            "title": method.title,
            "source": method.source,
            "parameters": method.parameters(loaded, classes, shots),
            "settings": settings_of(method),
        }
        for name, method in methods.items()
    ]


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


def _look_at(plan: Plan, configs: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Records of failed or broken runs. Raises UserError for a finished run of another configuration."""
    broken = []
    for run, config in zip(plan.runs, configs, strict=True):
        path = plan.out / run.path
        found = _read(path)
        if found.get("status") not in SETTLED:
            broken += [path] * path.exists()
        elif found.get("config") != config:
            differing = _difference(found.get("config"), config)
            raise UserError(f"{path} is a run with another {differing}: {CHOOSE}")
    return broken


def check_images(plan: Plan, board: Board, lab: Any) -> None:
    """Raises UserError where what is there already was measured on other weights or images than what is to come."""
    from rmadapter.data.fewshot import split_digest

    left = {(run.dataset, run.shots, run.seed) for run in plan.runs if not board.settled(run)}
    for run in plan.runs:
        if board.settled(run) and (old := _read(plan.out / run.path)).get("status") == "finished":
            if (old.get("backbone") or {}).get("digest") != lab.backbone.digest:
                raise UserError(f"{plan.out / run.path} was run on other weights than {lab.backbone.name}'s: {CHOOSE}")
            same = (run.dataset, run.shots, run.seed) in left
            if same and old.get("split_digest") != split_digest(lab.draw(run)):
                raise UserError(f"{plan.out / run.path} was run on other images than {run.dataset} has now: {CHOOSE}")


def _difference(old: Any, new: Mapping[str, Any], prefix: str = "") -> str:
    """Names the first field that differs."""
    if not isinstance(old, dict):
        return prefix.rstrip(".") or "configuration"
    for name in [*new, *old]:
        if old.get(name) != new.get(name):
            value = new.get(name)
            return _difference(old.get(name), value, f"{prefix}{name}.") if isinstance(value, dict) else prefix + name
    return "configuration"


def _read(path: Path) -> dict[str, Any]:
    """A record, or nothing where there is none that can be read."""
    try:
        found = read_json(path)
    except UserError:
        return {}
    return found if isinstance(found, dict) else {}


def _stamp(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


@dataclass(eq=False)
class Board:
    """Who has done what: the files in `out`. broken: records that were no results when we came, with their age."""

    plan: Plan
    broken: Mapping[Path, int]

    def __post_init__(self) -> None:
        self._settled: set[Path] = set()

    def settled(self, run: Run) -> bool:
        """Whether the run needs nothing more: it has an answer, or it failed since we came, and would fail again."""
        path = self.plan.out / run.path
        if path not in self._settled and path.exists():
            status = _read(path).get("status")
            if status in SETTLED or (status == "failed" and _stamp(path) != self.broken.get(path)):
                self._settled.add(path)
        return path in self._settled

    def count(self) -> int:
        return sum(self.settled(run) for run in self.plan.runs)


def _work_alone(plan: Plan, board: Board, lab: Any, progress: bool) -> None:
    with bar(progress) as display:
        task = display.add_task("runs", total=len(plan.runs), completed=board.count(), note="")
        work(plan, board, 0, lab, lambda note: display.update(task, completed=board.count(), note=note))


def _work_together(plan: Plan, board: Board, jobs: int, progress: bool) -> None:
    """Processes that each begin at another place, so that they read different datasets as long as there are some."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _start, (threads,))
    with bar(progress) as display, pool:
        task = display.add_task("runs", total=len(plan.runs), completed=board.count(), note=f"{jobs} processes")
        waiting = {pool.submit(work, plan, board, i * len(plan.runs) // jobs) for i in range(jobs)}
        while waiting:
            done, waiting = wait(waiting, timeout=PAUSE)
            display.update(task, completed=board.count())
            for future in done:
                try:
                    future.result()
                except BrokenProcessPool:
                    raise UserError(
                        "a worker process died, maybe for want of memory: start again, with fewer --jobs or a "
                        "smaller cache_memory"
                    ) from None


def _start(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def work(
    plan: Plan, board: Board, start: int = 0, lab: Any = None, report: Callable[[str], Any] = lambda note: None
) -> None:
    """Do whatever nobody does, until every run is settled; runs of another process that dies are taken over."""
    from filelock import FileLock, Timeout

    lab, parent = lab or plan.lab(), multiprocessing.parent_process()
    order = [*plan.runs[start:], *plan.runs[:start]]
    waiting = False
    while left := [run for run in order if not board.settled(run)]:
        worked = False
        for run in left:
            if parent and not parent.is_alive():
                return  # whoever wanted this is gone
            lock = FileLock(_folder_of(plan.out / run.path) / f"{run.path.stem}.lock")
            try:
                lock.acquire(blocking=False)
            except Timeout:
                continue
            with lock:
                if not board.settled(run):  # before the lock was ours it may have been another's
                    report(str(run))
                    do(run, lab, plan.out / run.path)
                    worked = True
            Path(lock.lock_file).unlink(missing_ok=True)  # whoever opened it before looks at the record first, too
        if not worked and not waiting:
            waiting = True
            report("waiting for runs of another process")
        if not worked:
            time.sleep(PAUSE)


def _folder_of(path: Path) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}): choose another --out") from None
    return path.parent


def do(run: Run, lab: Any, path: Path) -> None:
    """One run and its record, whatever becomes of it."""
    from rmadapter.bench.measure import configuration, measure, record
    from rmadapter.bench.methods.base import NotApplicable

    try:
        found = measure(run, lab)
    except NotApplicable as reason:
        found = {"status": "not-applicable", "reason": str(reason)}
    except UserError as error:
        found = {"status": "failed", "reason": " ".join(str(error).split())}
    write_json(path, record(run, lab, configuration(run, lab), found))
