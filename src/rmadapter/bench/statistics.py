"""Means with intervals over seeds, and paired differences between two methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rmadapter.bench.records import Run
from rmadapter.bench.render import Cell
from rmadapter.metrics import confidence_interval, harmonic_mean

Measure = Callable[[Run], "float | None"]
RESAMPLES = 10_000  # of the bootstrap


def metric(name: str) -> Measure:
    return lambda run: run.metric(name)


def summary(runs: Sequence[Run], measure: Measure, datasets: Sequence[str], seeds: Sequence[int]) -> Cell:
    """Mean over data sets and seeds; the interval is that of the seeds' averages over data sets. Empty if one lacks."""
    per_seed = _per_seed(runs, measure, datasets, seeds)
    return Cell() if per_seed is None else Cell(float(per_seed.mean()), _interval(per_seed))


def hm_of_means(runs: Sequence[Run], datasets: Sequence[str], seeds: Sequence[int]) -> Cell:
    """HM of the mean base and the mean novel accuracy, the convention of the paper's averages."""
    halves = [_per_seed(runs, metric(half), datasets, seeds) for half in ("base", "novel")]
    if halves[0] is None or halves[1] is None:
        return Cell()
    values = [harmonic_mean(float(b), float(n)) for b, n in zip(*halves, strict=True)]
    return Cell(harmonic_mean(float(halves[0].mean()), float(halves[1].mean())), _interval(values))


def _per_seed(
    runs: Sequence[Run], measure: Measure, datasets: Sequence[str], seeds: Sequence[int]
) -> np.ndarray | None:
    """The average over data sets of each seed; None when one of the figures lacks."""
    found = {(run.dataset, run.seed): measure(run) for run in runs}
    values = [[found.get((dataset, seed)) for dataset in datasets] for seed in seeds]
    if not values or not datasets or any(value is None for line in values for value in line):
        return None
    return np.array(values, dtype=np.float64).mean(axis=1)


def _interval(values: Sequence[float] | np.ndarray) -> float | None:
    return confidence_interval(values) if len(values) > 1 else None


@dataclass(frozen=True)
class Paired:
    """Differences in points over pairs of runs; low and high are None for one pair, p is None where all are ties."""

    pairs: int
    difference: float
    low: float | None
    high: float | None
    ahead: int
    behind: int
    p: float | None


def paired(a: Sequence[Run], b: Sequence[Run], measure: Measure) -> Paired | None:
    """a minus b over their common (data set, shots, seed, images); None when there is no pair.

    The interval is the percentile bootstrap of the mean over the pairs, p the exact two-sided binomial test of the
    signs without ties.
    """
    from scipy.stats import binomtest

    def key(run: Run) -> tuple[str, int, int, str]:
        return run.dataset, run.shots, run.seed, run.split_digest

    other = {key(run): measure(run) for run in b}
    both = [(x, y) for run in a if (x := measure(run)) is not None and (y := other.get(key(run))) is not None]
    if not both:
        return None
    # Accuracies are ratios of counts: what differs by rounding alone is a tie.
    d = np.round([x - y for x, y in both], 9)
    low, high = None, None
    if len(d) > 1:
        means = d[np.random.default_rng(0).integers(len(d), size=(RESAMPLES, len(d)))].mean(axis=1)
        low, high = map(float, np.percentile(means, [2.5, 97.5]))
    ahead, behind = int((d > 0).sum()), int((d < 0).sum())
    p = float(binomtest(ahead, ahead + behind).pvalue) if ahead + behind else None
    return Paired(len(d), float(d.mean()), low, high, ahead, behind, p)
