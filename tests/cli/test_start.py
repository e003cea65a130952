"""What `--help` and `predict`, also the first after a `fit`, import in a Python of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rmadapter.artifacts.checkpoint import save
from rmadapter.backbones import Backbone, load_backbone
from rmadapter.methods.linear_probe import LinearProbe
from rmadapter.training.contract import Known

NAMES = ("blue", "red")
NEVER = (
    "scipy", "sklearn", "pandas", "matplotlib", "onnx", "onnxruntime", "jinja2", "fastapi",
    "datasets", "ray", "timm", "transformers", "rmadapter.bench.runner", "rmadapter.runs.lab",
    "rmadapter.backbones.hugging_face",
)  # fmt: skip
# What --help shows needs none of these.
NOT_FOR_HELP = ("numpy", "torch", "PIL", "yaml", "pydantic", "jinja2")
HELP = """
import json, sys
never = json.loads(sys.argv.pop(1))
from rmadapter.cli.main import main
try:
    main()
except SystemExit:
    print(json.dumps([name for name in never if name in sys.modules]))
"""
SCRIPT = """
import gc, json, sys
never = json.loads(sys.argv.pop(1))
from rmadapter.cli.main import main
try:
    main()
finally:
    assert gc.isenabled() and gc.get_freeze_count() > 10_000
    print(json.dumps([name for name in never if name in sys.modules]))
"""


NEEDS = {"tiny_clip": [], "tiny_hf": ["timm"]}  # of NEVER, for its image encoder


@pytest.fixture(params=NEEDS)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    found: Backbone = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def needs(backbone: Backbone, request: pytest.FixtureRequest) -> list[str]:
    return NEEDS[request.node.callspec.params["backbone"]]


def run(cache: Path, *words: object) -> tuple[Any, list[str]]:
    """Return what a command prints with --json, and which modules of NEVER it imported."""
    command = [sys.executable, "-c", SCRIPT, json.dumps(NEVER), *map(str, words), "--json"]
    own = {**os.environ, "RMADAPTER_CACHE": str(cache)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=own)
    assert done.returncode == 0, done.stderr
    *answer, modules = done.stdout.splitlines()
    return json.loads("".join(answer)), json.loads(modules)


@pytest.mark.ci
def test_predict_imports_only_what_its_model_needs(
    backbone: Backbone, needs: list[str], colors: Path, tmp_path: Path
) -> None:
    tensors = {"weight": torch.rand(1, backbone.embedding_size), "bias": torch.rand(1)}
    fitted = LinearProbe().restore(load_backbone(backbone.name), Known(NAMES), tensors)
    save(tmp_path / "run", fitted, "linear-probe", NAMES)
    image = next(colors.glob("test/red/*"))
    command = ["predict", tmp_path / "run", image, "--backbone", backbone.name, "--device", "cpu"]
    first, _ = run(tmp_path / "cache", *command)
    again, modules = run(tmp_path / "cache", *command)
    assert modules == needs
    assert again == first
    out = tmp_path / "answers.csv"
    run(tmp_path / "cache", *command, "--out", out)
    before = out.read_text()
    out.unlink()
    _, modules = run(tmp_path / "cache", *command, "--out", out)  # zero-shot, too
    assert (modules, out.read_text()) == (needs, before)


@pytest.mark.ci
def test_the_first_predict_on_a_new_run_imports_no_more_than_later_ones(
    backbone: Backbone, needs: list[str], colors: Path, tmp_path: Path
) -> None:
    own = ("--backbone", backbone.name, "--device", "cpu")
    settings = ("--method", "rmadapter", "--shots", "2", "--folds", "0", "--set", "first_block=3")
    few = ("--set", "epochs=1", "--set", "rank=4")
    run(tmp_path / "cache", "fit", colors, "--out", tmp_path / "run", *own, *settings, *few)
    image = next(colors.glob("test/red/*"))
    _, modules = run(tmp_path / "cache", "predict", tmp_path / "run", image, *own)
    assert modules == needs


def test_help_imports_only_what_it_shows() -> None:
    command = [sys.executable, "-c", HELP, json.dumps(NOT_FOR_HELP), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *shown, modules = done.stdout.splitlines()
    assert json.loads(modules) == []
    assert any("predict" in line for line in shown)
