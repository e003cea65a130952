"""tools/reconstruction.py: what it measures, its control, and that it goes on where it was."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import reconstruction
import torch
from reconstruction import NEITHER, OWN, Average, shuffled, subspace

from rmadapter.adapter import DualBranchAdapter
from rmadapter.backbones import Backbone
from rmadapter.methods import load_method


def test_the_subspace_of_a_down_projection() -> None:
    """Of tokens whose variance lies along the axes, 16, 9, 4 and 1, two of which the projection
    reads."""
    torch.manual_seed(0)
    tokens = torch.randn(4000, 4) * torch.tensor([4.0, 3.0, 2.0, 1.0]) + 5
    adapter = DualBranchAdapter(4, 2)
    with torch.no_grad():
        adapter.down.weight.copy_(torch.tensor([[1.0, 0.5, 0, 0], [0, 2.0, 0, 0]]))
    found = subspace(adapter, tokens)
    assert found["kept"] == pytest.approx(25 / 30, abs=0.01)
    assert found["overlap"] == pytest.approx(1, abs=0.01)
    with torch.no_grad():
        adapter.down.weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 1.0]]))
        adapter.rec[1].weight.zero_()
        adapter.rec[1].bias.copy_(tokens.mean(0))
    found = subspace(adapter, tokens)
    assert found["kept"] == pytest.approx(17 / 30, abs=0.02)
    assert found["overlap"] == pytest.approx(0.5, abs=0.01)
    assert found["explained"] == pytest.approx(
        0, abs=1e-5
    )  # the mean of the tokens is no explanation
    assert "explained" not in subspace(DualBranchAdapter(4, 2, reconstruction_layers=0), tokens)


def test_every_variant_is_one_of_rmadapter() -> None:
    for name, fields in reconstruction.VARIANTS.items():
        own = {k: v for k, v in fields.items() if k not in OWN}
        assert load_method(fields.get("method", "rmadapter"), own), name


def run(
    out: Path, colors: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch, *variants: str
) -> list[Any]:
    given = [
        colors.name, "--root", str(colors.parent), "--out", str(out), "--shots", "2", "--seeds",
        "1",
    ]  # fmt: skip
    monkeypatch.setattr(
        sys, "argv", ["x", *given, "--backbone", backbone.name, "--variants", *variants]
    )
    small = {"first_block": 3, "rank": 4, "epochs": 20, "learning_rate": 0.03}
    chosen = {
        "both": small,
        "plain": small | NEITHER,
        "dialled": small | NEITHER | {"dials": (0.0, 1.0)},
    }
    chosen |= {f"output {w}": small | NEITHER | {"output": w} for w in (0, 1000)}
    chosen |= {f"ema {d}": small | NEITHER | {"ema": d} for d in (0, 0.99)}
    monkeypatch.setattr(reconstruction, "VARIANTS", chosen)
    reconstruction.main()
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.slow
def test_lines_are_kept_and_hold_what_is_measured(
    colors: Path, tiny_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "lines.jsonl"
    first = run(out, colors, tiny_clip, monkeypatch, "both")
    lines = run(
        out,
        colors,
        tiny_clip,
        monkeypatch,
        "both",
        "dialled",
        "plain",
        "output 0",
        "output 1000",
        "ema 0",
        "ema 0.99",
    )
    assert lines[:1] == first
    both, dialled, plain, free, tight, last, mean = lines
    assert both["explained"] < 1
    assert "explained" not in plain
    assert all(line["split"] == both["split"] and line["versions"] for line in lines)
    figures = [
        name for name in plain if name.startswith(("base", "novel", "drift", "kept", "overlap"))
    ]
    assert len(figures) == 8
    # A penalty of no weight is none, and a mean of one step is that step.
    assert all(plain[name] == free[name] == last[name] == dialled[name] for name in figures)
    assert dialled["base at 1"] == dialled["base"]
    assert (dialled["base at 0"], dialled["novel at 0"]) == (
        dialled["zero_shot_base"],
        dialled["zero_shot_novel"],
    )
    assert tight["drift_image_base"] < 0.5 * plain["drift_image_base"]
    assert (
        mean["drift_image_base"] < 0.5 * plain["drift_image_base"]
    )  # 20 steps of a hundredth each
    *_, copied = run(
        out, colors, tiny_clip, monkeypatch, "plain", "--logit-scale", "50", "--shuffled"
    )
    assert copied["backbone"] == f"{tiny_clip.name} at logit scale 50, shuffled"
    assert copied["drift_image_base"] != plain["drift_image_base"]


def test_an_average_over_steps() -> None:
    average = Average({"x": torch.tensor([8.0])}, 0.75)
    average.add({"x": torch.tensor([0.0])})
    average.add({"x": torch.tensor([2.0])})
    assert average.tensors["x"].item() == 0.75 * 6 + 0.25 * 2


def test_a_shuffled_backbone_has_the_same_numbers_in_another_order(tiny_clip: Backbone) -> None:
    found = shuffled(tiny_clip)
    assert found.name != tiny_clip.name
    pairs = list(zip(tiny_clip.model.parameters(), found.model.parameters(), strict=True))
    assert all(torch.equal(a.flatten().sort()[0], b.flatten().sort()[0]) for a, b in pairs)
    assert not any(torch.equal(a, b) for a, b in pairs if a.ndim > 1)
    assert all(torch.equal(a, b) for a, b in pairs if a.ndim < 2)
