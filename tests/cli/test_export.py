"""The verb export."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from rmadapter.answers.sets import Calibration
from rmadapter.cli import export as cli
from tests.helpers.shell import Command, backbone_option, refused, rmadapter

__all__ = ["rmadapter"]  # a fixture

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnxruntime", "onnxscript")),
    reason="pip install 'rmadapter[export]'",
)


@needs_onnx
@pytest.mark.slow
def test_export_prints_a_table_or_json(
    rmadapter: Command, finished: Path, colors: Path, tmp_path: Path
) -> None:
    command = ["export", finished, "--data", colors, *backbone_option(finished)]
    done = rmadapter.done(*command, "--out", tmp_path / "a")
    assert done.err == ""
    assert f"test images of {colors.name}" in done.out
    assert done.out.splitlines()[-1].startswith(f"export: {tmp_path / 'a'}, ")
    facts = rmadapter.json(*command, "--out", tmp_path / "b", "--precision", "fp16")
    assert facts.pop("export") == str(tmp_path / "b")
    assert facts == json.loads((tmp_path / "b/export.json").read_text())
    assert facts["command"].startswith("rmadapter export ")
    assert facts["bytes"] < (tmp_path / "a/model.onnx").stat().st_size
    refused(rmadapter(*command, "--out", tmp_path / "a"), "a: already exists")


@needs_onnx
@pytest.mark.slow
def test_export_shows_what_it_changed_in_decisions(
    rmadapter: Command, finished: Path, colors: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    facts = json.loads((run / "model.json").read_text())
    shares = [*np.linspace(0.2, 0.9, 48).round(6).tolist()]
    calibration = Calibration((*shares,), (*range(4),) * 12, 4, "folds").json()
    (run / "model.json").write_text(json.dumps({**facts, "calibration": calibration}))
    (run / "SHA256SUMS").unlink()
    command = ["export", run, "--data", colors, *backbone_option(run)]
    shown = [
        rmadapter.done(*command, "--out", tmp_path / precision, "--precision", precision).out
        for precision in ("fp16", "fp32")
    ]
    assert ["sets without the right class, at 5 %" in text for text in shown] == [True, False]
    assert "sets without the right class, at 5 %" in (tmp_path / "fp32/README.md").read_text()


@needs_onnx
def test_mistakes_in_export_are_named(rmadapter: Command, finished: Path, tmp_path: Path) -> None:
    targets = "--to tflite: choose one of onnx, web, litert, openvino"
    refused(rmadapter("export", finished, "--to", "tflite"), targets)
    gone = ["--data", tmp_path / "gone", *backbone_option(finished)]
    for words, hint in (
        ([finished, "--precision", "x"], "--precision x: choose one of"),
        ([tmp_path], "not a finished run"),
        ([finished, *gone], "gone: no such file or folder"),
    ):
        refused(rmadapter("export", *words, "--out", tmp_path / "a"), hint)
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_called_by_a_dot_is_exported_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    assert cli.ExportOptions().folder(Path("."), Path(".")) == tmp_path / "run-onnx"
