"""A run or an export as a server asks it: the same answers as the run's, and what is told of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rmadapter.artifacts.checkpoint import load, save
from rmadapter.artifacts.record import Score, read_record
from rmadapter.backbones import Backbone
from rmadapter.data.decode import load_image
from rmadapter.deploy.export import folder as exporting
from rmadapter.deploy.export import graph
from rmadapter.deploy.export.folder import export
from rmadapter.deploy.serve import model as serving
from rmadapter.deploy.serve.model import (
    ServeOptions,
    accuracy_of,
    answers_module,
    cached_export,
    open_served,
)  # fmt: skip
from rmadapter.errors import UserError
from rmadapter.methods import load_method
from rmadapter.support.files import sign
from rmadapter.training.contract import Known, NotApplicable
from tests.helpers.shots import shots_of

pytest.importorskip("onnxruntime", reason="pip install 'rmadapter[export]'")
pytest.importorskip("onnxscript", reason="pip install 'rmadapter[export]'")

ALONE = """
import json, sys
from pathlib import Path
from rmadapter.deploy.serve.model import ServeOptions, open_served
served = open_served(ServeOptions(Path(sys.argv[1])))
print(json.dumps([served.labels, served.facts, "torch" in sys.modules]))
"""


@pytest.fixture(scope="module")
def exported(
    finished: Path, tiny_clip: Backbone, colors: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("served") / "export"
    export(finished, load(finished, tiny_clip), out, data=colors, embeddings=True)
    return out


def test_answers_and_features_equal_those_of_the_run(
    finished: Path, tiny_clip: Backbone, colors: Path, exported: Path
) -> None:
    images = sorted(colors.glob("test/*/*.png"))
    saved = load(finished, tiny_clip)
    wanted = np.concatenate(
        [part.numpy() for part in saved.fitted.probabilities(images, saved.names)]
    )
    features = []
    for folder, near in ((finished, 1e-6), (exported, 1e-4)):
        served = open_served(ServeOptions(folder, backbone=tiny_clip.name, threads=1))
        assert (served.labels, served.features, served.size) == (saved.labels, True, 32)
        pixels = np.stack([served.transform(load_image(image)) for image in images])
        assert np.abs(served.predict(pixels, False)[0] - wanted).max() < near
        probabilities, found = served.predict(pixels, True)
        assert np.abs(probabilities - wanted).max() < near
        assert np.linalg.norm(found, axis=-1) == pytest.approx(1, abs=1e-5)
        features.append(found)
        assert served.best(wanted[0], 1) == [("blue", round(float(wanted[0].max()), 6))]
    assert features[0] == pytest.approx(features[1], abs=1e-4)


def test_facts_of_a_run(finished: Path, tiny_clip: Backbone) -> None:
    facts = json.loads(
        json.dumps(open_served(ServeOptions(finished, backbone=tiny_clip.name)).facts)
    )
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


def test_custom_methods_are_named_without_their_folder(finished: Path, tmp_path: Path) -> None:
    model = json.loads((finished / "model.json").read_text())
    model["method"]["name"] = "/home/anna/own.py:Mine"
    (tmp_path / "model.json").write_text(json.dumps(model))
    assert serving.run_source(tmp_path)["method"]["name"] == "own.py:Mine"


def test_accuracy_of_a_run_without_a_judgement(finished: Path) -> None:
    record = read_record(finished / "run.json")
    empty, score = (Score(name="all", images=images, classes=4, accuracy=80) for images in (0, 50))
    found = accuracy_of(record.model_copy(update={"judgement": None, "scores": (empty, score)}))
    assert found is not None
    assert (found["accuracy"], found["images"], found["of"]) == (80.0, 50, "test, all classes")
    assert (found["low"], found["high"]) == (66.96, 88.76)  # of Wilson's formula, for 40 of 50
    assert accuracy_of(record.model_copy(update={"judgement": None, "scores": ()})) is None


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


def test_facts_of_an_export_are_validated(exported: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "export"))
    for facts in (
        [],
        {"method": 3, "backbone": [], "parity": {"after": "x", "images": None}},
        {"parity": {"after": 1e9, "images": 9}},
    ):
        (folder / "export.json").write_text(json.dumps(facts))
        found = open_served(ServeOptions(folder)).facts
        assert (found["method"], found["backbone"], found["accuracy"]) == (None, None, None)
    (folder / "export.json").unlink()
    assert open_served(ServeOptions(folder)).facts["accuracy"] is None


def test_a_method_without_features(
    tiny_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise NotApplicable("no features")

    save(
        tmp_path / "run",
        load_method("zero-shot").restore(tiny_clip, Known(("cat", "dog")), {}),
        "zero-shot",
    )
    assert open_served(ServeOptions(tmp_path / "run", backbone=tiny_clip.name)).features
    monkeypatch.setattr(graph, "image_features", none)
    served = open_served(ServeOptions(tmp_path / "run", backbone=tiny_clip.name))
    assert not served.features
    image = np.zeros((1, *served.transform(Image.new("RGB", (9, 9))).shape), np.float32)
    assert [part.shape for part in served.predict(image, False)] == [(1, 2)]
    assert served.facts["accuracy"] is None


def test_refused_options(
    finished: Path, exported: Path, tiny_clip: Backbone, tmp_path: Path
) -> None:
    for options, told in (
        (ServeOptions(tmp_path), "not a finished run"),
        (ServeOptions(tmp_path, "onnx"), "--engine onnx"),
        (ServeOptions(finished, "onxx"), "onnx'"),
        (ServeOptions(exported, "torch"), "--engine torch"),
        (ServeOptions(finished), "--backbone"),
    ):
        with pytest.raises(UserError, match=told):
            open_served(options)


def test_nan_answers_are_refused() -> None:
    for number in (np.nan, np.inf):
        with pytest.raises(UserError, match="run: its answers contain NaN or infinity"):
            serving.answer_grey(
                Path("run"),
                lambda pixels, number=number: [pixels.mean((2, 3)), pixels.mean((2, 3)) + number],
                4,
            )  # type: ignore


def test_sign_is_of_the_folder_before_reading(exported: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "export"))
    assert open_served(ServeOptions(folder)).sign == sign(folder) is not None
    (folder / "SHA256SUMS").unlink()
    assert open_served(ServeOptions(folder)).sign is None


def test_module_gives_features_if_there_are_any(
    finished: Path, tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = load(finished, tiny_clip)
    pixels = torch.zeros(2, 3, tiny_clip.image_size, tiny_clip.image_size)
    module, features = answers_module(saved)
    assert features
    both = module(pixels)

    def none(*_: object) -> None:
        raise NotApplicable("no features")

    monkeypatch.setattr(graph, "image_features", none)
    module, features = answers_module(saved)
    assert not features
    torch.testing.assert_close(module(pixels), both[0])


# Cached exports


@pytest.mark.slow
def test_run_is_exported_once(
    finished: Path, tiny_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path / "cache"))
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    options = ServeOptions(run, "onnx", 1, tiny_clip.name)
    served = open_served(options)
    assert (served.features, served.facts["engine"]) == (True, "onnx")
    assert served.facts["accuracy"] == open_served(options._replace(engine="")).facts["accuracy"]
    (place,) = (tmp_path / "cache/serve").iterdir()
    assert not [path for path in run.iterdir() if path.suffix == ".onnx"]
    with monkeypatch.context() as patch:
        patch.setattr(exporting, "export", None)  # it is not asked
        assert cached_export(run, options) == place
    saved = load(run, tiny_clip)
    (run / "run.json").unlink()  # over which no model is saved
    save(run, saved.fitted, saved.name, labels=("a", "b", "c", "d"))
    assert open_served(options).labels == ("a", "b", "c", "d")
    assert len(list((tmp_path / "cache/serve").iterdir())) == 2


def test_servers_wait_for_each_others_export(
    finished: Path, tiny_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path / "cache"))
    options, made = ServeOptions(finished, "onnx", 1, tiny_clip.name), []

    def slowly(folder: Path, options: ServeOptions, place: Path) -> None:
        made.append(place)
        time.sleep(0.5)
        place.mkdir()

    monkeypatch.setattr(serving, "export_run", slowly)
    with ThreadPoolExecutor() as pool:
        first, second = pool.map(lambda _: cached_export(finished, options), range(2))
    assert made == [first]
    assert first == second
    monkeypatch.setattr(serving, "PATIENCE", 0)
    first.rmdir()
    with ThreadPoolExecutor() as pool:
        answers = [pool.submit(cached_export, finished, options) for _ in range(2)]
        faults = [str(answer.exception()) for answer in answers if answer.exception()]
    assert len(faults) == 1
    assert str(finished) in faults[0]


def test_changed_custom_method_is_exported_again(
    tiny_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(exporting, "export", lambda folder, saved, place, **_: place.mkdir())
    code = Path(shutil.copy(Path(__file__).parents[2] / "helpers/external_methods.py", tmp_path))
    name = f"{code}:ExternalMethod"
    save(tmp_path / "run", load_method(name).fit(tiny_clip, shots_of(tiny_clip)), name)
    options = ServeOptions(tmp_path / "run", "onnx", 1, tiny_clip.name, name)
    first = cached_export(tmp_path / "run", options)
    assert cached_export(tmp_path / "run", options) == first
    code.write_text(code.read_text() + "# answers otherwise now\n")
    assert cached_export(tmp_path / "run", options) != first


def test_damaged_run_is_not_exported(finished: Path, tiny_clip: Backbone, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / "model.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="SHA256SUMS"):
        cached_export(run, ServeOptions(run, "onnx", 1, tiny_clip.name))
