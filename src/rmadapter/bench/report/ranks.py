"""Compare many methods over data sets: mean ranks, Friedman's test, and Wilcoxon's signed-rank test
of every pair.

After Demsar, "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 2006. Two
methods are compared by their own figures, not by mean ranks, which depend on the other methods
(Benavoli et al., JMLR 2016).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeAlias

import numpy as np

from rmadapter.artifacts.record import Record
from rmadapter.bench.report.format import Cell, Row, Table
from rmadapter.bench.report.stats import LEVEL, drawn, half_width, holm

FEWEST_METHODS, FEWEST_SETS = 3, 4
Figures: TypeAlias = (
    "Mapping[str, Mapping[tuple[str, int, int, str], float]]"  # by data set, then by what was drawn
)


@dataclass(frozen=True, eq=False)
class Ranks:
    """k methods on n data sets, best mean rank first. Rank 1 is the best, and ties share the mean
    of their ranks.

    values: [n, k], means over seeds. ranks: [n, k]. chi2, p: Friedman's. holm: [k, k], symmetric, p
    of each pair, corrected for the number of pairs; 1 on the diagonal. left_out: data sets and
    methods that are not compared.
    """

    labels: tuple[str, ...]
    values: np.ndarray
    ranks: np.ndarray
    chi2: float
    p: float
    holm: np.ndarray
    left_out: tuple[str, ...] = ()

    @property
    def mean(self) -> list[float]:
        """The mean rank of each method."""
        return [float(column.mean()) for column in self.ranks.T]

    @property
    def half_widths(self) -> list[float]:
        """Half width of the 95 % interval of each mean rank, by Student's t over data sets."""
        return [half_width(column) or 0.0 for column in self.ranks.T]

    @property
    def pairs(self) -> int:
        return len(self.labels) * (len(self.labels) - 1) // 2

    @property
    def least(self) -> float:
        """The smallest corrected p that so few data sets and so many pairs allow: all differences
        have one sign."""
        return min(1.0, self.pairs * 2.0 ** (1 - len(self.values)))

    def against(self, one: int, other: int) -> str:
        """On how many data sets `one` is better, level, worse; and ahead or behind, if the
        corrected test says so."""
        from scipy.stats import rankdata

        d = self.values[:, one] - self.values[:, other]
        told = "-".join(str(int(some.sum())) for some in (d > 0, d == 0, d < 0))
        if self.holm[one, other] >= LEVEL:
            return told
        return f"{told} {'ahead' if (np.sign(d) * rankdata(abs(d))).sum() > 0 else 'behind'}"

    def level(self) -> list[tuple[int, int]]:
        """(first, last) of the longest runs of two or more methods in which no two are shown to
        differ."""
        runs: list[tuple[int, int]] = []
        for first in range(len(self.labels)):
            last = first
            while (
                last + 1 < len(self.labels)
                and (self.holm[first : last + 1, last + 1] >= LEVEL).all()
            ):
                last += 1
            if last > first and (not runs or last > runs[-1][1]):
                runs.append((first, last))
        return runs


def ranked(rows: Mapping[str, Sequence[Record]], metric: str) -> Ranks | None:
    """Rank a block of data sets and methods without gaps, of all methods if that is not much
    smaller. Each data set counts once, with the mean over the seeds and images that all of these
    methods have; for "average", each target is a data set.

    None for fewer than three methods or four data sets.
    """
    found = {label: _figures(records, metric) for label, records in rows.items()}
    labels, sets = _block(found)
    if len(labels) < FEWEST_METHODS:
        return None
    cells = {
        name: sorted(set.intersection(*({*found[label][name]} for label in labels)))
        for name in sets
    }
    sets = [name for name in sets if cells[name]]
    if len(sets) < FEWEST_SETS:
        return None
    values = [
        [fmean(found[label][name][cell] for cell in cells[name]) for label in labels]
        for name in sets
    ]
    rest = {name for figures in found.values() for name in figures}.difference(sets)
    return compare(
        labels, np.array(values), [*sorted(rest), *(label for label in rows if label not in labels)]
    )


