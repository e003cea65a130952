"""`bench --tune N`: adds a row for each method with the best settings of N trials on folds of the
run's own shots.

The first trial is the method as requested; N is the same for all methods. Each run searches on its
own, with its seed and shots, so nothing is chosen on images that another run is tested on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rmadapter.bench.search_space import optuna, space
from rmadapter.bench.tune import Search, Study, Tuned, judged
from rmadapter.errors import UserError
from rmadapter.methods.uses import TUNED
from rmadapter.runs.folds import FOLDS, Folds
from rmadapter.runs.request import Request
from rmadapter.settings import configured

if TYPE_CHECKING:
    from rmadapter.bench.protocols import Job
    from rmadapter.runs.run import Lab


def as_tuned(
    jobs: Iterable[Job], trials: int, values: Mapping[str, Mapping[str, Any]]
) -> Iterator[Job]:
    """The jobs, each followed by its tuned variant if the method has settings to try. values: as in
    `Plan`. Raises UserError if Optuna is not installed."""
    from rmadapter.methods import load_method

    optuna()  # fails early if it is not installed
    for job in jobs:
        yield job
        method = load_method(job.method, {**values.get(job.method, {}), **dict(job.values)})
        if not job.variant and (found := _searched(method, job.method)):
            yield replace(
                job,
                trials=trials,
                searched=found,
                variant=f"{method.title}, {TUNED} {trials} trials",
            )


def _searched(method: Any, name: str) -> tuple[str, ...]:
    try:
        return tuple(space(method, name))
    except UserError:  # no settings to try by default
        return ()


def tuned(method: Any, job: Job, lab: Lab) -> tuple[Any, str, float]:
    """The method with the settings of the best trial, a sentence about them, and the seconds of the
    search.

    Answers of the folds are kept in the lab's folder, so a killed search resumes. Raises UserError
    if images are too few for folds, and if all trials failed.
    """
    ranges, folds = space(method, job.method, job.searched), Folds.make(job.task, lab, FOLDS)
    if not folds:
        raise UserError(
            f"{job.task.data}: too few images per class for the folds that judge trials: give more shots"
        )
    search = Search(Request(job.task, lab.machine, method, job.method))
    study = Study(ranges, job.task.seed, (), 1)
    trials = [study.tell(judged(search, folds, *study.ask(number))) for number in range(job.trials)]
    best, first = Tuned(tuple(trials)).best, trials[0].accuracy
    before = "" if first is None else f", as given {first:.1f}"
    where = f"{len(folds)} folds of {len(folds.rows)} training images"
    told = f"{TUNED} {job.trials} trials on {where}, the best of which has {best.accuracy:.1f} %{before}"
    return configured(method, best.params, job.method), told, sum(trial.seconds for trial in trials)
