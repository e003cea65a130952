"""What methods on frozen features share: held-out parts of the shots, and the classes they know."""

from __future__ import annotations

import pytest
import torch

from rmadapter.bench.methods.base import NotApplicable
from rmadapter.bench.methods.shots import FOLDS, columns, folds


def test_every_shot_is_held_out_once_and_every_class_is_always_fitted() -> None:
    labels = torch.tensor([0, 1, 2, 1, 0, 2, 2, 1, 0, 2, 1, 0, 0])
    parts = folds(labels, 1)
    assert len(parts) == FOLDS
    assert sorted(int(i) for _, held in parts for i in held) == list(range(len(labels)))
    for fit, held in parts:
        assert not set(fit.tolist()) & set(held.tolist())
        assert set(labels[fit].tolist()) == {0, 1, 2}
    assert all(torch.equal(a[1], b[1]) for a, b in zip(parts, folds(labels, 1), strict=True))


def test_two_shots_make_two_parts_and_one_shot_makes_none() -> None:
    assert len(folds(torch.tensor([0, 0, 1, 1, 1]), 1)) == 2
    assert folds(torch.tensor([0, 0, 1]), 1) == []


def test_known_classes_in_any_order_and_no_others() -> None:
    assert columns("probe", ("cat", "dog", "car"), ["car", "cat"]) == [2, 0]
    with pytest.raises(NotApplicable, match=r"probe knows .* not 'tree'"):
        columns("probe", ("cat", "dog"), ["cat", "tree"])
