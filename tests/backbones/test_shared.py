"""One copy of a backbone in memory: for names that say which weights they have, and for digests."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from rmadapter.backbones import Backbone
from rmadapter.backbones.shared import again, shared
from rmadapter.errors import UserError

CPU = torch.device("cpu")


def test_a_published_name_is_loaded_once_while_somebody_holds_it(
    monkeypatch: pytest.MonkeyPatch, tiny_clip: Backbone
) -> None:
    loaded: list[str] = []

    def load(name: str) -> Backbone:
        loaded.append(name)
        return Backbone(
            name,
            tiny_clip.model,
            tiny_clip.preprocess,
            tiny_clip.tokenizer,
            32,
            (0, 0, 0),
            (1, 1, 1),
        )

    monkeypatch.setattr("rmadapter.backbones.shared.load_backbone", load)
    first = shared("ViT-B-32/none", CPU)
    assert shared("ViT-B-32/none", CPU) is first
    assert again("ViT-B-32/none", first.digest, CPU) is first
    assert loaded == ["ViT-B-32/none"]
    with ThreadPoolExecutor(1) as pool:  # another thread trains on a copy of its own
        assert pool.submit(shared, "ViT-B-32/none", CPU).result() is not first
    del first
    shared("ViT-B-32/none", CPU)
    assert len(loaded) == 3


def test_a_folder_may_have_changed_and_is_read_again_but_for_a_known_digest(
    tiny_clip: Backbone,
) -> None:
    first = shared(tiny_clip.name, CPU)
    second = shared(tiny_clip.name, CPU)
    assert second is not first
    assert again(tiny_clip.name, tiny_clip.digest, CPU) is second


def test_other_weights_are_refused(tiny_clip: Backbone) -> None:
    with pytest.raises(UserError, match=r"\(0{12}\).* has other weights"):
        again(tiny_clip.name, "0" * 64, CPU)
