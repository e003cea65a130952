"""Means with intervals over seeds, and differences between two methods, tested over data sets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TypeVar

import numpy as np

from rmadapter.artifacts.record import Record
from rmadapter.bench.report.format import Cell
from rmadapter.metrics import confidence_interval, harmonic_mean

LEVEL = 0.05  # of the t test
ENOUGH = 3  # data sets below which nothing is tested
HM_OF_MEANS = "HM of the means"
Key = TypeVar("Key")


def average(
    records: Sequence[Record], name: str, datasets: Sequence[str], seeds: Sequence[int]
) -> Cell:
    """Mean of a metric over data sets and seeds; empty if one figure is missing.

    The interval is Student's t over the seeds' averages over data sets. name: as `Record.metric`
    takes it, or HM_OF_MEANS: the HM of the mean base and the mean novel accuracy, the convention of
    the paper's averages.
    """
    parts = ("base", "novel") if name == HM_OF_MEANS else (name,)
    found = [_per_seed(records, part, datasets, seeds) for part in parts]
    known = [values for values in found if values is not None]
    if len(known) < len(parts):
        return Cell()
    if name != HM_OF_MEANS:
        return Cell(float(known[0].mean()), half_width(known[0]))
    per_seed = np.array([harmonic_mean(base, novel) for base, novel in zip(*known, strict=True)])
    return Cell(harmonic_mean(*(float(values.mean()) for values in known)), half_width(per_seed))


def _per_seed(
    records: Sequence[Record], name: str, datasets: Sequence[str], seeds: Sequence[int]
) -> np.ndarray | None:
    """[seeds], the average over data sets; None if one of the figures is missing."""
    found = {(record.task.data, record.task.seed): record.metric(name) for record in records}
    values = [[found.get((dataset, seed)) for dataset in datasets] for seed in seeds]
    if not values or not datasets or any(value is None for line in values for value in line):
        return None
    return np.array(values, dtype=np.float64).mean(axis=1)


def half_width(values: np.ndarray) -> float | None:
    """Half width of the 95 % interval of a mean, by Student's t; None for a single value."""
    return confidence_interval(values) if len(values) > 1 else None


@dataclass(frozen=True)
class Paired:
    """A difference in points over data sets. Each data set counts once, with the mean of its pairs
    of runs.

    low, high: 95 % interval by Student's t; None for one data set. ahead, behind: numbers of data
    sets. t, wilcoxon: p values; None for fewer than three data sets, or if there is nothing to
    test. holm: t, corrected for the number of differences reported together; None if not corrected.
    """

    sets: int
    pairs: int
    difference: float
    low: float | None
    high: float | None
    ahead: int
    behind: int
    t: float | None
    wilcoxon: float | None
    holm: float | None = None

    @property
    def verdict(self) -> str:
        """What the test shows. For a single difference, t below 0.05 means the same as an interval
        without 0."""
        if self.sets < ENOUGH:
            return "one data set" if self.sets == 1 else "two data sets"
        p = self.t if self.holm is None else self.holm
        if p is None or p >= LEVEL:
            return "not shown"
        return "ahead" if self.difference > 0 else "behind"


def paired(a: Sequence[Record], b: Sequence[Record], name: str) -> Paired | None:
    """a minus b in a metric, over pairs of the same data set, shots, seed and images; None if there
    is no pair.

    For "average", each target counts as a data set.
    """
    from scipy.stats import wilcoxon

    others = {drawn(record): record for record in b}
    of_set: dict[tuple[str, str], list[float]] = defaultdict(list)
    pairs = set()
    for record in a:
        other = others.get(drawn(record))
        for part in record.targets if name == "average" else [name]:
            x, y = record.metric(part), None if other is None else other.metric(part)
            if x is not None and y is not None:
                of_set[record.task.data, part].append(x - y)
                pairs.add(drawn(record))
    if not pairs:
        return None
    # Accuracies are ratios of counts: what differs by rounding alone is a tie.
    d = np.round([fmean(differences) for differences in of_set.values()], 9)
    mean, half, enough = float(d.mean()), half_width(d), len(d) >= ENOUGH
    return Paired(
        sets=len(d),
        pairs=len(pairs),
        difference=mean,
        low=None if half is None else mean - half,
        high=None if half is None else mean + half,
        ahead=int((d > 0).sum()),
        behind=int((d < 0).sum()),
        t=_student(d) if enough and d.any() else None,
        wilcoxon=float(wilcoxon(d[d != 0]).pvalue) if enough and d.any() else None,
    )


def _student(d: np.ndarray) -> float:
    """p of Student's t; 0 for equal differences, whose interval is their value alone."""
    from scipy.stats import ttest_1samp

    return float(ttest_1samp(d, 0).pvalue) if np.ptp(d) > 0 else 0.0


def drawn(record: Record) -> tuple[str, int, int, str]:
    """A key that is equal for runs trained on the same images."""
    return record.task.data, record.task.shots, record.task.seed, record.split_digest


def holm(p: Sequence[float]) -> np.ndarray:
    """p values corrected for their number (Holm, Scandinavian Journal of Statistics 1979): the
    probability that any is below a level by chance is at most that level."""
    order, corrected = np.argsort(p), np.empty(len(p))
    corrected[order] = np.maximum.accumulate(np.sort(p) * np.arange(len(p), 0, -1)).clip(max=1)
    return corrected


def corrected(pairs: Mapping[Key, Paired]) -> dict[Key, Paired]:
    """Differences that are reported together, with p values corrected for their number, which set
    the verdicts."""
    tested = {key: pair.t for key, pair in pairs.items() if pair.t is not None}
    found = dict(zip(tested, holm([*tested.values()]).tolist(), strict=True))
    return {key: replace(pair, holm=found.get(key)) for key, pair in pairs.items()}
