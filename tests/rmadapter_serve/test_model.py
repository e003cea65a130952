"""A run or an export as the server calls it: the same answers as the run's, and its facts."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rmadapter.answers.decider import Decider, write_decider
from rmadapter.answers.rejection import RejectionScore
from rmadapter.artifacts.checkpoint import Saved, save
from rmadapter.artifacts.record import Score, read_record
from rmadapter.backbones import Backbone
from rmadapter.data.decode import load_image
from rmadapter.errors import UserError
from rmadapter.export import graph
from rmadapter.export.engines import Outputs
from rmadapter.export.folder import export
from rmadapter.methods import load_method
from rmadapter.support.files import write_sums
from rmadapter.training.contract import Known, NotApplicable
from rmadapter_serve import model as serving
from rmadapter_serve.model import ServeOptions, accuracy_of, open_served, sign

pytest.importorskip("onnxruntime", reason="pip install 'rmadapter[export]'")
pytest.importorskip("onnxscript", reason="pip install 'rmadapter[export]'")

LABELS = ["blue", "green", "night_sky", "red"]
ALONE = """
import json, sys
from dataclasses import replace
from pathlib import Path
from rmadapter_serve.model import ServeOptions, open_served
served = open_served(ServeOptions(Path(sys.argv[1])))
print(json.dumps([served.model.decider.labels, served.facts, "torch" in sys.modules]))
"""


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


@pytest.fixture
def without_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no method have features."""

    def refuse(*_: object) -> None:
        raise NotApplicable("no features")

    monkeypatch.setattr(graph, "image_features", refuse)


def test_answers_and_features_equal_those_of_the_run(
    finished: Path, saved: Saved, colors: Path, exported: Path
) -> None:
    images = sorted(colors.glob("test/*/*.png"))
    parts = saved.fitted.probabilities(images, saved.names)
    expected = np.concatenate([part.numpy() for part in parts])
    features = []
    for folder, near in ((finished, 1e-6), (exported, 1e-4)):
        served = open_served(ServeOptions(folder, backbone=saved.fitted.backbone.name, threads=1))
        model = served.model
        assert (model.decider.labels, model.size) == (saved.labels, 32)
        assert served.facts["features"]
        pixels = np.stack([model.transform(load_image(image)) for image in images])
        assert np.abs(model.probabilities(pixels) - expected).max() < near
        probabilities, rows, _ = model.ask(pixels)
        assert rows is not None
        assert np.abs(probabilities - expected).max() < near
        assert np.linalg.norm(rows, axis=-1) == pytest.approx(1, abs=1e-5)
        features.append(rows)
        best = ("blue", round(float(expected[0].max()), 6))
        assert model.decider.answer(expected[:1], top=1)[0].best == (best,)
    assert features[0] == pytest.approx(features[1], abs=1e-4)


def test_facts_of_a_run(finished: Path, tiny_clip: Backbone) -> None:
    served = open_served(ServeOptions(finished, backbone=tiny_clip.name))
    text = json.dumps(served.facts)
    facts = json.loads(text)
    judgement = read_record(finished / "run.json").judgement
    assert judgement is not None
    accuracy = facts["accuracy"]
    assert accuracy["accuracy"] == pytest.approx(judgement.fitted.accuracy, abs=0.01)
    assert accuracy["low"] < judgement.fitted.accuracy
    assert accuracy["images"] == 16
    assert facts["method"]["name"] == "rmadapter"
    assert (facts["engine"], facts["image_size"], facts["classes"]) == ("torch", 32, LABELS)
    assert facts["backbone"]["name"] == Path(tiny_clip.name).name
    assert {"rmadapter", "torch", "numpy"} <= set(facts["versions"])
    for folder in (finished, Path(tiny_clip.name).parent):
        assert str(folder) not in text


def test_custom_methods_are_named_without_their_folder(finished: Path, tmp_path: Path) -> None:
    model = json.loads((finished / "model.json").read_text())
    model["method"]["name"] = "/home/anna/own.py:Mine"
    (tmp_path / "model.json").write_text(json.dumps(model))
    method = serving.run_source(tmp_path)["method"]
    assert method is not None
    assert method["name"] == "own.py:Mine"


def test_accuracy_of_a_run_without_a_judgement(finished: Path) -> None:
    record = read_record(finished / "run.json")
    empty, score = (Score(name="all", images=images, classes=4, accuracy=80) for images in (0, 50))
    accuracy = accuracy_of(record.model_copy(update={"judgement": None, "scores": (empty, score)}))
    assert accuracy == {
        "accuracy": 80.0, "images": 50, "of": "test, all classes",
        "low": 66.96, "high": 88.76,  # of Wilson's formula, for 40 of 50
    }  # fmt: skip
    assert accuracy_of(record.model_copy(update={"judgement": None, "scores": ()})) is None


