"""A run as the module that a server asks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rmadapter.artifacts.checkpoint import load
from rmadapter.backbones import Backbone
from rmadapter.deploy.export import graph
from rmadapter.deploy.serve.options import Wish, answers_of
from rmadapter.training.contract import NotApplicable


def test_features_come_along_where_there_are_any(
    finished: Path, tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = load(finished, tiny_clip)
    pixels = torch.zeros(2, 3, tiny_clip.image_size, tiny_clip.image_size)
    module, features = answers_of(saved)
    assert features
    both = module(pixels)

    def none(*given: object) -> None:
        raise NotApplicable("no features")

    monkeypatch.setattr(graph, "_features", none)
    module, features = answers_of(saved)
    assert not features
    torch.testing.assert_close(module(pixels), both[0])


def test_a_wish_leaves_the_engine_to_the_folder() -> None:
    assert Wish(Path("run")) == (Path("run"), "", 0, None, "")
