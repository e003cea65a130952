"""reconstruction.py: what a line measures, its plain regularisers and its controls."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import reconstruction
import torch
from reconstruction import NEITHER, OWN, Average, shuffled, subspace
from torch import Tensor

from rmadapter.adapter import DualBranchAdapter
from rmadapter.backbones import Backbone
from rmadapter.methods import load_method


@pytest.fixture
def tokens() -> Tensor:
    """Return tokens with variances 16, 9, 4 and 1 along the axes."""
    torch.manual_seed(0)
    return torch.randn(4000, 4) * torch.tensor([4.0, 3.0, 2.0, 1.0]) + 5


@pytest.mark.parametrize(
    ("down", "kept", "overlap"),
    [
        ([[1.0, 0.5, 0, 0], [0, 2.0, 0, 0]], 25 / 30, 1.0),
        ([[1.0, 0, 0, 0], [0, 0, 0, 1.0]], 17 / 30, 0.5),
    ],
)
def test_kept_and_overlap_describe_the_rows_of_the_down_projection(
    tokens: Tensor, down: list[list[float]], kept: float, overlap: float
) -> None:
    adapter = DualBranchAdapter(4, 2)
    with torch.no_grad():
        adapter.down.weight.copy_(torch.tensor(down))
    measures = subspace(adapter, tokens)
    assert measures["kept"] == pytest.approx(kept, abs=0.02)
    assert measures["overlap"] == pytest.approx(overlap, abs=0.01)


def test_a_branch_that_returns_the_mean_explains_nothing(tokens: Tensor) -> None:
    adapter = DualBranchAdapter(4, 2)
    with torch.no_grad():
        adapter.rec[1].weight.zero_()
        adapter.rec[1].bias.copy_(tokens.mean(0))
    assert subspace(adapter, tokens)["explained"] == pytest.approx(0, abs=1e-5)
    assert "explained" not in subspace(DualBranchAdapter(4, 2, reconstruction_layers=0), tokens)


def test_every_variant_is_one_of_rmadapter() -> None:
    for name, fields in reconstruction.VARIANTS.items():
        own = {k: v for k, v in fields.items() if k not in OWN}
        assert load_method(fields.get("method", "rmadapter"), own), name


def test_an_average_over_steps_decays() -> None:
    average = Average({"x": torch.tensor([8.0])}, 0.75)
    average.add({"x": torch.tensor([0.0])})
    average.add({"x": torch.tensor([2.0])})
    assert average.tensors["x"].item() == 0.75 * 6 + 0.25 * 2


def test_a_shuffled_backbone_has_the_same_numbers_in_another_order(tiny_clip: Backbone) -> None:
    copied = shuffled(tiny_clip)
    assert copied.name != tiny_clip.name
    for a, b in zip(tiny_clip.model.parameters(), copied.model.parameters(), strict=True):
        assert torch.equal(a.flatten().sort()[0], b.flatten().sort()[0])
        assert torch.equal(a, b) == (a.ndim < 2)


SMALL = {"first_block": 3, "rank": 4, "epochs": 20, "learning_rate": 0.03}
CHOSEN = {
    "both": SMALL,
    "plain": SMALL | NEITHER,
    "dialled": SMALL | NEITHER | {"dials": (0.0, 1.0)},
    **{f"output {w}": SMALL | NEITHER | {"output": w} for w in (0, 1000)},
    **{f"ema {d}": SMALL | NEITHER | {"ema": d} for d in (0, 0.99)},
}


@pytest.mark.slow
def test_controls_without_effect_equal_the_plain_training_and_strong_ones_restrain_it(
    colors: Path, tiny_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconstruction, "VARIANTS", CHOSEN)
    out = tmp_path / "lines.jsonl"

    def run(*words: str) -> list[Any]:
        """Resume the study; return all its lines."""
        fixed = [colors.name, "--root", str(colors.parent), "--out", str(out), "--shots", "2"]
        fixed += ["--seeds", "1", "--backbone", tiny_clip.name, "--variants"]
        monkeypatch.setattr(sys, "argv", ["x", *fixed, *words])
        reconstruction.main()
        return [json.loads(line) for line in out.read_text().splitlines()]

    first = run("both")
    lines = run(*CHOSEN)
    assert lines[:1] == first
    both, plain, dialled, free, tight, last, mean = lines
    assert both["explained"] < 1
    assert "explained" not in plain
    assert all(line["split"] == both["split"] and line["versions"] for line in lines)
    prefixes = ("base", "novel", "drift", "kept", "overlap")
    figures = [name for name in plain if name.startswith(prefixes)]
    assert len(figures) == 8
    # a penalty without weight is none, and a mean of one step is that step
    assert all(plain[name] == free[name] == last[name] == dialled[name] for name in figures)
    assert dialled["base at 1"] == dialled["base"]
    for half in ("base", "novel"):
        assert dialled[f"{half} at 0"] == dialled[f"zero_shot_{half}"]
    for restrained in (tight, mean):  # `mean` moves 20 steps of a hundredth each
        assert restrained["drift_image_base"] < 0.5 * plain["drift_image_base"]
    *_, copied = run("plain", "--logit-scale", "50", "--shuffled")
    assert copied["backbone"] == f"{tiny_clip.name} at logit scale 50, shuffled"
    assert copied["drift_image_base"] != plain["drift_image_base"]
