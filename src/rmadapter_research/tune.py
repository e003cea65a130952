"""Search for settings of a method that beat the published ones on folds of the training images.

Optuna's TPE (Bergstra et al., NeurIPS 2011) proposes settings; trials run here or on the workers of
a Ray cluster. tune.json is updated after every trial, so repeating the command resumes, without
reading pickles as Ray Tune's restore would. The first trial is the method as requested. No model
ever sees test images.

`bench --tune N` searches for each run on its own (`add_tuned_rows`, `tune_job`): with the run's
seed and shots, so nothing is chosen on images that another run is tested on. N is the same for all
methods.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rmadapter import ImageSet, read_images
from rmadapter.artifacts.run_folder import RunFolder
from rmadapter.bench.plan import Tuner
from rmadapter.bench.protocols import TUNED, Job
from rmadapter.bench.ray import SAME_PATH, connected, ray_module, settle, share, shares
from rmadapter.errors import UserError
from rmadapter.methods import changed_settings, load_method, name_with_settings
from rmadapter.runs.folds import FOLDS, Folds, behind
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request
from rmadapter.runs.run import describe_run, run_key
from rmadapter.runs.track import Tracking, settings_to_track
from rmadapter.settings import configured, settings_of, to_yaml
from rmadapter.support.files import JsonObject, own_name, parts, read_json, write_json, write_text
from rmadapter.support.html import COLOURS, canvas
from rmadapter.support.locks import exclusive
from rmadapter.support.machine import versions
from rmadapter.support.terminal import bar
from rmadapter.task import Task, qualified_settings
from rmadapter.training.contract import NotApplicable
from rmadapter_research.search_space import Distribution, Space, make_space, optuna

if TYPE_CHECKING:
    from rmadapter.training.contract import Method

FILE, BEST, PICTURE = "tune.json", "best.yaml", "tune.svg"
KEPT = ("key", "images", "folds", "space")  # entries of the file that must match to resume
COLOURED = 0.1  # share of the trials in colour, in the picture


@dataclass(frozen=True)
class Trial:
    """One trial. number: from 0, which is the method as requested. right: a character per judged
    image, "1" if the answer is right, else "0"; empty if the trial failed, for the reason."""

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
    """A search around the requested method and task. given: the user's settings, by flat name.
    folds: most folds to make. read: further arguments of `read_images`."""

    request: Request
    given: Mapping[str, object] = field(default_factory=dict)
    folds: int = 4
    read: Mapping[str, Any] = field(default_factory=dict)

    def make_folds(self) -> Folds:
        """Make folds of the shots, in a lab without the test split. Raises UserError for too few
        images."""
        task = self.request.task
        lab = Lab(self.request.machine, progress=False)
        splits: dict[str, ImageSet] = read_images(task.data, progress=False, **self.read)
        lab.add(task.data, {name: images for name, images in splits.items() if name != "test"})
        return _make_folds(task, lab, self.folds)


def _make_folds(task: Task, lab: Lab, most: int) -> Folds:
    folds = Folds.make(task, lab.draw(task), lab, most)
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
        best, given = (
            np.array([mark == "1" for mark in trial.right]) for trial in (self.best, self.trials[0])
        )
        return behind(given, best)


def run_trial(
    search: Search, folds: Folds, number: int, params: dict[str, object],
    trackers: Sequence[str] = (), out: Path = Path(),
) -> Trial:  # fmt: skip
    """Run one trial; a failure is recorded as its reason. trackers: to log it to. out: folder of
    the search."""
    task, name, files = search.request.task, search.request.name, RunFolder(out)
    try:
        method = configured(search.request.method, params, name)
        tracking = Tracking(
            trackers,
            f"{own_name(str(out))}/trial-{number}",
            files.tensorboard / f"trial-{number}",
            settings_to_track(describe_run(task, method, folds.lab, name, folds.few)),
            _tracking(out, number),
        )
        with tracking as tracked:
            answers = folds.answers(method, name, callbacks=tracked.callbacks)
            if not np.isfinite(answers.table).all():
                raise UserError("its answers contain NaN or infinity")
            hits = answers.table.argmax(1) == np.array(folds.judged.labels)
            right = "".join("1" if hit else "0" for hit in hits)
            trial = Trial(number, params, right, round(answers.seconds, 2))
            tracked.log({"accuracy/folds": 100 * hits.mean(), "seconds/total": trial.seconds})
    except (UserError, NotApplicable) as error:
        trial = Trial(number, params, reason=" ".join(str(error).split()))
    if trackers:
        _tracking(out, number).unlink(missing_ok=True)  # only a killed trial goes on
    return trial


def _tracking(out: Path, number: int) -> Path:
    return out / f"trial-{number}.tracking"


def tune(
    search: Search, space: Space, count: int, out: Path, jobs: int = 1, address: str | None = None,
    progress: bool = True, trackers: Sequence[str] = (),
) -> Tuned:  # fmt: skip
    """Try `count` settings, including those already in `out`; writes all trials, the best settings
    as a file for `--config`, and a picture.

    space: from `make_space`. address: of a Ray cluster, where `jobs` workers run trials; None runs
    them here. With at most one worker results are reproducible even after interruptions; with
    several, proposals depend on which trials are done when a worker becomes free. trackers: to log
    trials to, as for `Tracking`; not on a cluster. Raises UserError for a folder of another search,
    and as `Search.make_folds`.
    """
    with exclusive(out):
        for left in parts(out):
            left.unlink()
        folds = search.make_folds()
        head = _head(search, folds, space)
        trials = _read_trials(out / FILE, head)
        study = Study(space, search.request.task.seed, trials, jobs)
        todo = sorted({*range(count)} - {trial.number for trial in trials})
        if address is None:
            new_trials: Iterator[Trial | None] = _run_here(
                search, folds, study, todo, trackers, out
            )
        else:
            new_trials = _run_on_cluster(search, study, todo, head["key"], address)
        with bar(progress) as progress_bar:
            total = len(trials) + len(todo)
            task = progress_bar.add_task("trials", total=total, completed=len(trials), note="")
            for trial in new_trials:
                if trial:
                    trials = sorted([*trials, trial], key=attrgetter("number"))
                    _write_trials(out, head, trials)
                    progress_bar.advance(task)
        tuned = Tuned(tuple(trials))
        name = search.request.name
        best = {"method": name, **search.given, **qualified_settings(name, tuned.best.params)}
        write_text(out / BEST, to_yaml(best))
        write_text(out / PICTURE, draw_trials(tuned.trials, space))
        return tuned


def _head(search: Search, folds: Folds, space: Space) -> JsonObject:
    """Return the head of tune.json: what identifies a search, and facts about it."""
    request, lab = search.request, folds.lab
    backbone = lab.backbone(request.task.backbone)
    few = lab.draw(request.task)
    to_json = optuna().distributions.distribution_to_json
    return {
        "key": run_key(request.task, request.method, request.name, request.machine, backbone, few),
        "method": request.name,
        "task": request.task.values(),
        "folds": len(folds),
        "images": len(folds.rows),
        "space": {name: to_json(distribution) for name, distribution in space.items()},
        "versions": {**versions(), "optuna": optuna().__version__},
    }


def _read_trials(file: Path, head: Mapping[str, object]) -> list[Trial]:
    if not file.exists():
        return []
    content = read_json(file)
    if not isinstance(content, dict) or any(content.get(name) != head[name] for name in KEPT):
        raise UserError(
            f"{file}: a different search, or one on different images; choose another --out, or "
            "delete it"
        )
    names = [f.name for f in fields(Trial)]
    try:
        return [Trial(**{name: row[name] for name in names}) for row in content["trials"]]
    except (KeyError, TypeError):
        raise UserError(f"{file}: damaged; choose another --out, or delete it") from None


def _write_trials(out: Path, head: Mapping[str, object], trials: Collection[Trial]) -> None:
    rows = [{"accuracy": trial.accuracy, **asdict(trial)} for trial in trials]
    write_json(out / FILE, {**head, "trials": rows})


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


def _run_here(
    search: Search, folds: Folds, study: Study, todo: Sequence[int],
    trackers: Sequence[str] = (), out: Path = Path(),
) -> Iterator[Trial]:  # fmt: skip
    for number in todo:
        yield study.tell(run_trial(search, folds, *study.ask(number), trackers, out))


class Judge:
    """An actor that keeps the folds and their frozen activations. key: the search's key in the
    user's process."""

    def __init__(self, search: Search, key: str, home: Path, threads: float) -> None:
        self.search = search
        self.key = key
        self.node = settle(home, threads)

    def ready(self) -> None:
        """Make the folds. Raises UserError if data or backbone differ from those of the driver."""
        try:
            self.folds = self.search.make_folds()
            if _head(self.search, self.folds, {})["key"] != self.key:
                raise UserError("its data or backbone differ from those where the command runs")
        except UserError as error:
            raise UserError(f"node {self.node}: {error}; {SAME_PATH}") from None

    def do(self, work: tuple[int, dict[str, object]]) -> Trial:
        """Run a trial. work: its number and settings."""
        return run_trial(self.search, self.folds, *work)


