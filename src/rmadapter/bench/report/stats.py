"""Means with intervals over seeds, and methods compared over data sets.

Two methods: `paired` differences with Student's t and Wilcoxon's signed-rank test. Many methods:
mean ranks, Friedman's test, and Wilcoxon's test of every pair, after Demsar, "Statistical
Comparisons of Classifiers over Multiple Data Sets", JMLR 2006. Two methods are compared by their
own figures, not by mean ranks, which depend on the other methods (Benavoli et al., JMLR 2016).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np

from rmadapter.artifacts.record import Record
from rmadapter.bench.report.format import Cell, Table, TableRow
from rmadapter.metrics import confidence_interval, harmonic_mean

LEVEL, POWER = 0.05, 0.8  # of the tests
MIN_VARIANCE = 1e-16  # variance in points that is more than rounding
MIN_SETS = 3  # data sets below which no difference is tested
MIN_RANKED_METHODS, MIN_RANKED_SETS = 3, 4
HM_OF_MEANS = "HM of the means"

Key = TypeVar("Key")
DrawKey: TypeAlias = "tuple[str, int, int, str]"  # data, shots, seed, digest of the split
Figures: TypeAlias = "Mapping[str, Mapping[DrawKey, float]]"  # by data set, then by draw


def average(
    records: Sequence[Record], name: str, datasets: Sequence[str], seeds: Sequence[int]
) -> Cell:
    """Average a metric over data sets and seeds.

    Args:
        records: The records that have it.
        name: As `Record.metric` takes it, or HM_OF_MEANS: the HM of the mean base and the mean
            novel accuracy, the convention of the paper's averages.
        datasets: Data sets to average over.
        seeds: Seeds to average over.

    Returns:
        The mean with Student's t interval over the seeds' averages over data sets; empty if one
        figure is missing.
    """
    halves = ("base", "novel") if name == HM_OF_MEANS else (name,)
    known = {(record.task.data, record.task.seed): record for record in records}
    cells = [[known.get((dataset, seed)) for dataset in datasets] for seed in seeds]
    figures = np.array(
        [[[run and run.metric(half) for run in line] for line in cells] for half in halves],
        dtype=np.float64,  # which makes NaN of None
    )
    if not figures.size or np.isnan(figures).any():
        return Cell()
    per_seed = figures.mean(axis=2)  # [halves, seeds]
    means = [float(values.mean()) for values in per_seed]
    if name != HM_OF_MEANS:
        return Cell(means[0], half_width(per_seed[0]))
    hms = np.array([harmonic_mean(base, novel) for base, novel in per_seed.T])
    return Cell(harmonic_mean(*means), half_width(hms))


def half_width(values: np.ndarray) -> float | None:
    """Return half the width of the 95 % interval of a mean, by Student's t; None for a single
    value."""
    return confidence_interval(values) if len(values) > 1 else None


@dataclass(frozen=True)
class Paired:
    """A difference in points over data sets. Each data set counts once, with the mean of its pairs
    of runs.

    Attributes:
        sets: Number of data sets.
        pairs: Number of pairs of runs.
        difference: The difference.
        low, high: Its 95 % interval by `over_sets`; None for fewer than three data sets.
        ahead, behind: Numbers of data sets.
        t, wilcoxon: P-values; None for fewer than three data sets, and if there is nothing to test.
        could_show: As in `OverSets`.
        holm: `t`, corrected for the number of differences reported together; None if not
            corrected.
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
    could_show: float | None = None
    holm: float | None = None

    @property
    def verdict(self) -> str:
        """What the test shows. For a single difference, t below 0.05 means the same as an interval
        without 0."""
        if self.sets < MIN_SETS:
            return "one data set" if self.sets == 1 else "two data sets"
        p = self.t if self.holm is None else self.holm
        if p is None or p >= LEVEL:
            return "not shown"
        return "ahead" if self.difference > 0 else "behind"

    @property
    def conclusion(self) -> str:
        """The verdict; if nothing is shown, with the largest difference that the interval
        holds."""
        if self.verdict != "not shown" or self.low is None or self.high is None:
            return self.verdict
        return f"not shown, at most {max(-self.low, self.high):.1f}"


