"""The rules of the study of `suggest`, on points in a plane."""

from __future__ import annotations

import numpy as np
import pytest
from suggest_rules import (
    FIRST,
    NEXT,
    Pool,
    balanced,
    closeness,
    coverage,
    entropy,
    margin,
    mix,
    pick,
    typicality,
)

NONE = np.empty((0, 2))


def circle(degrees: list[float]) -> np.ndarray:
    turns = np.radians(degrees)
    return np.stack([np.cos(turns), np.sin(turns)], 1)


def pool_of(
    degrees: list[float], table: list[list[float]] | None = None, known: list[float] | None = None
) -> Pool:
    labelled = circle(known) if known else NONE
    return Pool(circle(degrees), labelled, np.array(table or np.empty((0, 0))))


# Rules


def test_margin_and_entropy_by_hand() -> None:
    table = [[0.9, 0.1, 0.0], [0.5, 0.5, 0.0], [0.4, 0.3, 0.3]]
    assert closeness(np.array(table)) == pytest.approx([0.2, 1.0, 0.9])
    assert margin(pool_of([0, 1, 2], table), 2).rows.tolist() == [1, 2]
    found = entropy(pool_of([0, 1, 2], table), 3)
    assert found.rows.tolist() == [2, 1, 0]
    assert found.scores[1] == pytest.approx(np.log(2))


def test_coverage_picks_the_farthest_image() -> None:
    found = coverage(pool_of([0, 80, 90, 180], known=[0]), 3)
    # the opposite one, then the one between, then the last that is no copy
    assert found.rows.tolist() == [3, 2, 1]
    assert found.scores == pytest.approx([2.0, 1.0, 1 - np.cos(np.radians(10))])
    assert coverage(pool_of([0, 40, 50, 100]), 2).rows[0] in (1, 2)  # nearest to the mean


def test_typicality_skips_labelled_clusters() -> None:
    groups = [0, 1, 2, 3, 120, 121, 122, 240, 241]
    found = typicality(pool_of(groups, known=[1.5]), 2)
    assert found.rows[0] == 5  # the middle of the largest group without a label
    assert found.rows[1] in (7, 8)
    assert len(typicality(pool_of(groups), 9).rows) == 9


def test_mix_is_unsure_and_of_different_kinds() -> None:
    sure, unsure = [0.99, 0.01], [0.5, 0.5]
    degrees = [0.0, 1, 2, 180, 181, 182, *range(60, 80)]
    table = [unsure] * 6 + [sure] * 20
    rows = mix(pool_of(degrees, table), 2).rows.tolist()
    # WIDER times two would be all of the unsure ones and 14 others
    assert len({row // 3 for row in rows}) == 2
    assert len(mix(pool_of([5, 5, 5], [unsure] * 3), 3).rows) == 3  # copies of each other


def test_balanced_takes_the_classes_in_turn() -> None:
    table = [[0.9, 0.1]] * 5 + [[0.2, 0.8]]
    found = balanced(pool_of([0, 1, 2, 3, 4, 90], table), 2)
    assert found.rows.tolist() == [2, 5]
    assert sorted(balanced(pool_of([0, 1, 2, 3, 4, 90], table), 6).rows) == list(range(6))


def test_only_the_first_of_a_group_is_picked() -> None:
    some = pool_of([0, 0, 90, 91], [[0.5, 0.5]] * 4)
    for rule in {**NEXT, **FIRST}.values():
        rows = pick(rule, some, 4, np.array([7, 7, 1, 2])).rows.tolist()
        assert sorted(rows) == [0, 2, 3]
        assert len(set(pick(rule, some, 2).rows.tolist())) == 2


def test_random_rule_depends_on_the_seed() -> None:
    some = pool_of([*range(50)])
    first, same, other = (
        pick(NEXT["random"], some._replace(seed=seed), 10).rows.tolist() for seed in (3, 3, 4)
    )
    assert first == same != other


def test_seeds_above_32_bits_are_accepted() -> None:
    """KMeans takes only 32 bits."""
    some = pool_of([0, 1, 2, 3, 120, 121, 122, 240, 241])
    for seed in (2**32, 5_000_000_000):
        assert len(typicality(some._replace(seed=seed), 3).rows) == 3