def _run_on_cluster(
    search: Search, study: Study, todo: Sequence[int], key: str, address: str
) -> Iterator[Trial | None]:
    """Run trials on a cluster; yields None from time to time while none ends."""
    ray = ray_module()
    with connected(address):
        resources = shares(study.jobs, search.request.machine.device)
        actor = ray.remote(Judge).options(**resources)
        hire = partial(actor.remote, search, key, Path.cwd(), resources["num_cpus"])
        for result in share(hire, study.jobs, todo, lambda last, left, others: left[0], study.ask):
            yield study.tell(result[1]) if result else None


def add_tuned_rows(
    jobs: Iterable[Job], trials: int, values: Mapping[str, Mapping[str, object]]
) -> Iterator[Job]:
    """Follow each job by its tuned variant if the method has settings to try. values: as in `Plan`.
    Raises UserError if Optuna is not installed."""
    optuna()  # fails early if it is not installed
    for job in jobs:
        yield job
        method = load_method(job.method, {**values.get(job.method, {}), **dict(job.values)})
        searched = () if job.variant else _default_settings(method, job.method)
        if searched:
            changed = changed_settings(job.method, settings_of(method))
            label = name_with_settings(method.title, changed)
            variant = f"{label}, {TUNED} {trials} trials"
            yield replace(job, trials=trials, searched=searched, variant=variant)