def paired(a: Sequence[Record], b: Sequence[Record], name: str) -> Paired | None:
    """Compare a with b (a minus b) in a metric, over pairs of the same data set, shots, seed and
    images; None if there is no pair.

    For "average", each target counts as a data set.
    """
    from scipy.stats import wilcoxon

    ours, theirs = figures_of(a, name), figures_of(b, name)
    draws = {
        dataset: [draw for draw in figures if draw in theirs.get(dataset, {})]
        for dataset, figures in ours.items()
    }
    per_set = [
        [ours[dataset][draw] - theirs[dataset][draw] for draw in some]
        for dataset, some in draws.items()
        if some
    ]
    if not per_set:
        return None
    # Accuracies are ratios of counts: what differs by rounding alone is a tie.
    d = np.round([fmean(differences) for differences in per_set], 9)
    mean = float(d.mean())
    half, p, could_show = over_sets(per_set)
    testable = len(d) >= MIN_SETS and bool(d.any())
    return Paired(
        sets=len(d),
        pairs=len({draw for some in draws.values() for draw in some}),
        difference=mean,
        low=None if half is None else mean - half,
        high=None if half is None else mean + half,
        ahead=int((d > 0).sum()),
        behind=int((d < 0).sum()),
        t=p,
        could_show=could_show,
        wilcoxon=float(wilcoxon(d[d != 0]).pvalue) if testable else None,
    )


class OverSets(NamedTuple):
    """A test of a mean over data sets; all is None for fewer than three sets, and where there is no
    variance to test with.

    Attributes:
        half: Half the width of the 95 % interval.
        p: P-value of Student's t.
        could_show: The true difference that POWER of such studies would show.
    """

    half: float | None = None
    p: float | None = None
    could_show: float | None = None


def over_sets(draws: Sequence[Sequence[float]]) -> OverSets:
    """Test the mean over k data sets of the means over their draws, by Student's t with k - 1
    degrees of freedom.

    The variance of the k means counts, but not less than what the draws within the sets make of it:
    means that agree by chance are no more certain. A set with one draw counts as the others do on
    average.

    Args:
        draws: Differences, by data set.
    """
    from scipy.special import nctdtrinc, stdtr, stdtrit

    k = len(draws)
    if k < MIN_SETS:
        return OverSets()
    means = np.round([fmean(values) for values in draws], 9)  # rounding alone is no variance
    within = [float(np.var(values, ddof=1)) / len(values) for values in draws if len(values) > 1]
    variance = max(float(means.var(ddof=1)), fmean(within or [0.0]))
    if variance < MIN_VARIANCE:
        return OverSets()
    error = float(np.sqrt(variance / k))
    least = float(stdtrit(k - 1, 1 - LEVEL / 2))  # |t| that is shown
    p = 2 * float(stdtr(k - 1, -abs(means.mean()) / error))
    return OverSets(least * error, p, float(nctdtrinc(k - 1, 1 - POWER, least)) * error)


def holm(p: Sequence[float]) -> np.ndarray:
    """Correct p values for their number (Holm, Scandinavian Journal of Statistics 1979): the
    probability that any is below a level by chance is at most that level."""
    order = np.argsort(p)
    corrected = np.empty(len(p))
    corrected[order] = np.maximum.accumulate(np.sort(p) * np.arange(len(p), 0, -1)).clip(max=1)
    return corrected


def correct(pairs: Mapping[Key, Paired]) -> dict[Key, Paired]:
    """Correct the p values of differences that are reported together for their number; the
    corrected values set the verdicts."""
    tested = {key: pair.t for key, pair in pairs.items() if pair.t is not None}
    corrected = dict(zip(tested, holm([*tested.values()]).tolist(), strict=True))
    return {key: replace(pair, holm=corrected.get(key)) for key, pair in pairs.items()}


