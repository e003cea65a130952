"""Oracles: scipy and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from rmadapter.artifacts.record import Record
from rmadapter.bench.report.stats import HM_OF_MEANS, average, corrected, paired
from tests.helpers.synthetic_runs import record

BASE = {
    ("a", 1): 60.0,
    ("a", 2): 62.0,
    ("a", 3): 61.0,
    ("b", 1): 80.0,
    ("b", 2): 79.0,
    ("b", 3): 84.0,
}
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
    found = paired(with_bases("rmadapter", a), with_bases("mma", b), "base")
    assert found is not None
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


def test_equal_differences_on_all_sets_are_shown() -> None:
    """Their interval is one point, which is not 0."""
    a = with_bases("rmadapter", np.full((4, 1), 60.0))
    found = paired(a, with_bases("mma", np.full((4, 1), 50.0)), "base")
    assert found is not None
    assert (found.low, found.high, found.t, found.verdict) == (10, 10, 0, "ahead")
    same = paired(a, with_bases("mma", np.full((4, 1), 60.0)), "base")
    assert same is not None
    assert (same.t, same.verdict) == (None, "not shown")


def test_more_seeds_are_no_more_data_sets() -> None:
    d = np.array([[1.0, 1.0], [2.0, 2.0], [4.0, 4.0]])
    few, many = (
        paired(with_bases("a", 60 + x), with_bases("b", 60 + 0 * x), "base")
        for x in (d, np.tile(d, 50))
    )
    assert few is not None
    assert many is not None
    assert (few.t, few.low, few.verdict) == (many.t, many.low, "not shown")
    assert (few.pairs, many.pairs) == (6, 300)


def test_fewer_than_three_data_sets_prove_nothing() -> None:
    one, two, same = (
        paired(with_bases("a", np.array(x)), with_bases("b", np.zeros((len(x), 2)) + 60), "base")
        for x in ([[61.0, 62.0]], [[61.0, 62.0], [61.0, 61.0]], [[60.0, 60.0]] * 3)
    )
    assert one is not None
    assert (one.low, one.t, one.wilcoxon, one.verdict) == (None, None, None, "one data set")
    assert two is not None
    assert two.low == pytest.approx(1.25 - stats.t.ppf(0.975, 1) * 0.25)
    assert (two.t, two.wilcoxon, two.verdict) == (None, None, "two data sets")
    assert same is not None
    assert (same.low, same.high, same.t, same.wilcoxon, same.verdict) == (
        0,
        0,
        None,
        None,
        "not shown",
    )


def test_a_difference_of_rounding_is_a_tie() -> None:
    found = paired(
        with_bases("rmadapter", np.array([[0.1 + 0.2]])),
        with_bases("mma", np.array([[0.3]])),
        "base",
    )
    assert found is not None
    assert (found.ahead, found.behind, found.difference) == (0, 0, 0)


def test_only_runs_on_the_same_images_are_paired() -> None:
    mine = [record("rmadapter", "a", seed, {"base": 60.0 + seed}) for seed in (0, 1)]
    other = [
        record("mma", "a", 0, {"base": 50.0}),
        record("mma", "a", 1, {"base": 50.0}, split_digest="another"),
    ]
    found = paired(mine, other, "base")
    assert found is not None
    assert (found.pairs, found.difference) == (1, 10.0)
    assert paired(mine, [record("mma", "b", 0, {"base": 50.0})], "base") is None


def test_of_an_average_each_target_is_a_data_set() -> None:
    gains = {"x": 1.0, "y": 2.0, "z": 4.5}
    mine, other = (
        [
            record(m, "s", seed, {"all": 70.0, **{t: 50.0 + sign * g for t, g in gains.items()}})
            for seed in (1, 2)
        ]
        for m, sign in (("rmadapter", 1), ("mma", 0))
    )
    found = paired(mine, other, "average")
    assert found is not None
    assert (found.sets, found.pairs, found.difference) == (3, 2, 2.5)
    assert found.t == pytest.approx(stats.ttest_1samp(list(gains.values()), 0).pvalue)


def test_verdicts_of_differences_that_are_told_together() -> None:
    a = with_bases("a", 60 + np.array([[1.0], [1.5], [2.0]]))
    pairs = {
        m: paired(a, with_bases(m, np.full((3, 1), base)), "base")
        for m, base in (("b", 60.0), ("c", 45.0))
    }
    known = {m: pair for m, pair in pairs.items() if pair is not None}
    assert [pair.verdict for pair in known.values()] == ["ahead", "ahead"]
    same = paired(a, a, "base")
    assert same is not None
    found = corrected({**known, "itself": same})
    assert [pair.verdict for pair in found.values()] == ["ahead", "ahead", "not shown"]
    assert known["b"].t is not None
    assert known["c"].t is not None
    assert found["c"].holm == 2 * known["c"].t < found["b"].holm == known["b"].t
    many = corrected({**known, "d": known["b"]})
    assert [pair.verdict for pair in many.values()] == ["not shown", "ahead", "not shown"], (
        "0.035 counts twice"
    )
    assert corrected({}) == {}
