"""Frozen features: computed once where views come again, and equal to those batch by batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.encoders import States
from rmadapter.methods.parts import still
from rmadapter.methods.parts.still import Still
from rmadapter.methods.prompt_kd import PromptKD
from rmadapter.methods.two_stages import TwoStages
from rmadapter.settings import configured
from rmadapter.training.loop import Batch
from tests.helpers.shots import noise_images, shots_of


@pytest.mark.parametrize(("views", "epochs", "once"), [(2, 2, True), (2, 1, False), (0, 9, False)])
@pytest.mark.parametrize("apart", [False, True])
def test_each_view_is_encoded_once_where_all_come_again(
    views: int, epochs: int, once: bool, apart: bool, tiny_clip: Backbone
) -> None:
    shots = shots_of(tiny_clip, noise_images(5), augmentation="standard", views=views)
    source, asked = shots.source(1), list[int]()

    def of(states: States) -> Tensor:
        asked.append(len(states.x))
        return tiny_clip.image.encode(states.x, states.layout, 1)

    kept = Still(source, of, epochs)
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
def test_methods_learn_the_same_without_it(
    method: Any, tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    shots = shots_of(tiny_clip, noise_images(6), augmentation="standard", views=2)
    quick = configured(method, {"iterations": 0, "epochs": 6, "batch_size": 4})
    asked: list[Any] = []
    encoded = still.encoded
    monkeypatch.setattr(still, "encoded", lambda *words: [asked.append(words), encoded(*words)][1])
    fitted = quick.fit(tiny_clip, shots)
    assert len(asked) == 1
    monkeypatch.setattr(
        still.Still, "features", lambda self, batch, source: self.of(batch.images).detach()
    )
    plain = quick.fit(tiny_clip, shots)
    assert len(asked) == 1
    for name, tensor in plain.tensors.items():
        torch.testing.assert_close(fitted.tensors[name], tensor, rtol=1e-4, atol=1e-5)