@dataclass(frozen=True, eq=False)
class Ranks:
    """k methods on n data sets, best mean rank first. Rank 1 is the best, and ties share the mean
    of their ranks.

    Attributes:
        labels: The methods.
        values: Means over seeds, [n, k].
        ranks: Ranks, [n, k].
        chi2, p: Friedman's test.
        holm: P-value of each pair, corrected for the number of pairs, [k, k]; symmetric, 1 on the
            diagonal.
        left_out: Data sets and methods that are not compared.
    """

    labels: tuple[str, ...]
    values: np.ndarray
    ranks: np.ndarray
    chi2: float
    p: float
    holm: np.ndarray
    left_out: tuple[str, ...] = ()

    @property
    def cells(self) -> dict[str, Cell]:
        """The mean rank of each method with its 95 % interval, by Student's t over data sets."""
        columns = zip(self.labels, self.ranks.T, strict=True)
        return {label: Cell(float(one.mean()), half_width(one)) for label, one in columns}

    @property
    def differ(self) -> bool:
        """Whether Friedman's test shows that the methods differ."""
        return self.p < LEVEL

    @property
    def pairs(self) -> int:
        """The number of pairs of methods."""
        return len(self.labels) * (len(self.labels) - 1) // 2

    @property
    def least(self) -> float:
        """The smallest corrected p that so few data sets and so many pairs allow: all differences
        have one sign."""
        return min(1.0, self.pairs * 2.0 ** (1 - len(self.values)))

    def against(self, one: int, other: int) -> str:
        """Count the data sets on which `one` is better, level, worse; add ahead or behind if the
        corrected test says so."""
        from scipy.stats import rankdata

        d = self.values[:, one] - self.values[:, other]
        counts = "-".join(str(int(sign.sum())) for sign in (d > 0, d == 0, d < 0))
        if self.holm[one, other] >= LEVEL:
            return counts
        ahead = (np.sign(d) * rankdata(abs(d))).sum() > 0
        return f"{counts} {'ahead' if ahead else 'behind'}"

    def level(self) -> list[tuple[int, int]]:
        """Return (first, last) of the longest runs of two or more methods in which no two are shown
        to differ."""
        runs: list[tuple[int, int]] = []
        k = len(self.labels)
        for first in range(k):
            last = first
            while last + 1 < k and (self.holm[first : last + 1, last + 1] >= LEVEL).all():
                last += 1
            if last > first and (not runs or last > runs[-1][1]):
                runs.append((first, last))
        return runs


def rank_methods(rows: Mapping[str, Sequence[Record]], metric: str) -> Ranks | None:
    """Rank a block of data sets and methods without gaps, of all methods if that is not much
    smaller. Each data set counts once, with the mean over the seeds and images that all of these
    methods have; for "average", each target is a data set.

    None for fewer than three methods or four data sets.
    """
    figures = {label: figures_of(records, metric) for label, records in rows.items()}
    labels, sets = _block(figures)
    if len(labels) < MIN_RANKED_METHODS:
        return None
    draws = {
        name: sorted(set.intersection(*({*figures[label][name]} for label in labels)))
        for name in sets
    }
    sets = [name for name in sets if draws[name]]
    if len(sets) < MIN_RANKED_SETS:
        return None
    values = [
        [fmean(figures[label][name][draw] for draw in draws[name]) for label in labels]
        for name in sets
    ]
    other_sets = {name for of_method in figures.values() for name in of_method}.difference(sets)
    other_methods = [label for label in rows if label not in labels]
    return rank(labels, np.array(values), [*sorted(other_sets), *other_methods])


def rank(labels: Sequence[str], values: np.ndarray, left_out: Sequence[str] = ()) -> Ranks:
    """Rank methods on data sets.

    Args:
        labels: The k > 2 methods.
        values: Figures [n, k] on n data sets; larger is better.
        left_out: Data sets and methods that are not compared.
    """
    from scipy.stats import friedmanchisquare, rankdata, wilcoxon

    values = np.round(values, 9)  # as in `paired`
    ranks = rankdata(-values, axis=1)
    k = len(labels)
    order = np.argsort(ranks.mean(axis=0), kind="stable")
    values, ranks = values[:, order], ranks[:, order]
    chi2, p = friedmanchisquare(*values.T) if np.ptp(values, axis=1).any() else (0.0, 1.0)
    upper = np.triu_indices(k, 1)
    differences = [values[:, i] - values[:, j] for i, j in zip(*upper, strict=True)]
    corrected = np.ones((k, k))
    corrected[upper] = holm(
        [float(wilcoxon(d[d != 0]).pvalue) if d.any() else 1.0 for d in differences]
    )
    symmetric = np.minimum(corrected, corrected.T)
    sorted_labels = tuple(labels[i] for i in order)
    return Ranks(sorted_labels, values, ranks, float(chi2), float(p), symmetric, tuple(left_out))


