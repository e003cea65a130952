"""`rmadapter export` on the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rmadapter.errors import UserError
from tests.helpers.shell import Command, backbone_option, refused, rmadapter

__all__ = ["rmadapter"]  # a fixture

pytest.importorskip("onnxruntime", reason="pip install 'rmadapter[export]'")
pytest.importorskip("onnxscript", reason="pip install 'rmadapter[export]'")


@pytest.mark.slow
def test_a_table_or_json(rmadapter: Command, finished: Path, colors: Path, tmp_path: Path) -> None:
    command = ["export", finished, "--data", colors, *backbone_option(finished)]
    done = rmadapter(*command, "--out", tmp_path / "a")
    assert (done.code, done.err) == (0, "")
    assert f"test images of {colors.name}" in done.out
    assert done.out.splitlines()[-1].startswith(f"export: {tmp_path / 'a'}, ")
    done = rmadapter(*command, "--out", tmp_path / "b", "--precision", "fp16", "--json")
    facts = json.loads(done.out)
    assert facts.pop("export") == str(tmp_path / "b")
    assert facts == json.loads((tmp_path / "b/export.json").read_text())
    assert facts["command"].startswith("rmadapter export ")
    assert facts["bytes"] < (tmp_path / "a/model.onnx").stat().st_size
    refused(rmadapter(*command, "--out", tmp_path / "a"), "a: already exists")


def test_what_is_refused(rmadapter: Command, finished: Path, tmp_path: Path) -> None:
    refused(
        rmadapter("export", finished, "--to", "tflite"),
        "--to tflite: choose one of onnx, web, torch, litert, openvino",
    )
    refused(
        rmadapter("export", finished, "--precision", "x", "--out", tmp_path / "a"),
        "--precision x: choose one of",
    )
    refused(rmadapter("export", tmp_path, "--out", tmp_path / "a"), "not a finished run")
    gone = ["--data", tmp_path / "gone", *backbone_option(finished), "--out", tmp_path / "a"]
    refused(rmadapter("export", finished, *gone), "gone: no such file or folder")
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_called_by_a_dot(
    rmadapter: Command, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(run: Path, saved: object, out: Path, *rest: object, **wishes: object) -> None:
        raise UserError(f"it would be written to {out}")

    monkeypatch.setattr("rmadapter.deploy.export.folder.export", stop)  # which takes ten seconds
    monkeypatch.chdir(shutil.copytree(finished, tmp_path / "run"))
    refused(
        rmadapter("export", ".", *backbone_option(finished)),
        f"it would be written to {tmp_path / 'run-onnx'}",
    )
