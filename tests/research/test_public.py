"""public.py with a repository that the test writes. What it measures is never asserted:
machines differ."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from rmadapter.backbones import Backbone
from tests.helpers.benchmarks import Printed
from tests.helpers.clones import write_clone
from tests.helpers.models import CLIP_TEXT, DEPTH, write_model

import past_figures  # isort: skip
import public  # isort: skip

MACHINE = ["--allocator", "default", "--repeat", "2", "--batch", "3"]


@pytest.fixture
def backbone(tmp_path: Path) -> str:
    """Of widths that are whole heads, as the clone's CLIP has them."""
    vision = {"image_size": 32, "patch_size": 16, "width": 64, "layers": DEPTH}
    text = {**CLIP_TEXT, "context_length": 77, "width": 64, "heads": 1}
    model = {"vision_cfg": vision, "text_cfg": text, "quick_gelu": True}
    return str(write_model(tmp_path / "model", model))


def test_a_step_of_a_public_repository_is_measured_beside_ours(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    clone, out = write_clone(tmp_path / "clone"), tmp_path / "out.json"
    out.write_text(json.dumps({"mma": [], "coop": [{"classes": 2}, {"classes": 9}]}))
    words = ["--upstream", str(clone), "--backbone", backbone, "--classes", "2", "3"]
    monkeypatch.setattr(sys, "argv", ["public.py", *MACHINE, "coop", *words, "--out", str(out)])
    monkeypatch.setattr(public, "SQUARE", 64)  # without bfloat16, large products take minutes
    assert public.main() == 0
    assert "public seconds" in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert list(found) == ["mma", "coop"]
    assert [row["classes"] for row in found["coop"]] == [2, 3, 9]
    measured = found["coop"][:2]
    for row in measured:
        source = (row["batch"], row["repository"], row["commit"])
        assert source == (3, "KaiyangZhou/CoOp", "unknown")
        assert max(row["differences"].values()) < 1e-4
        for kind in ("public", "fp32", "bf16"):
            assert len(row[f"{kind}_all_seconds"]) == 2
            assert 0 < row[f"{kind}_least_seconds"] <= row[f"{kind}_seconds"]
        assert min(row["fp32_gflops"], row["bf16_gflops"]) > 0
        assert "least_operations" not in row
        ratio = row["public_least_seconds"] / row["bf16_least_seconds"]
        assert row["bf16_ratio"] == pytest.approx(ratio)
    assert "KaiyangZhou/CoOp" in past_figures.public({"coop": measured})


def test_sizes_are_the_published_ones(vit_b16: Backbone) -> None:
    assert public.peer_on("maple", vit_b16).config["PROMPT_DEPTH"] == 9
    assert public.peer_on("mma", vit_b16).config["ADAPTER_START"] == 5
    assert public.peer_on("mmrl", vit_b16).config["REP_LAYERS"] == [*range(6, 13)]
