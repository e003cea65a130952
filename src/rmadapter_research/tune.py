"""Search for settings of a method that beat the published ones on folds of the training images.

Optuna's TPE (Bergstra et al., NeurIPS 2011) proposes settings; trials run here or on the workers of
a Ray cluster. tune.json is updated after every trial, so repeating the command resumes, without
reading pickles as Ray Tune's restore would. The first trial is the method as requested. No model
ever sees test images.

`bench --tune N` searches for each run on its own (`tune_job`): with the run's
seed and shots, so nothing is chosen on images that another run is tested on. N is the same for all
methods.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rmadapter import (
    Lab,
    Method,
    NotApplicable,
    Task,
    UserError,
    read_images,
)
from rmadapter.artifacts import exclusive, read_json, write_json, write_text
from rmadapter.bench import Job, Tuner, run_on_cluster
from rmadapter.cli import track
from rmadapter.runs import (
    Folds,
    Request,
    configured,
    describe_run,
    qualified_settings,
)
from rmadapter_research.search_space import Space, make_space, optuna

FILE, BEST, PICTURE = "tune.json", "best.yaml", "tune.svg"
IDENTITY = ("key", "images", "folds", "space")  # entries of the file that must match to resume


@dataclass(frozen=True)
class Trial:
    """One trial.

    Attributes:
        number: Number from 0, which is the method as requested.
        params: Settings that it tried.
        right: A character per judged image, "1" if the answer is right, else "0"; empty if the
            trial failed.
        seconds: Seconds that it took.
        reason: Why it failed.
    """

    number: int
    params: dict[str, object]
    right: str = ""
    seconds: float = 0.0
    reason: str = ""

    @property
    def accuracy(self) -> float | None:
        """Percent; None if the trial failed."""
        return 100 * self.right.count("1") / len(self.right) if self.right else None


@dataclass(frozen=True)
class Search:
    """A search around the requested method and task.

    Attributes:
        request: What was requested.
        given: Settings of the user, by flat name.
        folds: Most folds to make.
        read: Further arguments of `read_images`.
    """

    request: Request
    given: Mapping[str, object] = field(default_factory=dict)
    folds: int = 4
    read: Mapping[str, Any] = field(default_factory=dict)

    def make_folds(self) -> Folds:
        """Make folds of the shots, in a lab without the test split. Raises UserError for too few
        images."""
        task = self.request.task
        lab = Lab(self.request.machine, progress=False)
        splits = read_images(task.data, progress=False, **self.read)
        lab.add(task.data, {name: images for name, images in splits.items() if name != "test"})
        return _make_folds(task, lab, self.folds)


def _make_folds(task: Task, lab: Lab, count: int) -> Folds:
    folds = Folds.make(task, lab.draw(task), lab, count)
    if not folds:
        raise UserError(
            f"{task.data}: too few images per class for the folds that judge trials: use more shots"
        )
    return folds


@dataclass(frozen=True)
class Tuned:
    """The trials of a search, by number."""

    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial:
        """The trial with the most right answers; the first of equal ones. Raises UserError if all
        failed."""
        judged = [trial for trial in self.trials if trial.right]
        if not judged:
            raise UserError(f"every trial failed; the first: {self.trials[0].reason}")
        return max(judged, key=lambda trial: trial.right.count("1"))

    @property
    def gain(self) -> tuple[float, float] | None:
        """Points by which the best trial beats the first, and the paired standard error; None if
        the first failed."""
        if not self.trials[0].right:
            return None
        pairs = zip(self.best.right, self.trials[0].right, strict=True)
        gains = np.array([int(best) - int(given) for best, given in pairs])
        return 100 * float(gains.mean()), 100 * float(gains.std()) / math.sqrt(len(gains))


def run_trial(search: Search, folds: Folds, number: int, params: dict[str, object]) -> Trial:
    """Run one trial; a failure is recorded as its reason.

    Args:
        search: The search.
        folds: Folds of its shots.
        number: Number of the trial.
        params: Settings to try.
    """
    name = search.request.name
    try:
        method = configured(search.request.method, params, name)
        answers = folds.answers(method, name)
        if not np.isfinite(answers.table).all():
            raise UserError("its answers contain NaN or infinity")
        hits = answers.table.argmax(1) == np.array(folds.judged.labels)
        right = "".join("1" if hit else "0" for hit in hits)
        return Trial(number, params, right, round(answers.seconds, 2))
    except (UserError, NotApplicable) as error:
        return Trial(number, params, reason=" ".join(str(error).split()))


def tune(
    search: Search,
    space: Space,
    count: int,
    out: Path,
    jobs: int = 1,
    address: str | None = None,
    progress: bool = True,
) -> Tuned:
    """Try `count` settings, including those already in `out`; writes all trials, the best settings
    as a file for `--config`, and a picture.

    With at most one worker results are reproducible even after interruptions; with several,
    proposals depend on which trials are done when a worker becomes free.

    Args:
        search: The search.
        space: What to try, from `make_space`.
        count: Number of trials.
        out: Folder of the search.
        jobs: Number of workers on a cluster.
        address: Address of a Ray cluster, whose workers run trials; None runs them here.
        progress: Whether to show how far it is.

    Raises:
        UserError: The folder is of another search, and as `Search.make_folds`.
    """
    with exclusive(out):
        for left in out.glob(".*.part"):  # by a killed process
            left.unlink()
        folds = search.make_folds()
        head = _head(search, folds, space)
        trials = _read_trials(out / FILE, head)
        study = Study(space, search.request.task.seed, trials, jobs)
        todo = sorted({*range(count)} - {trial.number for trial in trials})
        if address is None:
            new_trials = _run_here(search, folds, study, todo)
        else:
            new_trials = _run_on_cluster(search, study, todo, head["key"], address)
        for trial in track(new_trials, len(todo), "trials", progress):
            trials = sorted([*trials, trial], key=attrgetter("number"))
            rows = [{"accuracy": one.accuracy, **asdict(one)} for one in trials]
            write_json(out / FILE, {**head, "trials": rows})
        tuned, name = Tuned(tuple(trials)), search.request.name
        best = {"method": name, **search.given, **qualified_settings(name, tuned.best.params)}
        write_text(out / BEST, yaml.safe_dump(best, sort_keys=False, allow_unicode=True))
        write_text(out / PICTURE, draw_trials(study))
        return tuned


def _head(search: Search, folds: Folds, space: Space) -> dict[str, Any]:
    """Return the head of tune.json: what identifies a search, and facts about it."""
    request = search.request
    record = describe_run(request.task, request.method, folds.lab, request.name, folds.few)
    to_json = optuna().distributions.distribution_to_json
    return {
        "key": record.key,
        "method": request.name,
        "task": request.task.values(),
        "folds": len(folds),
        "images": len(folds.rows),
        "space": {name: to_json(distribution) for name, distribution in space.items()},
        "versions": {**record.versions, "optuna": optuna().__version__},
    }


def _read_trials(file: Path, head: Mapping[str, object]) -> list[Trial]:
    if not file.exists():
        return []
    content = read_json(file)
    if not isinstance(content, dict) or any(content.get(name) != head[name] for name in IDENTITY):
        raise UserError(
            f"{file}: a different search, or one on different images; choose another --out, or "
            "delete it"
        )
    names = [f.name for f in fields(Trial)]
    try:
        return [Trial(**{name: row[name] for name in names}) for row in content["trials"]]
    except (KeyError, TypeError):
        raise UserError(f"{file}: damaged; choose another --out, or delete it") from None


class Study:
    """An Optuna study in memory; each proposal has its own seed, so results do not depend on
    interruptions."""

    def __init__(self, space: Space, seed: int, trials: Collection[Trial], jobs: int) -> None:
        self.space, self.seed, self.jobs = space, seed, jobs
        self.proposals: dict[int, Any] = {}
        self.study = optuna().create_study(direction="maximize")
        for trial in trials:
            if trial.number and trial.right:
                self.study.add_trial(
                    optuna().create_trial(
                        params=trial.params, distributions=dict(space), value=trial.accuracy
                    )
                )

    def ask(self, number: int) -> tuple[int, dict[str, object]]:
        """Return the trial's number and settings to try; the same if asked again."""
        if not number:
            return 0, {}
        if number not in self.proposals:
            seed = (self.seed + number) % 2**32
            samplers = optuna().samplers
            self.study.sampler = samplers.TPESampler(seed=seed, constant_liar=self.jobs > 1)
            self.proposals[number] = self.study.ask(dict(self.space))
        return number, self.proposals[number].params

    def tell(self, trial: Trial) -> Trial:
        """Pass the result of a trial to Optuna, and return the trial."""
        if trial.number:
            states = optuna().trial.TrialState
            state = states.COMPLETE if trial.right else states.FAIL
            self.study.tell(self.proposals[trial.number], trial.accuracy, state)
        return trial


