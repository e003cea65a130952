"""Held-out parts of the shots, and features by an encoder that no longer learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.encoders import States
from rmadapter.methods.parts import features as module
from rmadapter.methods.parts.features import FOLDS, FixedFeatures, folds, held_out
from rmadapter.methods.prompt_kd import PromptKD
from rmadapter.methods.two_stages import TwoStages
from rmadapter.settings import configured
from rmadapter.training.loop import Batch
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


def test_validation_images_are_held_out_if_there_are_any(tiny_clip: Backbone) -> None:
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


@pytest.mark.parametrize(("views", "epochs", "once"), [(2, 2, True), (2, 1, False), (0, 9, False)])
@pytest.mark.parametrize("apart", [False, True])
def test_each_view_is_encoded_once_if_all_are_used_again(
    views: int, epochs: int, once: bool, apart: bool, tiny_clip: Backbone
) -> None:
    shots = shots_of(tiny_clip, noise_images(5), augmentation="standard", views=views)
    source, asked = shots.source(1), list[int]()

    def of(states: States) -> Tensor:
        asked.append(len(states.x))
        return tiny_clip.image.encode(states.x, states.layout, 1)

    kept = FixedFeatures(source, of, epochs)
    for epoch in range(4):
        for rows in (torch.tensor([4, 0, 1]), torch.tensor([3, 2])):
            states = source.batch(rows, epoch)
            batch: Any = Batch(epoch, rows, rows, None if apart else states, torch.Generator())  # type: ignore[arg-type]
            found = kept.features(batch, shots.source(None) if apart else source)
            torch.testing.assert_close(found, tiny_clip.image.encode(states.x, states.layout, 1))
            assert not found.requires_grad
    assert asked == ([5, 5] if once else [3, 2] * 4)


@pytest.mark.parametrize(
    "method", [TwoStages(), PromptKD(teaching=1, depth=2, weight=1.0)], ids=["2sfs", "prompt-kd"]
)
def test_methods_learn_the_same_without_fixed_features(
    method: Any, tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    shots = shots_of(tiny_clip, noise_images(6), augmentation="standard", views=2)
    quick = configured(method, {"iterations": 0, "epochs": 6, "batch_size": 4})
    asked: list[Any] = []
    encoded = module.encoded
    monkeypatch.setattr(module, "encoded", lambda *words: [asked.append(words), encoded(*words)][1])
    fitted = quick.fit(tiny_clip, shots)
    assert len(asked) == 1
    monkeypatch.setattr(
        FixedFeatures, "_features", lambda self, batch, source: self.of(batch.images).detach()
    )
    plain = quick.fit(tiny_clip, shots)
    assert len(asked) == 1
    for name, tensor in plain.tensors.items():
        torch.testing.assert_close(fitted.tensors[name], tensor, rtol=1e-4, atol=1e-5)
