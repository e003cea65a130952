"""Which images are labelled next, on points in a plane."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from rmadapter.errors import UserError
from rmadapter.runs import Proposals
from rmadapter_studio import order as module
from rmadapter_studio.order import ORDERS, RANDOM, SURE, TYPICALITY, choose, typical
from rmadapter_studio.quick import Encoded, Quick


def circle(degrees: Sequence[float]) -> np.ndarray:
    turns = np.radians(degrees)
    return np.stack([np.cos(turns), np.sin(turns)], 1)


def quick_of(
    degrees: Sequence[float],
    groups: Sequence[int] = (),
    labelled: Sequence[int] = (),
    table: np.ndarray | None = None,
) -> Quick:
    """Return images of two classes, of which all with a label are of the first."""
    count = len(degrees)
    labels = np.full(count, -1)
    labels[[*labelled]] = 0
    table = np.full((count, 2), 0.5) if table is None else table
    images = Encoded(
        tuple(map(str, range(count))), circle(degrees), np.array(groups or range(count))
    )
    return Quick(images, ("a", "b"), labels, Proposals(table, labels >= 0))


def rows_of(quick: Quick, order: str, n: int, left: Sequence[int], seed: int = 1) -> list[int]:
    return [one.row for one in choose(quick, left, order, n, seed)]


def test_typicality_skips_labelled_clusters() -> None:
    groups = circle([0, 1, 2, 3, 120, 121, 122, 240, 241])
    rows, _ = typical(groups, circle([1.5]), 2, 1)
    assert rows[0] == 5  # the middle of the largest group without a label
    assert rows[1] in (7, 8)
    assert len(typical(groups, circle([]), 9, 1)[0]) == 9


def test_seeds_above_32_bits_are_accepted() -> None:
    """KMeans takes only 32 bits."""
    points = circle([0.0, 1, 2, 3, 120, 121, 122, 240, 241])
    for seed in (2**32, 5_000_000_000):
        assert len(typical(points, circle([]), 3, seed)[0]) == 3


def test_random_order_depends_on_the_seed() -> None:
    quick = quick_of([*range(50)])
    first, same, other = (rows_of(quick, RANDOM, 10, range(50), seed) for seed in (3, 3, 4))
    assert first == same != other
    assert {one.score for one in choose(quick, range(5), RANDOM, 5)} == {None}


def test_orders_leave_out_copies_and_what_is_done() -> None:
    groups = [*range(24), *range(24)]
    quick = quick_of([15 * group for group in groups], groups, labelled=range(6))
    left = [row for row in range(8, 48) if row != 30]
    for order in ORDERS:
        chosen = choose(quick, left, order, 100)
        assert sorted(groups[one.row] for one in chosen) == sorted({groups[r] for r in left})
        for one in chosen:
            assert {one.row, *one.copies} == {r for r in left if groups[r] == groups[one.row]}
        assert len(choose(quick, left, order, 5)) == 5
        assert choose(quick, [], order, 5) == []
    with pytest.raises(UserError, match="unknown order"):
        choose(quick, left, "typical", 5)


def test_the_surest_come_by_class() -> None:
    table = np.array([[0.6, 0.4], [0.1, 0.9], [0.95, 0.05], [0.51, 0.49], [0.3, 0.7]])
    quick = quick_of([*range(5)], table=table)
    assert rows_of(quick, SURE, 3, range(5)) == [2, 1, 4]
    assert [(one.row, one.score) for one in choose(quick, range(5), SURE, 1)] == [(2, 0.95)]


def test_without_proposals_there_is_no_surest_image() -> None:
    quick = quick_of([*range(4)], table=np.empty((4, 0)))
    for order in (TYPICALITY, RANDOM):
        assert len(choose(quick, range(1, 4), order, 2)) == 2
    with pytest.raises(UserError, match="two classes first"):
        choose(quick, range(1, 4), SURE, 2)


def test_large_pools_are_drawn_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_POOL", 4)
    quick = quick_of([*range(9)])
    assert len(rows_of(quick, TYPICALITY, 9, range(9))) == 4
    assert len(rows_of(quick, SURE, 9, range(9))) == 9
