"""Which images are labelled next, on points in a plane."""

from __future__ import annotations

import numpy as np

from rmadapter_studio.order import RANDOM, RULES, Pool, pick, typicality


def circle(degrees: list[float]) -> np.ndarray:
    turns = np.radians(degrees)
    return np.stack([np.cos(turns), np.sin(turns)], 1)


def pool_of(degrees: list[float], known: list[float] | None = None, seed: int = 1) -> Pool:
    return Pool(circle(degrees), circle(known or []), seed)


def test_typicality_skips_labelled_clusters() -> None:
    groups = [0, 1, 2, 3, 120, 121, 122, 240, 241]
    found = typicality(pool_of(groups, known=[1.5]), 2)
    assert found.rows[0] == 5  # the middle of the largest group without a label
    assert found.rows[1] in (7, 8)
    assert len(typicality(pool_of(groups), 9).rows) == 9


def test_only_the_first_of_a_group_is_picked() -> None:
    some = pool_of([0, 0, 90, 91])
    for rule in RULES.values():
        rows = pick(rule, some, 4, np.array([7, 7, 1, 2])).rows.tolist()
        assert sorted(rows) == [0, 2, 3]


def test_random_rule_depends_on_the_seed() -> None:
    apart = np.arange(50)
    first, same, other = (
        pick(RULES[RANDOM], pool_of([*range(50)], seed=seed), 10, apart).rows.tolist()
        for seed in (3, 3, 4)
    )
    assert first == same != other


def test_seeds_above_32_bits_are_accepted() -> None:
    """KMeans takes only 32 bits."""
    degrees = [0.0, 1, 2, 3, 120, 121, 122, 240, 241]
    for seed in (2**32, 5_000_000_000):
        assert len(typicality(pool_of(degrees, seed=seed), 3).rows) == 3