def _run_here(search: Search, folds: Folds, study: Study, todo: Sequence[int]) -> Iterator[Trial]:
    for number in todo:
        yield study.tell(run_trial(search, folds, *study.ask(number)))


class Judge:
    """Runs trials on a node, and keeps the folds and their frozen activations. Raises UserError if
    data or backbone differ from those of the driver.

    Args:
        search: The search.
        key: Its key in the user's process.
    """

    def __init__(self, search: Search, key: str) -> None:
        self.search = search
        self.folds = search.make_folds()
        if _head(search, self.folds, {})["key"] != key:
            raise UserError("its data or backbone differ from those where the command runs")

    def do(self, work: tuple[int, dict[str, object]]) -> Trial:
        """Run a trial, given its number and settings."""
        return run_trial(self.search, self.folds, *work)


def _run_on_cluster(
    search: Search, study: Study, todo: Sequence[int], key: str, address: str
) -> Iterator[Trial]:
    make, device = partial(Judge, search, key), search.request.machine.device
    for result in run_on_cluster(make, todo, study.jobs, device, address, send=study.ask):
        if result:
            yield study.tell(result[1])


def default_settings(method: Method, name: str) -> tuple[str, ...]:
    """Return the settings that a search in a bench tries. Raises UserError if Optuna is not
    installed."""
    optuna()
    try:
        return tuple(make_space(method, name))
    except UserError:  # no settings to try by default
        return ()


