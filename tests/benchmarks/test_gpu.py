"""benchmarks/gpu.py on a CPU and a tiny model: that all of it runs, and that all formats take the
same step."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import figures
import gpu
import pytest
import torch
from step import Step

from rmadapter.backbones import Backbone, load_backbone
from tests.helpers.models import CLIP_TEXT, write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of five blocks, so that one of them is adapted by default."""
    vision = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 5}
    config = {"vision_cfg": vision, "text_cfg": {**CLIP_TEXT, "layers": 5}}
    return write_model(tmp_path_factory.mktemp("gpu") / "model", config)


def printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *given: str
) -> Any:
    monkeypatch.setattr(
        sys,
        "argv",
        ["gpu.py", "--device", "cpu", "--repeat", "2", "--squares", "16", *given, "--json"],
    )
    gpu.main()
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_the_whole_script_runs_without_a_gpu(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch, "compile", lambda it: it)  # a minute, and not what is tested
    given = (
        "--allocator",
        "default",
        "--backbone",
        str(model),
        "--classes",
        "3",
        "4",
        "--batch",
        "2",
    )
    result = printed(monkeypatch, capsys, *given)
    steps = [row for row in result["rows"] if row["what"].startswith("step")]
    assert len(steps) == 2 * 6
    assert len(result["rows"]) == result["finished"] == 2 * 6 + 3
    for row in result["rows"]:
        assert "note" not in row, row
        assert row["images_per_second"] == pytest.approx(2 / row["seconds"])
        assert row["least_seconds"] <= row["seconds"]
    for row in steps:
        assert row["share_of_rate"] > 0
    assert "step, lean, bf16" in figures.gpu(result)
    assert "cpu" in figures.gpu(result)


@pytest.mark.slow
def test_what_cannot_be_had_is_a_row_that_says_why(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: object) -> None:
        raise torch.OutOfMemoryError("no room\nand more")

    monkeypatch.setattr(gpu, "training", refused)
    given = (
        "--allocator",
        "default",
        "--backbone",
        str(model),
        "--classes",
        "3",
        "--batch",
        "2",
        "--no-compile",
    )
    rows = printed(monkeypatch, capsys, *given)["rows"]
    assert [row["note"] for row in rows[:4]] == ["OutOfMemoryError: no room"] * 4
    assert all("seconds" in row for row in rows[4:])


def gradients(backbone: Backbone, variant: str, name: str) -> torch.Tensor:
    step = Step(backbone, 3, 2, 0)
    step.optimizer = torch.optim.SGD(step.model.adapters.parameters(), lr=1.0)
    before = torch.cat([p.detach().flatten().clone() for p in step.model.adapters.parameters()])
    run = gpu.training(step, variant, name)
    for _ in range(20):  # float16 leaves out steps until its scale fits
        run()
        moved = before - torch.cat([p.detach().flatten() for p in step.model.adapters.parameters()])
        if moved.any():
            break
    return moved


def test_all_formats_take_the_same_step(model: Path) -> None:
    """That of float16 by scaled losses: scaled back wrongly, it would be another one."""
    backbone = load_backbone(str(model))
    plain = gradients(backbone, "lean", "fp32")
    for variant, name, limit in (
        ("reference", "fp32", 1e-4),
        ("lean", "fp16", 0.02),
        ("lean", "bf16", 0.1),
    ):
        found = gradients(backbone, variant, name)
        assert float((found - plain).norm() / plain.norm()) < limit, (variant, name)
