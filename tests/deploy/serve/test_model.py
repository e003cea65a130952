"""A run or an export as a server asks it: the same answers as the run's, and what is told of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rmadapter.artifacts.checkpoint import load, save
from rmadapter.artifacts.record import Score, read_record
from rmadapter.backbones import Backbone
from rmadapter.data.decode import load_image
from rmadapter.deploy.export.folder import export
from rmadapter.deploy.serve.model import Wish, _grey, _of_run, open_served, worth
from rmadapter.errors import UserError
from rmadapter.methods import load_method
from rmadapter.support.checksums import sign
from rmadapter.training.contract import Known

pytest.importorskip("onnxruntime", reason="pip install 'rmadapter[export]'")
pytest.importorskip("onnxscript", reason="pip install 'rmadapter[export]'")

ALONE = """
import json, sys
from pathlib import Path
from rmadapter.deploy.serve.model import Wish, open_served
served = open_served(Wish(Path(sys.argv[1])))
print(json.dumps([served.labels, served.facts, "torch" in sys.modules]))
"""


@pytest.fixture(scope="module")
def exported(
    finished: Path, tiny_clip: Backbone, colors: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("served") / "export"
    export(finished, load(finished, tiny_clip), out, data=colors, embeddings=True)
    return out


def test_answers_and_features_are_those_of_the_run(
    finished: Path, tiny_clip: Backbone, colors: Path, exported: Path
) -> None:
    images = sorted(colors.glob("test/*/*.png"))
    saved = load(finished, tiny_clip)
    wanted = np.concatenate(
        [part.numpy() for part in saved.fitted.probabilities(images, saved.names)]
    )
    features = []
    for folder, near in ((finished, 1e-6), (exported, 1e-4)):
        served = open_served(Wish(folder, backbone=tiny_clip.name, threads=1))
        assert (served.labels, served.features, served.size) == (saved.labels, True, 32)
        pixels = np.stack([served.transform(load_image(image)) for image in images])
        assert np.abs(served.ask(pixels, False)[0] - wanted).max() < near
        probabilities, found = served.ask(pixels, True)
        assert np.abs(probabilities - wanted).max() < near
        assert np.linalg.norm(found, axis=-1) == pytest.approx(1, abs=1e-5)
        features.append(found)
        assert served.best(wanted[0], 1) == [("blue", round(float(wanted[0].max()), 6))]
    assert features[0] == pytest.approx(features[1], abs=1e-4)


def test_what_is_told_of_a_run(finished: Path, tiny_clip: Backbone) -> None:
    facts = json.loads(json.dumps(open_served(Wish(finished, backbone=tiny_clip.name)).facts))
    record = read_record(finished / "run.json")
    own = next(row for row in record.judgement.rows if row.p is None)  # type: ignore[union-attr]
    assert facts["accuracy"]["accuracy"] == pytest.approx(own.accuracy, abs=0.01)
    assert facts["accuracy"]["low"] < own.accuracy
    assert facts["accuracy"]["images"] == 16
    assert (facts["method"]["name"], facts["engine"], facts["image_size"]) == (
        "rmadapter",
        "torch",
        32,
    )
    assert facts["classes"] == ["blue", "green", "night_sky", "red"]
    assert facts["backbone"]["name"] == Path(tiny_clip.name).name  # and nothing of where it lies
    assert {"rmadapter", "torch", "numpy"} <= set(facts["versions"])
    assert str(finished) not in json.dumps(facts)
    assert str(Path(tiny_clip.name).parent) not in json.dumps(facts)


def test_a_method_of_ones_own_is_told_without_its_folder(finished: Path, tmp_path: Path) -> None:
    model = json.loads((finished / "model.json").read_text())
    model["method"]["name"] = "/home/anna/own.py:Mine"
    (tmp_path / "model.json").write_text(json.dumps(model))
    assert _of_run(tmp_path)["method"]["name"] == "own.py:Mine"


def test_the_accuracy_of_a_run_that_nobody_judged(finished: Path) -> None:
    record = read_record(finished / "run.json")
    empty, score = (Score(name="all", images=images, classes=4, accuracy=80) for images in (0, 50))
    found = worth(record.model_copy(update={"judgement": None, "scores": (empty, score)}))
    assert found is not None
    assert (found["accuracy"], found["images"], found["of"]) == (80.0, 50, "test, all classes")
    assert (found["low"], found["high"]) == (66.96, 88.76)  # of Wilson's formula, for 40 of 50
    assert worth(record.model_copy(update={"judgement": None, "scores": ()})) is None


def test_an_export_is_served_without_torch(exported: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(exported)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    labels, facts, torch = json.loads(done.stdout)
    assert not torch
    assert labels == facts["classes"] == ["blue", "green", "night_sky", "red"]
    assert (facts["engine"], facts["features"], facts["method"]["name"]) == (
        "onnx",
        True,
        "rmadapter",
    )
    assert facts["accuracy"]["images"] == 16
    assert "onnxruntime" in facts["versions"]


def test_what_an_export_says_of_itself_may_be_anything(exported: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "export"))
    for facts in (
        [],
        {"method": 3, "backbone": [], "parity": {"after": "x", "images": None}},
        {"parity": {"after": 1e9, "images": 9}},
    ):
        (folder / "export.json").write_text(json.dumps(facts))
        found = open_served(Wish(folder)).facts
        assert (found["method"], found["backbone"], found["accuracy"]) == (None, None, None)
    (folder / "export.json").unlink()
    assert open_served(Wish(folder)).facts["accuracy"] is None


def test_a_method_without_features(
    tiny_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rmadapter.deploy.export import graph
    from rmadapter.training.contract import NotApplicable

    def none(*_: object) -> None:
        raise NotApplicable("no features")

    save(
        tmp_path / "run",
        load_method("zero-shot").restore(tiny_clip, Known(("cat", "dog")), {}),
        "zero-shot",
    )
    assert open_served(Wish(tmp_path / "run", backbone=tiny_clip.name)).features
    monkeypatch.setattr(graph, "_features", none)
    served = open_served(Wish(tmp_path / "run", backbone=tiny_clip.name))
    assert not served.features
    image = np.zeros((1, *served.transform(Image.new("RGB", (9, 9))).shape), np.float32)
    assert [part.shape for part in served.ask(image, False)] == [(1, 2)]
    assert served.facts["accuracy"] is None


def test_what_is_refused(
    finished: Path, exported: Path, tiny_clip: Backbone, tmp_path: Path
) -> None:
    for wish, told in (
        (Wish(tmp_path), "not a finished run"),
        (Wish(tmp_path, "onnx"), "not a run that --engine onnx can serve"),
        (Wish(finished, "onxx"), "--engine onxx; did you mean 'onnx'"),
        (Wish(exported, "torch"), "an export for onnx; leave out --engine torch, or name the run"),
        (Wish(finished), "name it yourself: --backbone"),
    ):
        with pytest.raises(UserError, match=told):
            open_served(wish)


def test_a_model_that_answers_no_numbers_is_refused() -> None:
    for number in (np.nan, np.inf):
        with pytest.raises(UserError, match="run: its answers contain NaN or infinity"):
            _grey(
                Path("run"),
                lambda pixels, number=number: [pixels.mean((2, 3)), pixels.mean((2, 3)) + number],
                4,
            )  # type: ignore


def test_it_keeps_the_sign_that_the_folder_had_before_it_was_read(
    exported: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "export"))
    assert open_served(Wish(folder)).sign == sign(folder) is not None
    (folder / "SHA256SUMS").unlink()
    assert open_served(Wish(folder)).sign is None