def compare(labels: Sequence[str], values: np.ndarray, left_out: Sequence[str] = ()) -> Ranks:
    """Rank k > 2 methods on n data sets. values: [n, k], larger is better."""
    from scipy.stats import friedmanchisquare, rankdata, wilcoxon

    values = np.round(
        values, 9
    )  # accuracies are ratios of counts: what differs by rounding alone is a tie
    ranks, k = rankdata(-values, axis=1), len(labels)
    order = np.argsort(ranks.mean(axis=0), kind="stable")
    values, ranks, which = values[:, order], ranks[:, order], np.triu_indices(k, 1)
    chi2, p = friedmanchisquare(*values.T) if np.ptp(values, axis=1).any() else (0.0, 1.0)
    differences = [values[:, i] - values[:, j] for i, j in zip(*which, strict=True)]
    corrected = np.ones((k, k))
    corrected[which] = holm(
        [float(wilcoxon(d[d != 0]).pvalue) if d.any() else 1.0 for d in differences]
    )
    both = np.minimum(corrected, corrected.T)
    return Ranks(
        tuple(labels[i] for i in order), values, ranks, float(chi2), float(p), both, tuple(left_out)
    )


def _figures(records: Sequence[Record], metric: str) -> Figures:
    found: dict[str, dict[tuple[str, int, int, str], float]] = defaultdict(dict)
    for record in records:
        for part in record.targets if metric == "average" else [metric]:
            value = record.metric(part)
            if value is not None:
                name = f"{record.task.data} to {part}" if metric == "average" else record.task.data
                found[name][drawn(record)] = value
    return found


def _block(found: Mapping[str, Figures]) -> tuple[list[str], list[str]]:
    """Methods and data sets without gaps: all methods if that keeps half of the largest block's
    cells, else it."""
    counts = Counter(name for figures in found.values() for name in figures)
    blocks = []
    for least in sorted({*counts.values()}):
        sets = sorted(name for name, count in counts.items() if count >= least)
        labels = [
            label for label, figures in found.items() if all(name in figures for name in sets)
        ]
        if len(labels) >= FEWEST_METHODS and len(sets) >= FEWEST_SETS:
            blocks.append((labels, sets))
    if not blocks:
        return [], []
    most = max(blocks, key=_cells)
    whole = max(blocks, key=lambda block: (len(block[0]), len(block[1])))
    return whole if 2 * _cells(whole) >= _cells(most) else most


def _cells(block: tuple[list[str], list[str]]) -> int:
    return len(block[0]) * len(block[1])


def to_table(found: Ranks, name: str, figure: str, first: str, facts: str) -> Table:
    """Mean ranks, and each method against every other. first: heading of the column of methods."""
    n, k = found.values.shape
    lines = [
        Row(
            label,
            (Cell(rank, half), *(Cell("" if i == j else found.against(i, j)) for j in range(k))),
        )
        for i, (label, rank, half) in enumerate(
            zip(found.labels, found.mean, found.half_widths, strict=True)
        )
    ]
    shown = "are shown to differ" if found.p < LEVEL else "are not shown to differ"
    notes = [
        f"Friedman's test over n = {n} data sets: chi-square {found.chi2:.2f}, p {found.p:.2g}; the {k} ranks {shown}. "
        "1 is the best rank; the interval of a mean rank is Student's t over data sets.",
        "Column 1 is the method of row 1, and so on. A cell counts the data sets on which the row is better, level and "
        "worse than the column. Ahead and behind stand where Wilcoxon's signed-rank test over "
        f"n = {n} data sets, corrected by Holm for all {found.pairs} pairs, gives p below {LEVEL}.",
    ]
    if found.least >= LEVEL:
        notes.append(
            f"So few sets cannot show it: of a method that wins on all {n}, p would be {found.least:.2g}."
        )
    if found.left_out:
        notes.append(f"Left out, as the table has no gaps: {', '.join(found.left_out)}.")
    heads = (first, "mean rank", *map(str, range(1, k + 1)))
    return Table(
        name, f"Ranks in {figure} over n = {n} data sets", heads, tuple(lines), facts, tuple(notes)
    )
