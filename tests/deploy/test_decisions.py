"""The same image gets the same prediction set and the same decision by every route."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest

from rmadapter import FewShotClassifier, explain_images
from rmadapter.artifacts.checkpoint import load
from rmadapter.backbones import Backbone
from tests.helpers.serving import TestClient
from tests.helpers.shell import Command, rmadapter

from rmadapter.deploy.serve.model import ServeOptions, open_served  # isort: skip
from rmadapter.deploy.serve.routes import create_app  # isort: skip
from rmadapter.deploy.serve.service import Limits, Service  # isort: skip

__all__ = ["rmadapter"]  # a fixture

Decisions: TypeAlias = "list[tuple[list[str], str]]"  # the set and the decision of each image


@pytest.fixture(scope="module")
def expected(calibrated: Path, tiny_clip: Backbone, blends: list[Path]) -> Decisions:
    """Of `predict_set`, for images of which none is as near to a limit as engines may differ."""
    saved = load(calibrated, tiny_clip)
    table = np.concatenate([part.numpy() for part in saved.fitted.probabilities(blends)])
    assert np.abs(table - 0.2).min() > 1e-3
    model = FewShotClassifier.load(calibrated, backbone=tiny_clip.name)
    sets = model.predict_set(blends, error=0.1)
    answers = model.predict(blends, error=0.1)
    decided = ["unsure" if answer is None else "answer" for answer in answers]
    assert {*decided} == {"answer", "unsure"}
    return [*zip(sets, decided, strict=True)]


def of_rows(rows: list[dict[str, str]]) -> Decisions:
    for row in rows:
        assert (row["label"] == "unsure") == (row["decision"] == "unsure")
    return [(json.loads(row["set"]), row["decision"]) for row in rows]


def test_by_the_command_line(
    expected: Decisions, calibrated: Path, tiny_clip: Backbone, blends: list[Path],
    rmadapter: Command, tmp_path: Path,
) -> None:  # fmt: skip
    command = ["predict", calibrated, *blends, "--backbone", tiny_clip.name, "--error", "10%"]
    found = rmadapter.json(*command)
    assert [(one["set"], one["decision"]) for one in found] == expected
    rmadapter.done(*command, "--out", tmp_path / "a.csv")
    with open(tmp_path / "a.csv", encoding="utf-8", newline="") as file:
        assert of_rows([*csv.DictReader(file)]) == expected
    rmadapter.done(*command, "--out", tmp_path / "a.jsonl")
    lines = (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()
    assert of_rows([json.loads(line) for line in lines]) == expected


def test_by_explanations(
    expected: Decisions, calibrated: Path, tiny_clip: Backbone, blends: list[Path], colors: Path
) -> None:
    found = explain_images(
        calibrated, blends, data=colors, backbone=tiny_clip, progress=False, error=0.1
    )
    assert [([*one.labels], one.decision) for one in found] == expected


def by_server(folder: Path, backbone: Backbone, images: list[Path]) -> Decisions:
    served = open_served(ServeOptions(folder, backbone=backbone.name, threads=1))
    service = Service({"model": served}, Limits())
    try:
        files = [("files", (image.name, image.read_bytes())) for image in images]
        answer = TestClient(create_app(service)).post("/predict?error=0.1", files=files)
    finally:
        service.close()
    assert answer.status_code == 200
    return [(one["set"], one["decision"]) for one in answer.json()["answers"]]


def test_by_the_server(
    expected: Decisions, calibrated: Path, tiny_clip: Backbone, blends: list[Path]
) -> None:
    assert by_server(calibrated, tiny_clip, blends) == expected


SLOW = pytest.mark.slow
FORMATS = ["onnx", *(pytest.param(to, marks=SLOW) for to in ("torch", "openvino", "litert"))]
NEEDED = {
    "onnx": ("onnxruntime", "onnxscript"), "openvino": ("openvino",), "litert": ("litert_torch",)
}  # fmt: skip


@pytest.mark.parametrize("to", FORMATS)
def test_by_exports(
    to: str, expected: Decisions, calibrated: Path, tiny_clip: Backbone, blends: list[Path],
    colors: Path, tmp_path: Path,
) -> None:  # fmt: skip
    for needed in NEEDED.get(to, ()):
        pytest.importorskip(needed)
    from rmadapter.deploy.export.folder import export
    from rmadapter.deploy.export.runtime import Model

    out = tmp_path / "model"
    export(calibrated, load(calibrated, tiny_clip), out, data=colors, to=to)
    command = [sys.executable, out / "predict.py", *blends, "--error", "10%"]
    text = subprocess.check_output([*map(str, command)], text=True, stderr=subprocess.DEVNULL)
    assert of_rows([*csv.DictReader(text.splitlines())]) == expected
    sets = Model(out, threads=1).predict_set(blends, error=0.1)
    assert sets == [labels for labels, _ in expected]
    assert by_server(out, tiny_clip, blends) == expected
