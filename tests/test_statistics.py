"""Oracles: scipy and closed forms."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from scipy import stats

from rmadapter.bench.records import Run
from rmadapter.bench.statistics import hm_of_means, metric, paired, summary
from synthetic_runs import run

BASE = {("a", 1): 60.0, ("a", 2): 62.0, ("a", 3): 61.0, ("b", 1): 80.0, ("b", 2): 79.0, ("b", 3): 84.0}
RUNS = [run("mma", dataset, seed, {"base": base, "novel": base - 20}) for (dataset, seed), base in BASE.items()]


def with_bases(method: str, bases: list[float]) -> list[Run]:
    return [run(method, "a", seed, {"base": base, "novel": 40.0}) for seed, base in enumerate(bases)]


def test_summary_is_the_mean_with_students_interval_over_seeds() -> None:
    per_seed = [70.0, 70.5, 72.5]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(per_seed), scale=stats.sem(per_seed))
    found = summary(RUNS, metric("base"), ["a", "b"], [1, 2, 3])
    assert found.value == pytest.approx(np.mean(per_seed))
    assert found.interval == pytest.approx((high - low) / 2)


def test_one_seed_has_no_interval_and_a_missing_cell_no_mean() -> None:
    assert summary(RUNS, metric("base"), ["a", "b"], [1]).interval is None
    assert summary(RUNS, metric("base"), ["a", "c"], [1, 2]).value is None
    assert summary(RUNS, metric("hm"), [], [1]).value is None
    unnamed = [run("probe", "a", 1, {"base": 70.0, "novel": None, "hm": None})]
    assert summary(unnamed, metric("novel"), ["a"], [1]).value is None
    assert hm_of_means(unnamed, ["a"], [1]).value is None


def test_the_two_conventions_of_the_average_hm_differ() -> None:
    base, novel = np.mean(list(BASE.values())), np.mean(list(BASE.values())) - 20
    assert hm_of_means(RUNS, ["a", "b"], [1, 2, 3]).value == pytest.approx(stats.hmean([base, novel]))
    of_hms = np.mean([stats.hmean([b, b - 20]) for b in BASE.values()])
    assert summary(RUNS, metric("hm"), ["a", "b"], [1, 2, 3]).value == pytest.approx(of_hms)
    assert abs(of_hms - stats.hmean([base, novel])) > 0.04


def test_paired_equals_scipy_and_the_binomial_sum() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(61, 1, 12), rng.normal(60, 1, 12)
    b[4] = a[4]  # a tie says nothing about the sign
    found = paired(with_bases("rmadapter", a.tolist()), with_bases("mma", b.tolist()), metric("base"))
    assert found is not None
    d = a - b
    assert found.difference == pytest.approx(d.mean())
    assert (found.pairs, found.ahead, found.behind) == (12, (d > 0).sum(), (d < 0).sum())
    tail = sum(comb(11, k) for k in range(min(found.ahead, found.behind) + 1)) / 2**11
    assert found.p == pytest.approx(min(1.0, 2 * tail))
    oracle = stats.bootstrap((d,), np.mean, n_resamples=100_000, method="percentile", random_state=1)
    assert (found.low, found.high) == pytest.approx(tuple(oracle.confidence_interval), abs=0.03)


def test_a_difference_of_rounding_is_a_tie() -> None:
    found = paired(with_bases("rmadapter", [0.1 + 0.2]), with_bases("mma", [0.3]), metric("base"))
    assert found is not None
    assert (found.ahead, found.behind, found.p, found.low) == (0, 0, None, None)


def test_only_runs_on_the_same_images_are_paired() -> None:
    mine = with_bases("rmadapter", [60.0, 61.0])
    other = [run("mma", "a", 0, {"base": 50.0}), run("mma", "a", 1, {"base": 50.0}, split_digest="another")]
    found = paired(mine, other, metric("base"))
    assert found is not None
    assert (found.pairs, found.difference) == (1, 10.0)
    assert paired(mine, [run("mma", "b", 0, {"base": 50.0})], metric("base")) is None
