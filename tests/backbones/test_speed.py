"""Speed of image encoders: the median of several batches."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from rmadapter.backbones import Backbone, speed


def test_speed_is_the_median_of_several_batches(
    monkeypatch: pytest.MonkeyPatch, tiny_clip: Backbone
) -> None:
    loaded: list[str] = []

    def load(name: str) -> Backbone:
        loaded.append(name)
        return tiny_clip

    monkeypatch.setattr(speed, "load_backbone", load)
    slow, fast = iter(range(0, 1000, 2)), iter(range(1000))
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: next(slow)))
    size = speed.megabytes_of(tiny_clip)
    cpu = torch.device("cpu")
    assert speed.cost_of("ViT-B-32/openai", cpu) == (4, size)  # 8 images in 2 s
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: next(fast)))
    assert speed.cost_of("pocket", cpu) == (8, size)
    assert loaded == ["ViT-B-32/none", "pocket"]
