"""mechanism.py: prepared adapters, against principal directions and an untouched fit."""

from __future__ import annotations

import mechanism
import pytest
import torch
from reconstruction import subspace

from rmadapter.adapter import DualBranchAdapter
from rmadapter.backbones import Backbone
from rmadapter.methods.rmadapter import RMAdapter
from rmadapter.settings import configured
from tests.helpers.shots import noisy_colors, shots_of

QUICK = {"epochs": 1, "first_block": 3, "rank": 4, "batch_size": 4, "lambda_text_con": 0.0}


def tokens() -> torch.Tensor:
    """Vary most along three of the axes, around a mean that is not 0."""
    scales = torch.tensor([5.0, 4.0, 3.0, *[0.1] * 5])
    return torch.randn(500, 8, generator=torch.Generator().manual_seed(0)) * scales + 2


def test_the_projection_starts_at_the_principal_directions() -> None:
    torch.manual_seed(1)
    adapter, x = DualBranchAdapter(8, 3), tokens()
    before, length = subspace(adapter, x)["overlap"], adapter.down.weight.norm(dim=1).mean()
    mechanism.start_at_principal_directions(adapter, x)
    assert before < 0.9 < 0.99 < subspace(adapter, x)["overlap"]
    assert adapter.down.weight.norm(dim=1).tolist() == pytest.approx([length.item()] * 3)
    assert adapter.down(x).mean(0).abs().max() < 1e-4


def test_the_branch_learns_to_reconstruct() -> None:
    torch.manual_seed(1)
    adapter, x = DualBranchAdapter(8, 3), tokens()
    up = adapter.up.weight.clone()
    mechanism.train_branch(adapter, x, 0)
    start = subspace(adapter, x)["explained"]
    mechanism.train_branch(adapter, x, 1500)
    assert start < 0 < 0.4 < subspace(adapter, x)["explained"]
    assert torch.equal(adapter.up.weight, up)


def test_unprepared_adapters_train_as_by_the_method(tiny_clip: Backbone) -> None:
    shots = shots_of(tiny_clip, noisy_colors(3))
    inner = configured(RMAdapter(), QUICK)
    plain = inner.fit(tiny_clip, shots).tensors
    same = mechanism.Prepared(inner).fit(tiny_clip, shots).tensors
    assert all(torch.equal(plain[name], same[name]) for name in plain)
    other = mechanism.Prepared(inner, principal=True, steps=5).fit(tiny_clip, shots).tensors
    changed = {name for name in plain if not torch.equal(plain[name], other[name])}
    assert {name.split(".")[0] for name in changed} == {"image", "text"}
    assert len(plain) == len(other)