@pytest.mark.ci
def test_an_export_is_served_without_torch(exported: Path) -> None:
    command = [sys.executable, "-c", ALONE, str(exported)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    labels, facts, has_torch = json.loads(done.stdout)
    assert not has_torch
    assert labels == facts["classes"] == LABELS
    assert (facts["engine"], facts["features"]) == ("onnx", True)
    assert facts["method"]["name"] == "rmadapter"
    assert facts["accuracy"]["images"] == 16
    assert "onnxruntime" in facts["versions"]


@pytest.mark.parametrize(
    "facts",
    [
        [],
        {"method": 3, "backbone": [], "parity": {"after": "x", "images": None}},
        {"parity": {"after": 1e9, "images": 9}},
        None,
    ],
)
def test_facts_of_an_export_are_validated(exported: Path, tmp_path: Path, facts: Any) -> None:
    folder = copied(exported, tmp_path / "export")
    (folder / "export.json").unlink()
    if facts is not None:
        (folder / "export.json").write_text(json.dumps(facts))
    served = open_served(ServeOptions(folder)).facts
    assert (served["method"], served["backbone"], served["accuracy"]) == (None, None, None)


def test_a_graph_without_the_distances_that_its_folder_promises(
    finished: Path, saved: Saved, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    export(finished, saved._replace(fitted=replace(saved.fitted, familiarity=None)), folder)
    rejection = RejectionScore((0.9,), (0.1,), "folds")
    write_decider(folder, Decider([*"abcd"], 4, rejection=rejection))
    with pytest.raises(UserError, match="export the run again"):
        open_served(ServeOptions(folder))


def test_a_method_without_features(
    tiny_clip: Backbone, tmp_path: Path, without_features: None
) -> None:
    fitted = load_method("zero-shot").restore(tiny_clip, Known(("cat", "dog")), {})
    save(tmp_path / "run", fitted, "zero-shot")
    served = open_served(ServeOptions(tmp_path / "run", backbone=tiny_clip.name))
    assert not served.facts["features"]
    image = served.model.transform(Image.new("RGB", (9, 9)))[None]
    table, *others = served.model.ask(image)
    assert table.shape == (1, 2)
    assert others == [None, None]
    assert served.facts["accuracy"] is None


def test_refused_options(finished: Path, exported: Path, tmp_path: Path) -> None:
    for options, hint in (
        (ServeOptions(tmp_path), "not a finished run"),
        (ServeOptions(tmp_path, "onnx"), "--engine onnx"),
        (ServeOptions(finished, "onxx"), "onxx: .*onnx"),
        (ServeOptions(exported, "torch"), "--engine torch"),
        (ServeOptions(exported, device="mps"), "--device mps"),
        (ServeOptions(exported, device="cuda:x"), "--device cuda:x"),
        (ServeOptions(finished), "--backbone"),
    ):
        with pytest.raises(UserError, match=hint):
            open_served(options)


def test_an_export_on_the_cpu_has_no_device_in_its_facts(exported: Path) -> None:
    """Its facts are those that it had before a device could be chosen."""
    served = open_served(ServeOptions(exported, device="cpu"))
    assert served.facts == open_served(ServeOptions(exported)).facts
    assert "device" not in served.facts


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_nan_answers_are_refused(number: float) -> None:
    table = np.ones((1, 3))
    serving.check_finite(Path("run"), Outputs(table))
    with pytest.raises(UserError, match="run: its answers contain NaN or infinity"):
        serving.check_finite(Path("run"), Outputs(table, table * number))


def test_sign_is_of_the_folder_before_reading(exported: Path, tmp_path: Path) -> None:
    folder = copied(exported, tmp_path / "export")
    assert open_served(ServeOptions(folder)).sign == sign(folder) is not None
    (folder / "SHA256SUMS").unlink()
    assert open_served(ServeOptions(folder)).sign is None


def test_the_sign_of_a_folder_changes_when_it_is_saved_again(tmp_path: Path) -> None:
    assert sign(tmp_path) is None
    (tmp_path / "a").write_text("1")
    write_sums(tmp_path, ["a"])
    before = sign(tmp_path)
    assert None is not before == sign(tmp_path)
    write_sums(tmp_path, ["a"])
    assert None is not before != sign(tmp_path)