def _default_settings(method: Method, name: str) -> tuple[str, ...]:
    try:
        return tuple(make_space(method, name))
    except UserError:  # no settings to try by default
        return ()


def tune_job(method: Method, job: Job, lab: Lab) -> tuple[Method, str, float]:
    """Return the method with the settings of the best trial, a sentence about them, and the seconds
    of the search.

    Answers of the folds are kept in the lab's folder, so a killed search resumes. Raises UserError
    if images are too few for folds, and if all trials failed.
    """
    space = make_space(method, job.method, job.searched)
    folds = _make_folds(job.task, lab, FOLDS)
    search = Search(Request(job.task, lab.machine, method, job.method))
    study = Study(space, job.task.seed, (), 1)
    trials = tuple(_run_here(search, folds, study, range(job.trials)))
    best, first = Tuned(trials).best, trials[0].accuracy
    before = "" if first is None else f", as given {first:.1f}"
    sentence = (
        f"{TUNED} {job.trials} trials on {len(folds)} folds of {len(folds.rows)} training images, "
        f"the best of which has {best.accuracy:.1f} %{before}"
    )
    seconds = sum(trial.seconds for trial in trials)
    return configured(method, best.params, job.method), sentence, seconds


TUNER = Tuner(add_tuned_rows, tune_job)


def draw_trials(trials: Sequence[Trial], space: Space) -> str:
    """Draw the trials with proposed settings (not the first) as parallel coordinates, in SVG: a
    line for each, the best in colour; accuracy is on the last axis."""
    shown = [trial for trial in trials if trial.right and trial.params]
    rows = sorted(shown, key=lambda trial: trial.accuracy or 0)
    names = [*space]
    width = 1.6 + 1.3 * len(names)
    with canvas(width, 3.2, "tune", "Settings and accuracy of every trial") as (axes, out):
        columns = [heights([trial.params[name] for trial in rows], space[name]) for name in names]
        accuracies = np.array([trial.accuracy for trial in rows], dtype=float)
        low, high = (accuracies.min(), accuracies.max()) if len(rows) else (0.0, 100.0)
        columns.append((accuracies - low) / ((high - low) or 1))
        best = max(1, math.ceil(COLOURED * len(rows)))
        for place, line in enumerate(zip(*columns, strict=True)):
            coloured = place >= len(rows) - best
            colour = COLOURS["adapted" if coloured else "faint"]
            width = 1.8 if coloured else 0.8
            axes.plot(line, color=colour, linewidth=width, zorder=1 + coloured)
        ticks = range(len(names) + 1)
        axes.set(xticks=ticks, yticks=[], ylim=(-0.12, 1.12), xlim=(-0.3, len(names) + 0.3))
        axes.set_xticklabels([*names, "accuracy, %"], rotation=20, ha="right")
        ends = [*(_labels(space[name]) for name in names), (f"{low:.1f}", f"{high:.1f}")]
        for place, (lowest, highest) in enumerate(ends):
            axes.text(place, -0.04, lowest, ha="center", va="top", fontsize=7)
            axes.text(place, 1.04, highest, ha="center", va="bottom", fontsize=7)
    return out[0]


def heights(values: Sequence[Any], distribution: Distribution) -> np.ndarray:
    """Return the heights [N], 0 to 1, of the values on the axis of their distribution."""
    if hasattr(distribution, "choices"):
        places = np.array([distribution.choices.index(value) for value in values])
        return places / max(len(distribution.choices) - 1, 1)
    scale = math.log if distribution.log else float
    low = scale(distribution.low)
    high = scale(distribution.high)
    return np.array([(scale(value) - low) / ((high - low) or 1) for value in values])


def _labels(distribution: Distribution) -> tuple[str, str]:
    """Return the texts at both ends of an axis."""
    if hasattr(distribution, "choices"):
        return str(distribution.choices[0]), str(distribution.choices[-1])
    return f"{distribution.low:.3g}", f"{distribution.high:.3g}"