def tune_job(method: Method, job: Job, lab: Lab) -> tuple[Method, str, float]:
    """Return the method with the settings of the best trial, what these were judged by, and the
    seconds of the search.

    Answers of the folds are kept in the lab's folder, so a killed search resumes. Raises UserError
    if images are too few for folds, and if all trials failed.
    """
    space = make_space(method, job.method, job.searched)
    search = Search(Request(job.task, lab.machine, method, job.method))
    folds = _make_folds(job.task, lab, search.folds)
    study = Study(space, job.task.seed, (), 1)
    trials = tuple(_run_here(search, folds, study, range(job.trials)))
    best, first = Tuned(trials).best, trials[0].accuracy
    before = "" if first is None else f", as given {first:.1f}"
    judged_by = (
        f"{len(folds)} folds of {len(folds.rows)} training images, the best of which has "
        f"{best.accuracy:.1f} %{before}"
    )
    seconds = sum(trial.seconds for trial in trials)
    return configured(method, best.params, job.method), judged_by, seconds


TUNER = Tuner(default_settings, tune_job)


def draw_trials(study: Study) -> str:
    """Draw the trials with proposed settings as parallel coordinates, in SVG."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from optuna.visualization.matplotlib import plot_parallel_coordinate

    out = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is experimental, and few trials make a flat axis
        axes = plot_parallel_coordinate(study.study, target_name="accuracy, %")
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "rmadapter"}):
        axes.figure.savefig(out, format="svg", metadata={"Date": None})
    pyplot.close(axes.figure)
    return out.getvalue()
