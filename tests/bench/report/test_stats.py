"""Means, paired differences and ranks: by hand, by scipy, and against published examples."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import ArrayLike
from scipy import stats

from rmadapter.artifacts.record import Record
from rmadapter.bench.report.stats import (
    HM_OF_MEANS,
    Paired,
    Ranks,
    average,
    correct,
    holm,
    over_sets,
    paired,
    rank,
    rank_methods,
    rank_table,
)
from tests.helpers.synthetic_runs import record

BASE = {
    ("a", 1): 60.0, ("a", 2): 62.0, ("a", 3): 61.0, ("b", 1): 80.0, ("b", 2): 79.0, ("b", 3): 84.0,
}  # fmt: skip
RUNS = [
    record("mma", data, seed, {"base": base, "novel": base - 20})
    for (data, seed), base in BASE.items()
]


def with_bases(method: str, bases: np.ndarray) -> list[Record]:
    """bases: [data sets, seeds]"""
    return [
        record(method, f"set{place}", seed, {"base": float(base), "novel": 40.0})
        for place, line in enumerate(bases)
        for seed, base in enumerate(line)
    ]


def compared(a: list[Record], b: list[Record], name: str = "base") -> Paired:
    found = paired(a, b, name)
    assert found is not None
    return found


def difference(a: ArrayLike, b: ArrayLike) -> Paired:
    """Compare two methods by their bases [data sets, seeds]."""
    return compared(with_bases("rmadapter", np.array(a)), with_bases("mma", np.array(b)))


def mean_ranks(ranks: Ranks) -> list[float]:
    return [cell.number for cell in ranks.cells.values()]


def ranked(rows: dict[str, list[Record]], metric: str = "base") -> Ranks:
    found = rank_methods(rows, metric)
    assert found is not None
    return found


def test_the_average_is_the_mean_with_students_interval_over_seeds() -> None:
    per_seed = [70.0, 70.5, 72.5]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(per_seed), scale=stats.sem(per_seed))
    found = average(RUNS, "base", ["a", "b"], [1, 2, 3])
    assert found.value == pytest.approx(np.mean(per_seed))
    assert found.interval == pytest.approx((high - low) / 2)


def test_one_seed_has_no_interval_and_a_missing_cell_no_mean() -> None:
    assert average(RUNS, "base", ["a", "b"], [1]).interval is None
    assert average(RUNS, "base", ["a", "c"], [1, 2]).value is None
    assert average(RUNS, "hm", [], [1]).value is None
    unnamed = [record("probe", "a", 1, {"base": 70.0, "novel": None})]
    assert average(unnamed, "novel", ["a"], [1]).value is None
    assert average(unnamed, HM_OF_MEANS, ["a"], [1]).value is None


def test_the_two_conventions_of_the_average_hm_differ() -> None:
    base, novel = np.mean(list(BASE.values())), np.mean(list(BASE.values())) - 20
    assert average(RUNS, HM_OF_MEANS, ["a", "b"], [1, 2, 3]).value == pytest.approx(
        stats.hmean([base, novel])
    )
    of_hms = np.mean([stats.hmean([b, b - 20]) for b in BASE.values()])
    assert average(RUNS, "hm", ["a", "b"], [1, 2, 3]).value == pytest.approx(of_hms)
    assert abs(of_hms - stats.hmean([base, novel])) > 0.04


@pytest.mark.parametrize(
    ("gain", "verdict"), [(2.0, "ahead"), (0.0, "not shown"), (-2.0, "behind")]
)
def test_a_difference_is_tested_over_data_sets(gain: float, verdict: str) -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(60 + gain, 0.3, (6, 3)), rng.normal(60, 0.3, (6, 3))
    b[4] = a[4]  # a tie
    found = difference(a, b)
    d = (a - b).mean(axis=1)
    low, high = stats.t.interval(0.95, 5, loc=d.mean(), scale=stats.sem(d))
    assert (found.difference, found.low, found.high) == pytest.approx((d.mean(), low, high))
    assert (found.sets, found.pairs) == (6, 18)
    assert (found.ahead, found.behind) == ((d > 1e-9).sum(), (d < -1e-9).sum())
    assert found.ahead + found.behind == 5
    assert found.t == pytest.approx(stats.ttest_rel(a.mean(axis=1), b.mean(axis=1)).pvalue)
    assert found.wilcoxon == pytest.approx(stats.wilcoxon(np.delete(d, 4)).pvalue)
    assert found.verdict == verdict
    assert found.t is not None
    assert (found.t < 0.05) == (low > 0 or high < 0)


def test_equal_differences_of_single_draws_cannot_be_tested() -> None:
    """Three sets of 150 images that differ by one image each are no proof."""
    for points in (10.0, 0.0):
        found = difference(np.full((4, 1), 60.0), np.full((4, 1), 60.0 - points))
        assert (found.low, found.t, found.could_show) == (None, None, None)
        assert (found.difference, found.conclusion) == (points, "not shown")


def test_set_means_that_agree_by_chance_are_as_uncertain_as_their_draws() -> None:
    gains = [[9.3, 0.0, -6.0], [-0.4, 0.9, 2.8], [1.0, 1.2, 1.1], [1.3, 1.3, 1.4]]
    found = difference(60 + np.array(gains), np.full((4, 3), 60.0))
    means = np.mean(gains, axis=1)
    error = np.sqrt(np.mean([np.var(values, ddof=1) / 3 for values in gains]) / 4)
    assert stats.ttest_1samp(means, 0).pvalue < 0.001
    assert error > 5 * stats.sem(means)
    half = stats.t.ppf(0.975, 3) * error
    assert found.low == pytest.approx(means.mean() - half)
    assert found.t == pytest.approx(2 * stats.t.sf(means.mean() / error, 3))
    assert found.conclusion == f"not shown, at most {means.mean() + half:.1f}"
    single = [*gains[:3], [1.3]]  # counts as the others do on average
    within = np.mean([np.var(values, ddof=1) / 3 for values in gains[:3]])
    half_width = over_sets(single).half
    assert half_width == pytest.approx(stats.t.ppf(0.975, 3) * np.sqrt(within / 4))


@pytest.mark.parametrize("sets", [3, 4, 15])
def test_what_could_be_shown_is_shown_in_four_of_five_studies(sets: int) -> None:
    spread = np.linspace(-1, 1, sets)
    spread /= spread.std(ddof=1)
    could_show = over_sets([[value] for value in spread]).could_show
    assert could_show is not None
    rng = np.random.default_rng(0)
    studies = rng.normal(could_show, 1, (20_000, sets))
    shown = stats.ttest_1samp(studies, 0, axis=1).pvalue < 0.05
    assert np.mean(shown) == pytest.approx(0.8, abs=0.01)


def test_more_seeds_are_no_more_data_sets() -> None:
    d = np.array([[1.0, 1.0], [2.0, 2.0], [4.0, 4.0]])
    few, many = (difference(60 + x, 60 + 0 * x) for x in (d, np.tile(d, 50)))
    assert (few.t, few.low, few.conclusion) == (many.t, many.low, "not shown, at most 6.1")
    assert (few.pairs, many.pairs) == (6, 300)


def test_fewer_than_three_data_sets_are_not_tested() -> None:
    one = difference([[61.0, 62.0]], [[60.0, 60.0]])
    assert (one.low, one.t, one.wilcoxon, one.verdict) == (None, None, None, "one data set")
    two = difference([[61.0, 62.0], [61.0, 61.0]], np.full((2, 2), 60.0))
    assert (two.low, two.high) == (None, None)
    assert (two.t, two.wilcoxon, two.verdict) == (None, None, "two data sets")


def test_a_difference_of_rounding_is_a_tie() -> None:
    found = difference([[0.1 + 0.2]], [[0.3]])
    assert (found.ahead, found.behind, found.difference) == (0, 0, 0)


def test_only_runs_on_the_same_images_are_paired() -> None:
    mine = [record("rmadapter", "a", seed, {"base": 60.0 + seed}) for seed in (0, 1)]
    other = [
        record("mma", "a", 0, {"base": 50.0}),
        record("mma", "a", 1, {"base": 50.0}, split_digest="another"),
    ]
    found = compared(mine, other)
    assert (found.pairs, found.difference) == (1, 10.0)
    assert paired(mine, [record("mma", "b", 0, {"base": 50.0})], "base") is None


def test_each_target_of_an_average_counts_as_a_data_set() -> None:
    gains = {"x": 1.0, "y": 2.0, "z": 4.5}
    mine, other = (
        [
            record(m, "s", seed, {"all": 70.0, **{t: 50.0 + sign * g for t, g in gains.items()}})
            for seed in (1, 2)
        ]
        for m, sign in (("rmadapter", 1), ("mma", 0))
    )
    found = compared(mine, other, "average")
    assert (found.sets, found.pairs, found.difference) == (3, 2, 2.5)
    assert found.t == pytest.approx(stats.ttest_1samp(list(gains.values()), 0).pvalue)


def test_verdicts_are_corrected_for_the_number_of_differences() -> None:
    a = with_bases("a", 60 + np.array([[1.0], [1.5], [2.0]]))
    near, far = (compared(a, with_bases("b", np.full((3, 1), base))) for base in (60.0, 45.0))
    assert (near.verdict, far.verdict) == ("ahead", "ahead")
    found = correct({"near": near, "far": far, "itself": compared(a, a)})
    assert [pair.verdict for pair in found.values()] == ["ahead", "ahead", "not shown"]
    assert far.t is not None
    assert found["far"].holm == 2 * far.t < (near.t or 0) == found["near"].holm
    many = correct({"near": near, "far": far, "again": near})  # 0.035 counts twice
    assert [pair.verdict for pair in many.values()] == ["not shown", "ahead", "not shown"]
    assert correct({}) == {}


# Demsar, JMLR 2006, Table 6: AUC of four ways of C4.5 on 14 data sets of UCI.
C45 = ("C4.5", "C4.5+m", "C4.5+cf", "C4.5+m+cf")
AUC = np.array(
    [
        [0.763, 0.768, 0.771, 0.798], [0.599, 0.591, 0.590, 0.569], [0.954, 0.971, 0.968, 0.967],
        [0.628, 0.661, 0.654, 0.657], [0.882, 0.888, 0.886, 0.898], [0.936, 0.931, 0.916, 0.931],
        [0.661, 0.668, 0.609, 0.685], [0.583, 0.583, 0.563, 0.625], [0.775, 0.838, 0.866, 0.875],
        [1.000, 1.000, 1.000, 1.000], [0.940, 0.962, 0.965, 0.962], [0.619, 0.666, 0.614, 0.669],
        [0.972, 0.981, 0.975, 0.975], [0.957, 0.978, 0.946, 0.970],
    ]
)  # fmt: skip
PRINTED = {"C4.5": 3.143, "C4.5+m": 2.000, "C4.5+cf": 2.893, "C4.5+m+cf": 1.964}
# He ranks voting's last two 2 and 3, by digits that are not printed; from what is printed, both are
# 2.5.
UNPRINTED = {"C4.5+cf": 0.5 / 14, "C4.5+m+cf": -0.5 / 14}


def runs(
    values: dict[str, list[float]], seeds: tuple[int, ...] = (1, 2), **fields: str
) -> dict[str, list[Record]]:
    """Method -> records of set 0, set 1, ..., whose seeds differ by a point on either side of the
    figure."""
    spread = np.linspace(-1, 1, len(seeds))
    return {
        method: [
            record(method, f"set {number}", seed, {"base": value + off, "novel": 50.0}, **fields)
            for number, value in enumerate(own)
            for seed, off in zip(seeds, spread, strict=True)
        ]
        for method, own in values.items()
    }


def test_the_published_example(monkeypatch: pytest.MonkeyPatch) -> None:
    # seconds, where there are ties
    monkeypatch.setattr("scipy.stats.wilcoxon", lambda d: SimpleNamespace(pvalue=1.0))
    found = rank(C45, AUC)
    for label, mean in zip(found.labels, mean_ranks(found), strict=True):
        assert mean == pytest.approx(PRINTED[label] + UNPRINTED.get(label, 0), abs=6e-4)
    # Friedman's chi-square as he writes it, from mean ranks, without the correction for ties
    n, k = AUC.shape

    def chi2(ranks: Iterable[float]) -> float:
        return 12 * n / (k * (k + 1)) * (sum(rank**2 for rank in ranks) - k * (k + 1) ** 2 / 4)

    assert chi2(PRINTED.values()) == pytest.approx(9.28, abs=0.01)
    ties = 4 * (2**3 - 2) + 4**3 - 4  # iris, lung cancer, primary tumor and voting; mushroom
    assert found.chi2 == pytest.approx(chi2(mean_ranks(found)) / (1 - ties / (n * k * (k**2 - 1))))
    assert found.p == pytest.approx(stats.chi2.sf(found.chi2, k - 1))


def test_pairs_are_wilcoxons_corrected_for_all_of_them() -> None:
    """Six sets, all differences of one sign and without ties: p = 2 / 2**6, exactly, of each of
    three pairs."""
    base = np.array([50.0, 52.0, 55.0, 59.0, 64.0, 70.0])
    values = np.stack([base, base + np.arange(1, 7), base + np.arange(9, 20, 2)], 1)
    found = rank(("a", "b", "c"), values)
    assert found.labels == ("c", "b", "a")
    np.testing.assert_allclose(found.holm, 3 * 2 / 2**6 * (1 - np.eye(3)) + np.eye(3))
    assert found.least == pytest.approx(3 * 2 / 2**6)
    assert found.against(0, 2) == "6-0-0", "0.094 shows nothing"
    assert found.level() == [(0, 2)]


def test_holms_correction_is_that_of_r() -> None:
    # R: p.adjust(c(0.04, 0.01, 0.03, 0.005), "holm")
    np.testing.assert_allclose(holm([0.04, 0.01, 0.03, 0.005]), [0.06, 0.03, 0.06, 0.02])
    assert holm([0.5, 0.9]).tolist() == [1.0, 1.0]
    assert holm([]).tolist() == []


def test_a_comparison_is_named_only_if_the_corrected_test_shows_it() -> None:
    rng = np.random.default_rng(4)
    base = rng.uniform(50, 80, 9)
    good, poor = base + rng.uniform(1, 2, 9), base - rng.uniform(5, 6, 9)
    level = base + np.array([0.3, -0.3, 0.2, -0.1, 0.1, -0.2, 0.4, -0.4, 0.0])
    found = rank(("base", "level", "good", "poor"), np.stack([base, level, good, poor], 1))
    assert (found.labels[0], found.labels[3]) == ("good", "poor")
    one, other = (found.labels.index(label) for label in ("base", "level"))
    assert found.holm[0, 3] == pytest.approx(6 * 2 / 2**9)
    assert found.against(0, 3) == "9-0-0 ahead"
    assert found.against(3, 0) == "0-0-9 behind"
    assert found.against(one, other) == "4-1-4"
    assert found.level() == [(1, 2)]
    table = rank_table(found, "name", "HM", "method", "facts")
    assert table.columns == ("method", "mean rank", "1", "2", "3", "4")
    assert [row.label for row in table.rows] == list(found.labels)
    assert [cell.text for cell in table.rows[0].cells] == ["1.00 ± 0.00", "", *["9-0-0 ahead"] * 3]
    low, high = stats.t.interval(
        0.95, 8, loc=mean_ranks(found)[one], scale=stats.sem(found.ranks[:, one])
    )
    assert table.rows[one].cells[0].interval == pytest.approx((high - low) / 2)
    assert "n = 9 data sets" in table.title
    assert all("n = 9 data sets" in note for note in table.footnotes)
    assert len(table.footnotes) == 2


def test_a_data_set_counts_once_with_the_mean_over_the_seeds_that_all_have() -> None:
    own = runs({"a": [60.0] * 4, "b": [61.0, 62.0, 63.0, 64.0], "c": [50.0] * 4}, seeds=(1, 2, 3))
    own["b"] = [r for r in own["b"] if (r.task.data, r.task.seed) != ("set 0", 3)]
    found = ranked(own)
    # seeds 1 and 2, which are 1 and 0 below
    assert found.values[0].tolist() == [61.0 - 0.5, 60.0 - 0.5, 50.0 - 0.5]
    assert found.values[3].tolist() == [64.0, 60.0, 50.0]
    other = runs({"a": [60.0] * 4}, seeds=(1, 2, 3), split_digest="others")["a"]
    assert rank_methods({**own, "a": other}, "base") is None, "no image is the same"


@pytest.mark.parametrize(
    ("sets", "labels", "left_out"),
    [
        ((7, 7, 4), "cba", ("set 4", "set 5", "set 6")),
        ((9, 9, 9, 4), "dcba", tuple(f"set {n}" for n in range(4, 9))),
        ((11, 11, 11, 4), "cba", ("d",)),  # 16 cells are less than half of 33
        ((6, 6, 4, 4, 1), "dcba", ("set 4", "set 5", "e")),
        # and not 14 methods on 3 sets, which are more cells but no ranking
        ((*[5] * 8, *[3] * 6), "hgfedcba", tuple("ijklmn")),
    ],
)
def test_a_block_without_gaps_is_ranked_of_all_methods_if_it_is_large_enough(
    sets: tuple[int, ...], labels: str, left_out: tuple[str, ...]
) -> None:
    own = {"abcdefghijklmn"[i]: [60.0 + i] * n for i, n in enumerate(sets)}
    found = ranked(runs(own))
    assert (found.labels, found.left_out) == (tuple(labels), left_out)
    assert rank_table(found, "", "", "", "").footnotes[-1].endswith(f": {', '.join(left_out)}.")


@pytest.mark.parametrize(("methods", "sets"), [(2, 9), (3, 3), (0, 0)])
def test_too_few_methods_or_data_sets_are_not_ranked(methods: int, sets: int) -> None:
    assert rank_methods(runs({str(m): [60.0 + m] * sets for m in range(methods)}), "base") is None


def test_ties_everywhere_are_no_difference() -> None:
    found = rank(("a", "b", "c"), np.tile([[0.1 + 0.2, 0.3, 0.3]], (5, 1)))
    assert (found.chi2, found.p) == (0, 1)
    assert mean_ranks(found) == [2, 2, 2]
    assert (found.holm == 1).all()
    assert found.against(0, 1) == "0-5-0"


def test_a_note_says_when_the_data_sets_are_too_few_to_show_a_difference() -> None:
    found = rank(("a", "b", "c"), np.arange(12.0).reshape(4, 3))
    assert (found.labels, found.least) == (("c", "b", "a"), 3 / 8)
    assert any("0.38" in note for note in rank_table(found, "", "", "", "").footnotes)


def test_each_target_is_ranked_as_a_data_set() -> None:
    own = {
        m: [
            record(m, source, 1, {"all": 70.0, "x": 50.0 + gain, "y": 60.0 + gain})
            for source in ("s", "t")
        ]
        for m, gain in (("a", 0.0), ("b", 1.0), ("c", 2.0))
    }
    found = ranked(own, "average")
    assert found.values[:, 0].tolist() == [52.0, 62.0, 52.0, 62.0]


@pytest.mark.parametrize("bad", [(0, 2), (1, 2)])
def test_bars_are_the_longest_runs_without_a_shown_difference(bad: tuple[int, int]) -> None:
    p = np.ones((4, 4))
    p[bad] = p[bad[::-1]] = 0.01
    found = Ranks(tuple("abcd"), np.zeros((4, 4)), np.zeros((4, 4)), 0.0, 1.0, p)
    assert found.level() == {(0, 2): [(0, 1), (1, 3)], (1, 2): [(0, 1), (2, 3)]}[bad]


def test_methods_that_share_no_data_set_are_not_ranked() -> None:
    own = {str(m): [record(str(m), f"set {m}", 1, {"base": 60.0})] for m in range(4)}
    assert rank_methods(own, "base") is None
