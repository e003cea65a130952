"""A run becomes a folder that answers as `predict` does, written whole or not at all."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rmadapter.answers.answer import cell
from rmadapter.artifacts.checkpoint import Saved, load
from rmadapter.artifacts.record import read_record
from rmadapter.backbones import Backbone
from rmadapter.data.read import load_image
from rmadapter.errors import UserError
from rmadapter.export import folder as exporting, parity
from rmadapter.export.folder import PREDICT, check_options, comparison_images, export, readme
from rmadapter.export.runtime import Model
from rmadapter.export.targets import ExportOptions
from rmadapter.predict.stream import Predictor
from rmadapter.runs.features import examine
from rmadapter.support.files import check_sums
from tests.helpers.shell import limited_file_size

pytest.importorskip("onnxruntime", reason="pip install 'rmadapter[export]'")
pytest.importorskip("onnxscript", reason="pip install 'rmadapter[export]'")

pytestmark = pytest.mark.ci  # each worker makes the exports anew
ADDED = {"labels.json", "preprocess.json", "SHA256SUMS"}
ADDED |= {"export.json", "README.md", "predict.py", "requirements.txt"}
TEXT_FILES = {"text.onnx", "tokenizer.json", "prompts.json", "weights.npy"}
# Run a script where some packages cannot be imported.
ALONE = "import runpy, sys; sys.argv = sys.argv[1:]; "
ALONE += "sys.modules.update(dict.fromkeys(sys.argv.pop(0).split())); "
ALONE += "runpy.run_path(sys.argv[0], run_name='__main__')"


def run_alone(folder: Path, *words: object, absent: str = "torch rmadapter") -> list[str]:
    """Run predict.py without packages; return its lines."""
    command = [sys.executable, "-c", ALONE, absent, folder / PREDICT, *words]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


@pytest.fixture
def images(colors: Path) -> list[Path]:
    return sorted(colors.glob("test/*/*.png"))


def test_files_of_an_export(exported: Path) -> None:
    assert names(exported) == ADDED | {"model.onnx", "calibration.json", "familiarity.json"}
    assert names(exported.parent) == {"model"}
    check_sums(exported, ["model.onnx", "labels.json", "preprocess.json"])
    labels = json.loads((exported / "labels.json").read_text())
    assert labels == ["blue", "green", "night_sky", "red"]
    facts = json.loads((exported / "export.json").read_text())
    compared = facts["parity"]
    assert (compared["same"], compared["images"]) == (1, 16)
    assert compared["difference"] <= 1e-4
    assert compared["before"] == compared["after"] > 90
    assert (facts["method"]["name"], facts["classes"]) == ("rmadapter", 4)
    assert facts["command"] == "as tested"
    assert "/" not in facts["backbone"]["name"]  # no folder of this machine
    assert {"onnx", "onnxruntime", "torch"} <= set(facts["versions"])
    page = (exported / "README.md").read_text()
    assert facts["sha256"] in page
    assert "{" not in page.replace("{label}: {probability:.1%}", "")


def test_answers_without_torch_equal_predict(
    exported: Path, saved: Saved, colors: Path, images: list[Path]
) -> None:
    rows = list(csv.DictReader(run_alone(exported, colors / "test")))
    assert [row["image"] for row in rows] == list(map(str, images))
    table = next(saved.fitted.probabilities(images, saved.names))
    for row, shares in zip(rows, table.tolist(), strict=True):
        best = shares.index(max(shares))
        assert row["label"] == saved.labels[best]
        assert float(row["probability"]) == pytest.approx(shares[best], abs=1e-4)


def test_example_code_of_the_page(exported: Path, colors: Path) -> None:
    block = (exported / "README.md").read_text().split("```python\n")[1].split("```")[0]
    code = block.replace("cat.jpg", str(colors / "test/red/0.png"))
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=exported)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("red: ")
    assert len(done.stdout.splitlines()) == 3


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_openvino(
    precision: str, finished: Path, saved: Saved, colors: Path, images: list[Path], tmp_path: Path
) -> None:
    for name in ("openvino", "nncf")[: 1 + (precision == "int8")]:
        pytest.importorskip(name, reason="pip install 'rmadapter[openvino]'")
    out = tmp_path / "model"
    facts = export(finished, saved, out, ExportOptions("openvino", precision), data=colors)
    assert names(out) == ADDED | {"model.xml", "model.bin"}
    assert facts["files"] == ["model.xml", "model.bin"]
    assert (out / "requirements.txt").read_text().endswith("openvino>=2025\n")
    assert facts["parity"]["difference"] <= {"fp32": 1e-4, "int8": 0.1}.get(precision, 1e-2)
    model = Model(out, threads=1)
    before, after = parity.fitted_table(saved, images), model.probabilities(model.pixels(images))
    assert (before.argmax(1) == after.argmax(1)).all()
    assert model.probabilities(np.zeros((1, 3, 32, 32), np.float32)).shape == (1, 4)


@pytest.mark.slow
def test_other_answers_are_refused(
    finished: Path, saved: Saved, colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "model"
    monkeypatch.setitem(parity.LIMITS, "fp16", parity.Limit(difference=1e-9))
    with pytest.raises(UserError, match=r"RMAdapter in fp16: .*--force"):
        export(finished, saved, out, ExportOptions(precision="fp16"), data=colors)
    assert not list(tmp_path.iterdir())
    forced = ExportOptions(precision="fp16", force=True)
    facts = export(finished, saved, out, forced, data=colors)
    assert facts["kept in spite of"]
    assert facts["kept in spite of"] in (out / "README.md").read_text()


def test_generated_images_are_noted(
    finished: Path, saved: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)  # where the data is not
    assert (
        len(comparison_images(finished, saved, None, False, "fp32").images)
        == parity.GENERATED_IMAGES
    )
    assert "--data" in capsys.readouterr().err


def test_int8_needs_images_with_labels(finished: Path, saved: Saved, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--data"):
        export(finished, saved, tmp_path / "model", ExportOptions(precision="int8"))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing(
    finished: Path, saved: Saved, exported: Path, colors: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import onnx

    traced = onnx.load(exported / "model.onnx")  # only writing fails
    monkeypatch.setattr("rmadapter.export.graph.trace", lambda *_: traced)

    def export_to_full_disk() -> None:
        with limited_file_size(100_000):
            export(finished, saved, tmp_path / "model", data=colors)

    with pytest.raises(UserError, match="cannot be written"):
        export_to_full_disk()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("onnx", "fp8"), r"--precision fp8.* int8"),
        (("tflite", "fp32"), r"--to tflite.* litert"),
        (("openvino", "fp32", False, False, True), "--text"),
        (("litert", "fp32", False, True, False), "--embeddings"),
    ],
)
def test_refused_options(tmp_path: Path, options: tuple[Any, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_options(tmp_path / "new", ExportOptions(*options))


def test_existing_folders_and_missing_packages_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_options(tmp_path / "new", ExportOptions())
    os.symlink(tmp_path / "nowhere", tmp_path / "link")
    for existing in (tmp_path, tmp_path / "link"):
        with pytest.raises(UserError, match="--out"):
            check_options(existing, ExportOptions())
    missing = exporting.TARGETS["onnx"]._replace(modules=("onnx", "no_such_module"))
    monkeypatch.setitem(exporting.TARGETS, "onnx", missing)
    with pytest.raises(UserError, match=r"no_such_module; .*rmadapter\[export\]"):
        check_options(tmp_path / "new", ExportOptions())


def test_exported_features_equal_those_of_the_run(
    saved: Saved, exported: Path, images: list[Path], tmp_path: Path
) -> None:
    assert json.loads((exported / "export.json").read_text())["parity"]["features"] < 1e-5
    model = Model(exported, threads=1)
    features = model.embed(images[:3])
    whole = saved.fitted.for_classes(saved.names)
    pixels = np.stack([model.transform(load_image(image)) for image in images[:3]])
    states = saved.fitted.states(torch.from_numpy(pixels))
    expected = torch.nn.functional.normalize(whole.features(states), dim=-1)  # type: ignore[attr-defined]
    assert np.abs(features - expected.detach().numpy()).max() < 1e-5
    run_alone(exported, *images, "--embeddings", tmp_path / "all.npy")
    assert np.abs(np.load(tmp_path / "all.npy")[:3] - features).max() < 1e-5
    assert "`features` [batch, length]" in (exported / "README.md").read_text()


@pytest.mark.slow
def test_class_added_by_name(
    finished: Path, saved: Saved, colors: Path, images: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "model"
    facts = export(finished, saved, out, ExportOptions(text=True), data=colors)
    assert facts["parity"]["added"] < 1e-4
    assert facts["parity"]["features"] < 1e-4
    assert names(out) == ADDED | {"model.onnx"} | TEXT_FILES
    rows = list(csv.DictReader(run_alone(out, *images, "--add", "olive_green", "--top", "5")))
    table = next(saved.fitted.probabilities(images, (*saved.names, "olive green"))).tolist()
    labels = [*saved.labels, "olive_green"]
    for row, shares in zip(rows, table, strict=True):
        places = ("", "_2", "_3", "_4", "_5")
        answers = {row[f"label{n}"]: float(row[f"probability{n}"]) for n in places}
        assert answers == pytest.approx(dict(zip(labels, shares, strict=True)), abs=1e-4)


def test_the_same_sets_as_predict(
    calibrated: Path, tiny_clip: Backbone, blends: list[Path], colors: Path, tmp_path: Path
) -> None:
    saved, out = load(calibrated, tiny_clip), tmp_path / "model"
    facts = export(calibrated, saved, out, data=colors)
    assert facts["calibration"] == {"images": 48, "source": "held out", "grouped": False}
    check_sums(out, ["calibration.json"])
    assert "--error 5%" in (out / "README.md").read_text()
    command = [out / PREDICT, *blends, "--error", "10%", "--top", "2"]
    rows = list(csv.DictReader(run_alone(out, *command[1:])))
    predictor = Predictor(saved.fitted, saved.names, [*map(str, saved.labels)], 2, error=0.1)
    answers = [answer for batch in predictor.predict(blends) for answer in batch]
    header = predictor.decider.columns(2)
    for row, answer in zip(rows, answers, strict=True):
        expected = {name: str(cell(name, answer.row()[name])) for name in header}
        assert [*row] == header
        for name in header:
            if not name.startswith("probability"):
                assert row[name] == expected[name]
    assert {row["decision"] for row in rows} == {"answer", "unsure"}
    assert json.loads(rows[0]["set"])


@pytest.mark.parametrize("embeddings", [False, True])
def test_the_same_images_are_rejected_as_by_predict(
    embeddings: bool,
    calibrated: Path,
    tiny_clip: Backbone,
    blends: list[Path],
    noise: Path,
    colors: Path,
    tmp_path: Path,
) -> None:
    saved, out = load(calibrated, tiny_clip), tmp_path / "model"
    facts = export(calibrated, saved, out, ExportOptions(embeddings=embeddings), data=colors)
    assert facts["familiarity"] == {"images": 48, "source": "held out", "grouped": False}
    assert facts["parity"]["distances"] < 1e-4
    check_sums(out, ["familiarity.json"])
    assert "--turn-away 5%" in (out / "README.md").read_text()
    images = [*blends, noise]
    model = Model(out, threads=1)
    table, far = examine(saved.fitted, images, False)
    ((_, outputs),) = model.outputs(images)
    assert outputs.distances == pytest.approx(far, abs=1e-4)
    assert outputs.probabilities == pytest.approx(table, abs=1e-4)
    assert (outputs.features is not None) == embeddings
    expected = saved.decider(reject_rate=0.1).familiar(table, far)
    assert model.is_familiar(images, turn_away=0.1) == expected.tolist()
    command = [*images, "--turn-away", "10%", "--error", "10%", "--top", "1"]
    rows = list(csv.DictReader(run_alone(out, *command)))
    predictor = Predictor(saved.fitted, saved.names, [*map(str, saved.labels)], 1, 0.1, 0.1)
    assert [*rows[0]] == predictor.decider.columns(1)
    answers = [answer for batch in predictor.predict(images) for answer in batch]
    for row, answer in zip(rows, answers, strict=True):
        for name in ("label", "guess", "unsure", "set", "familiar", "decision"):
            assert row[name] == str(cell(name, answer.row()[name]))
    assert {row["decision"] for row in rows} == {"answer", "unsure", "none of these"}
    assert rows[-1]["label"] == "none of these"
    with pytest.raises(UserError, match="needs 230 images"):
        model.is_familiar(images, turn_away=0.01)


@pytest.mark.slow
def test_images_of_an_added_class_are_not_rejected(
    calibrated: Path, tiny_clip: Backbone, blends: list[Path], noise: Path, colors: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    saved, images = load(calibrated, tiny_clip), [*blends, noise]
    export(calibrated, saved, tmp_path / "model", ExportOptions(text=True), data=colors)
    model = Model(tmp_path / "model")
    model.add_class("olive green")
    added = (*saved.names, "olive green")
    predictor = Predictor(saved.fitted, added, added, 1, reject_rate=0.1)
    answers = [answer for batch in predictor.predict(images) for answer in batch]
    assert model.is_familiar(images, turn_away=0.1) == [answer.familiar for answer in answers]


def test_an_export_of_a_run_that_cannot_reject_images(
    finished: Path, tiny_clip: Backbone, tmp_path: Path
) -> None:
    saved = load(finished, tiny_clip)
    without = saved._replace(fitted=replace(saved.fitted, familiarity=None, calibration=None))
    export(finished, without, tmp_path / "model")
    model = Model(tmp_path / "model")
    ((_, outputs),) = model.outputs([np.zeros((9, 9, 3), np.uint8)])
    assert outputs.distances is None
    with pytest.raises(UserError, match="fit again with --folds 4"):
        model.is_familiar([])


def test_no_calibration_for_other_classes(calibrated: Path, tiny_clip: Backbone) -> None:
    saved = load(calibrated, tiny_clip)
    added = saved._replace(names=(*saved.names, "olive"))
    other = saved._replace(names=("olive", *saved.names))
    fitted = saved.fitted
    assert added.decider().calibration == fitted.calibration is not None
    assert added.decider().rejection == fitted.familiarity is not None
    assert other.decider().calibration is other.decider().rejection is None


def test_int8_says_what_became_of_the_promises(
    calibrated: Path, tiny_clip: Backbone, colors: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The limits are those of float32, and the decisions of both models are compared."""
    monkeypatch.setattr("rmadapter.export.int8.MIN_WEIGHT_SIZE", 2**10)
    saved, out = load(calibrated, tiny_clip), tmp_path / "model"
    forced = ExportOptions(precision="int8", force=True)
    facts = export(calibrated, saved, out, forced, data=colors)
    rows = facts["parity"]["decisions"]
    assert [row["share"] for row in rows] == [0.05, 0.1] * 2
    images = sorted(colors.glob("test/*/*.png"))
    labels = [[*map(str, saved.labels)].index(image.parent.name) for image in images]
    model = Model(out)
    sets = model.predict_set(images, error=0.1)
    missed = [model.labels[label] not in names for label, names in zip(labels, sets, strict=True)]
    assert rows[1]["after"] == pytest.approx(100 * np.mean(missed))
    familiar = model.is_familiar(images, turn_away=0.1)
    assert rows[3]["after"] == pytest.approx(100 - 100 * np.mean(familiar))
    text = (out / "README.md").read_text()
    assert text.count("The promise is that of the model before it was put into 8 bits") == 2
    row = rows[1]
    cells = f"{row['same']:.1f} | {row['before']:.1f} | {row['after']:.1f}"
    assert f"| sets without the right class, at 10 % | {cells} |" in text
    assert "| called none of these, at 5 % |" in text


def test_readme_with_and_without_a_record(exported: Path, finished: Path) -> None:
    facts = json.loads((exported / "export.json").read_text())
    compared = {**facts["parity"], "title": "generated", "images": 64, "difference": 1.5e-6}
    facts = {**facts, "bytes": 12_345_678, "parity": {**compared, "after": None, "decisions": []}}
    facts |= {"calibration": None, "familiarity": None}
    bare = readme(facts, None, 32)
    for text in ("# RMAdapter: 4 classes", "12.3 MB", facts["sha256"], "1.5e-06", "32, 32]"):
        assert text in bare
    assert f"licence of the weights: {facts['licence of the weights']}" in bare
    assert "|" not in bare
    assert "although" not in bare
    record = read_record(finished / "run.json")
    full = readme({**facts, "parity": {**compared, "after": 87.5}}, record, 32)
    (score,) = record.scores
    assert f"| {score.title} (test) | 16 | {score.zero_shot:.1f} | {score.accuracy:.1f} |" in full
    assert "| generated, this export | 64 | | 87.5 |" in full
