"""Held-out parts of the shots."""

from __future__ import annotations

import torch

from rmadapter.backbones import Backbone
from rmadapter.methods.parts.held_out import FOLDS, folds, held_out
from tests.helpers.shots import noise_images, shots_of


def test_every_shot_is_held_out_once_and_every_class_is_always_fitted() -> None:
    labels = torch.tensor([0, 1, 2, 1, 0, 2, 2, 1, 0, 2, 1, 0, 0])
    parts = folds(labels, 1)
    assert len(parts) == FOLDS
    assert sorted(int(i) for _, held in parts for i in held) == list(range(len(labels)))
    for fit, held in parts:
        assert not set(fit.tolist()) & set(held.tolist())
        assert set(labels[fit].tolist()) == {0, 1, 2}
    assert all(torch.equal(a[1], b[1]) for a, b in zip(parts, folds(labels, 1), strict=True))
    assert not all(torch.equal(a[1], b[1]) for a, b in zip(parts, folds(labels, 2), strict=True))


def test_two_shots_make_two_parts_and_one_shot_makes_none() -> None:
    assert len(folds(torch.tensor([0, 0, 1, 1, 1]), 1)) == 2
    assert folds(torch.tensor([0, 0, 1]), 1) == []


def test_validation_images_judge_where_there_are_some(tiny_clip: Backbone) -> None:
    val = noise_images(6)
    for given, sizes in ((val, [(12, 6)]), (None, [(9, 3), (9, 3), (9, 3), (9, 3)])):
        some = shots_of(tiny_clip, noise_images(12), val=given)
        parts = held_out(some)
        assert [(len(rows), len(features)) for rows, features, _ in parts] == sizes
        judged = some.plain_features(given)
        for rows, features, labels in parts:
            places = [int((judged == one).all(1).nonzero()[0, 0]) for one in features]
            assert labels.tolist() == [(given or some.images).labels[place] for place in places]
            assert given or not {*rows.tolist()} & {*places}