def figures_of(records: Sequence[Record], metric: str) -> Figures:
    """Return a metric by data set and draw; for "average" by target, each of which counts as a data
    set."""
    figures: dict[str, dict[DrawKey, float]] = defaultdict(dict)
    for record in records:
        task = record.task
        draw = (task.data, task.shots, task.seed, record.split_digest)
        parts = {f"{task.data} to {target}": target for target in record.targets}
        for name, part in (parts if metric == "average" else {task.data: metric}).items():
            value = record.metric(part)
            if value is not None:
                figures[name][draw] = value
    return dict(figures)


def _block(figures: Mapping[str, Figures]) -> tuple[list[str], list[str]]:
    """Return methods and data sets without gaps: all methods if that keeps half of the largest
    block's cells, else the largest block."""
    counts = Counter(name for of_method in figures.values() for name in of_method)
    blocks = []
    for least in sorted({*counts.values()}):
        sets = sorted(name for name, count in counts.items() if count >= least)
        labels = [label for label, own in figures.items() if all(name in own for name in sets)]
        if len(labels) >= MIN_RANKED_METHODS and len(sets) >= MIN_RANKED_SETS:
            blocks.append((labels, sets))
    if not blocks:
        return [], []
    largest = max(blocks, key=_cells)
    most_methods = max(blocks, key=lambda block: (len(block[0]), len(block[1])))
    return most_methods if 2 * _cells(most_methods) >= _cells(largest) else largest


def _cells(block: tuple[list[str], list[str]]) -> int:
    return len(block[0]) * len(block[1])


def rank_table(
    ranks: Ranks, name: str, figure: str, first: str, facts: str, notes: Sequence[str] = ()
) -> Table:
    """Make a table of mean ranks, and of each method against every other.

    Args:
        ranks: The ranks.
        name: Name of the table.
        figure: What is ranked.
        first: Heading of the column of methods.
        facts: What is needed to repeat it.
        notes: Further footnotes.
    """
    n, k = ranks.values.shape
    rows = []
    for i, (label, mean) in enumerate(ranks.cells.items()):
        against = (Cell("" if i == j else ranks.against(i, j)) for j in range(k))
        rows.append(TableRow(label, (mean, *against)))
    shown = "are shown to differ" if ranks.differ else "are not shown to differ"
    footnotes = [
        f"Friedman's test over n = {n} data sets: chi-square {ranks.chi2:.2f}, p {ranks.p:.2g}; "
        f"the {k} ranks {shown}. 1 is the best rank; the interval of a mean rank is Student's t "
        "over data sets.",
        "Column 1 is the method of row 1, and so on. A cell counts the data sets on which the row "
        "is better, level and worse than the column. Ahead and behind stand where Wilcoxon's "
        f"signed-rank test over n = {n} data sets, corrected by Holm for all {ranks.pairs} pairs, "
        f"gives p below {LEVEL}.",
    ]
    if ranks.least >= LEVEL:
        footnotes.append(
            f"So few sets cannot show it: of a method that wins on all {n}, p would be "
            f"{ranks.least:.2g}."
        )
    if ranks.left_out:
        footnotes.append(f"Left out, as the table has no gaps: {', '.join(ranks.left_out)}.")
    heads = (first, "mean rank", *map(str, range(1, k + 1)))
    title = f"Ranks in {figure} over n = {n} data sets"
    return Table(name, title, heads, tuple(rows), facts, (*footnotes, *notes))
