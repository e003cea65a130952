"""Held activations by hand; that held and live ones are the encoder's own, test_cache.py shows."""

from __future__ import annotations

import torch

from rmadapter.encoders import Grid
from rmadapter.training.activations import Held


def test_views_are_taken_in_turn() -> None:
    features, x, y = torch.randn(6, 4), torch.randn(6, 5, 3), torch.randn(6, 5, 3)
    held = Held(2, Grid(None), torch.device("cpu"), features, x, y, views=2)
    assert len(held) == 3
    rows = torch.tensor([2, 0])
    for epoch, own in ((0, [2, 0]), (1, [5, 3]), (2, [2, 0])):
        batch = held.batch(rows, epoch)
        assert batch.first == 2
        assert torch.equal(batch.features, features[own])
        assert torch.equal(batch.x, x[own])
        assert torch.equal(batch.y, y[own])
    assert [len(batch.x) for batch in held.batches(0, [rows, rows[:1]])] == [2, 1]


def test_features_that_are_there_already_are_views_without_tokens() -> None:
    features = torch.randn(2, 7, 4)
    held = Held.of_features(features)
    assert (len(held), held.views) == (7, 2)
    batch = held.batch(torch.tensor([3]), 3)
    assert torch.equal(batch.features, features[1, 3:4])
    assert batch.x.numel() == batch.y.numel() == 0
