"""`tune`: searches for settings of a method that beat the published ones on folds of the training
images.

Optuna's TPE (Bergstra et al., NeurIPS 2011) proposes settings; trials run here or on the workers of
a Ray cluster. tune.json is updated after every trial, so repeating the command resumes, without
reading pickles as Ray Tune's restore would. The first trial is the method as requested. No model
ever sees test images.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from rmadapter.bench.ray.cluster import connected, ray_module, settle, share, shares
from rmadapter.bench.search_space import Trial, optuna
from rmadapter.bench.tune_plot import coordinates
from rmadapter.data.read import ImageSet, read_images
from rmadapter.errors import UserError
from rmadapter.runs.auto import behind
from rmadapter.runs.folds import Folds
from rmadapter.runs.request import Request
from rmadapter.runs.run import Lab, run_key
from rmadapter.settings import configured, to_yaml
from rmadapter.support.files import parts, read_json, write_json, write_text
from rmadapter.support.locks import exclusive
from rmadapter.support.machine import versions
from rmadapter.support.terminal import bar
from rmadapter.task import qualified_settings
from rmadapter.training.contract import NotApplicable

FILE, BEST, PICTURE = "tune.json", "best.yaml", "tune.svg"
KEPT = ("key", "images", "folds", "space")  # entries of the file that must match to resume


@dataclass(frozen=True)
class Search:
    """A search around the requested method and task. given: the user's settings, by flat name.
    folds: most folds to make. read: further arguments of `read_images`."""

    request: Request
    given: Mapping[str, Any] = field(default_factory=dict)
    folds: int = 4
    read: Mapping[str, Any] = field(default_factory=dict)

    def make_folds(self) -> Folds:
        """Make folds of the shots, in a lab without the test split. Raises UserError for images and
        methods that cannot be evaluated on folds."""
        task, lab = self.request.task, Lab(self.request.machine, progress=False)
        splits: dict[str, ImageSet] = read_images(task.data, progress=False, **self.read)
        lab.add(task.data, {name: images for name, images in splits.items() if name != "test"})
        folds = Folds.make(task, lab, self.folds)
        if not folds:
            raise UserError(
                f"{task.data}: too few images per class for the folds that judge trials: give more shots"
            )
        return folds


@dataclass(frozen=True)
class Tuned:
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial:
        """The trial with the most right answers; the first of equal ones. Raises UserError if all
        failed."""
        judged = [trial for trial in self.trials if trial.right]
        if not judged:
            raise UserError(f"no trial could be judged; the first failed: {self.trials[0].reason}")
        return max(judged, key=lambda trial: trial.right.count("1"))

    @property
    def gain(self) -> tuple[float, float] | None:
        """Points by which the best trial beats the first, and the paired standard error; None if
        the first failed."""
        if not self.trials[0].right:
            return None
        hits = np.array(
            [[mark == "1" for mark in trial.right] for trial in (self.best, self.trials[0])]
        )
        points, error = behind(hits)[:, 1].tolist()
        return points, error


def judged(search: Search, folds: Folds, number: int, params: dict[str, Any]) -> Trial:
    """Run one trial; a failure is recorded as its reason."""
    try:
        method = configured(search.request.method, params, search.request.name)
        found = folds.answers(method, search.request.name)
    except (UserError, NotApplicable) as error:
        return Trial(number, params, reason=" ".join(str(error).split()))
    if not np.isfinite(found.table).all():
        return Trial(number, params, reason="its answers contain NaN or infinity")
    hits = found.table.argmax(1) == np.array(folds.judged.labels)
    return Trial(number, params, "".join("01"[int(hit)] for hit in hits), round(found.seconds, 2))


def tune(
    search: Search, space: Mapping[str, Any], count: int, out: Path, jobs: int = 1, address: str | None = None,
    progress: bool = True,
) -> Tuned:  # fmt: skip
    """Try `count` settings, including those already in `out`; writes all trials, the best settings
    as a file for `--config`, and a picture.

    space: from `space.space`. address: of a Ray cluster, where `jobs` workers run trials; None runs
    them here. With at most one worker results are reproducible even after interruptions; with
    several, proposals depend on which trials are done when a worker becomes free. Raises UserError
    for a folder of another search, and as `Search.make_folds`.
    """
    with exclusive(out):
        for left in parts(out):
            left.unlink()
        folds = search.make_folds()
        head = _head(search, folds, space)
        trials = _read(out / FILE, head)
        study = Study(space, search.request.task.seed, trials, jobs)
        todo = sorted({*range(count)} - {trial.number for trial in trials})
        done = (
            _here(search, folds, study, todo)
            if address is None
            else _there(search, study, todo, head["key"], address)
        )
        with bar(progress) as display:
            task = display.add_task(
                "trials", total=len(trials) + len(todo), completed=len(trials), note=""
            )
            for trial in done:
                if trial:
                    trials = sorted([*trials, trial], key=attrgetter("number"))
                    _write(out, head, trials)
                    display.advance(task)
        found = Tuned(tuple(trials))
        name = search.request.name
        write_text(
            out / BEST,
            to_yaml(
                {"method": name, **search.given, **qualified_settings(name, found.best.params)}
            ),
        )
        write_text(out / PICTURE, coordinates(found.trials, space))
        return found


def _head(search: Search, folds: Folds, space: Mapping[str, Any]) -> dict[str, Any]:
    """The head of tune.json: what identifies a search, and facts about it."""
    request, lab = search.request, folds.lab
    backbone, few = lab.backbone(request.task.backbone), lab.draw(request.task)
    key = run_key(request.task, request.method, request.name, request.machine, backbone, few)
    ranges = {name: optuna().distributions.distribution_to_json(one) for name, one in space.items()}
    about = {
        "method": request.name,
        "task": asdict(request.task),
        "folds": len(folds),
        "images": len(folds.rows),
    }
    return {
        "key": key,
        **about,
        "space": ranges,
        "versions": {**versions(), "optuna": optuna().__version__},
    }


def _read(file: Path, head: Mapping[str, Any]) -> list[Trial]:
    if not file.exists():
        return []
    found = read_json(file)
    if not isinstance(found, dict) or any(found.get(name) != head[name] for name in KEPT):
        raise UserError(
            f"{file}: a different search, or one on different images; choose another --out, or delete it"
        )
    try:
        return [
            Trial(**{f.name: trial[f.name] for f in fields(Trial)}) for trial in found["trials"]
        ]
    except (KeyError, TypeError):
        raise UserError(f"{file}: damaged; choose another --out, or delete it") from None


def _write(out: Path, head: Mapping[str, Any], trials: Collection[Trial]) -> None:
    rows = [{"accuracy": trial.accuracy, **asdict(trial)} for trial in trials]
    write_json(out / FILE, {**head, "trials": rows})


class Study:
    """An Optuna study in memory; each proposal has its own seed, so results do not depend on
    interruptions."""

    def __init__(
        self, space: Mapping[str, Any], seed: int, trials: Collection[Trial], jobs: int
    ) -> None:
        self.space, self.seed, self.jobs = space, seed, jobs
        self.asked: dict[int, Any] = {}
        self.study = optuna().create_study(direction="maximize")
        for trial in trials:
            if trial.number and trial.right:
                self.study.add_trial(
                    optuna().create_trial(
                        params=trial.params, distributions=dict(space), value=trial.accuracy
                    )
                )

    def ask(self, number: int) -> tuple[int, dict[str, Any]]:
        """The trial's number and settings to try; the same if asked again."""
        if not number:
            return 0, {}
        if number not in self.asked:
            sampler = optuna().samplers.TPESampler(
                seed=(self.seed + number) % 2**32, constant_liar=self.jobs > 1
            )
            self.study.sampler = sampler
            self.asked[number] = self.study.ask(dict(self.space))
        return number, self.asked[number].params

    def tell(self, trial: Trial) -> Trial:
        if trial.number:
            state = optuna().trial.TrialState
            self.study.tell(
                self.asked[trial.number],
                trial.accuracy,
                state.COMPLETE if trial.right else state.FAIL,
            )
        return trial


def _here(search: Search, folds: Folds, study: Study, todo: Sequence[int]) -> Iterator[Trial]:
    for number in todo:
        yield study.tell(judged(search, folds, *study.ask(number)))


class Judge:
    """An actor that keeps the folds and their frozen activations. key: the search's key in the
    user's process."""

    def __init__(self, search: Search, key: str, home: Path, threads: float) -> None:
        self.search, self.key, self.node = search, key, settle(home, threads)

    def ready(self) -> None:
        try:
            self.folds = self.search.make_folds()
            if _head(self.search, self.folds, {})["key"] != self.key:
                raise UserError("its data or backbone differ from those where the command runs")
        except UserError as error:
            raise UserError(
                f"node {self.node}: {error}; every node needs data and backbone at the same path"
            ) from None

    def do(self, work: tuple[int, dict[str, Any]]) -> Trial:
        return judged(self.search, self.folds, *work)


def _there(
    search: Search, study: Study, todo: Sequence[int], key: str, address: str
) -> Iterator[Trial | None]:
    """Run trials on a cluster; yields None from time to time while none ends."""
    ray = ray_module()
    with connected(address):
        own = shares(study.jobs, search.request.machine.device)
        actor = partial(
            ray.remote(Judge).options(**own).remote, search, key, Path.cwd(), own["num_cpus"]
        )
        for found in share(actor, study.jobs, todo, lambda last, left, others: left[0], study.ask):
            yield study.tell(found[1]) if found else None
