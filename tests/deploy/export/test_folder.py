"""A run becomes a folder that answers as `predict` does, and that appears whole or not at all."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rmadapter.artifacts.checkpoint import Saved, load
from rmadapter.artifacts.record import read_record
from rmadapter.data.read import load_image
from rmadapter.deploy.export import folder as exporting
from rmadapter.deploy.export import parity
from rmadapter.deploy.export.folder import PREDICT, check_options, comparison_images, export, readme
from rmadapter.deploy.export.runtime import Model
from rmadapter.errors import UserError
from rmadapter.support.files import check_sums
from tests.helpers.shell import limited_file_size

pytest.importorskip("onnxruntime", reason="pip install 'rmadapter[export]'")
pytest.importorskip("onnxscript", reason="pip install 'rmadapter[export]'")

FILES = {
    *("model.onnx", "labels.json", "preprocess.json", "SHA256SUMS"),
    *("export.json", "README.md", "predict.py", "requirements.txt"),
}
# As it is where there is neither torch nor this package.
ALONE = "import runpy, sys; sys.modules['torch'] = sys.modules['rmadapter'] = None; "
ALONE += "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"


@pytest.fixture(scope="module")
def saved(finished: Path) -> Saved:
    return load(finished, read_record(finished / "run.json").backbone.name)


@pytest.fixture(scope="module")
def exported(
    finished: Path, saved: Saved, colors: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("exports") / "model"
    export(finished, saved, out, data=colors, command="as tested")
    return out


def test_files_of_an_export(exported: Path, saved: Saved) -> None:
    assert {file.name for file in exported.iterdir()} == FILES
    assert {file.name for file in exported.parent.iterdir()} == {"model"}
    check_sums(exported, ["model.onnx", "labels.json", "preprocess.json"])
    assert json.loads((exported / "labels.json").read_text()) == [
        "blue",
        "green",
        "night_sky",
        "red",
    ]
    facts = json.loads((exported / "export.json").read_text())
    assert facts["parity"]["same"] == 1
    assert facts["parity"]["difference"] <= 1e-4
    assert facts["parity"]["images"] == 16
    assert facts["parity"]["before"] == facts["parity"]["after"] > 90
    assert (facts["method"]["name"], facts["classes"], facts["command"]) == (
        "rmadapter",
        4,
        "as tested",
    )
    assert "/" not in facts["backbone"]["name"]  # of a folder: whose it was is nobody's business
    assert {"onnx", "onnxruntime", "torch"} <= set(facts["versions"])
    page = (exported / "README.md").read_text()
    for text in (
        facts["sha256"],
        "RMAdapter: 4 classes",
        "licence of the weights",
        "100.0 % of the answers",
    ):
        assert text in page
    assert "{" not in page.replace("{label}: {probability:.1%}", "")


def test_answers_without_torch_equal_predict(exported: Path, saved: Saved, colors: Path) -> None:
    command = [sys.executable, "-c", ALONE, exported / PREDICT, colors / "test"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(done.stdout.splitlines()))
    images = sorted(colors.glob("test/*/*.png"))
    assert [row["image"] for row in rows] == list(map(str, images))
    table = next(saved.fitted.probabilities(images, saved.names))
    for row, shares in zip(rows, table.tolist(), strict=True):
        best = shares.index(max(shares))
        assert row["label"] == saved.labels[best]
        assert float(row["probability"]) == pytest.approx(shares[best], abs=1e-4)


def test_example_code_of_the_page(exported: Path, colors: Path) -> None:
    block = (exported / "README.md").read_text().split("```python\n")[1].split("```")[0]
    code = block.replace("cat.jpg", str(colors / "test/red/0.png"))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=exported
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("red: ")
    assert len(done.stdout.splitlines()) == 3


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_openvino(
    precision: str, finished: Path, saved: Saved, colors: Path, tmp_path: Path
) -> None:
    for name in ("openvino", "nncf")[: 1 + (precision == "int8")]:
        pytest.importorskip(name, reason="pip install 'rmadapter[openvino]'")
    out = tmp_path / "model"
    facts = export(finished, saved, out, precision, colors, to="openvino")
    assert {file.name for file in out.iterdir()} == (FILES - {"model.onnx"}) | {
        "model.xml",
        "model.bin",
    }
    assert facts["files"] == ["model.xml", "model.bin"]
    assert (out / "requirements.txt").read_text().endswith("openvino>=2025\n")
    assert facts["parity"]["difference"] <= {"fp32": 1e-4, "int8": 0.1}.get(precision, 1e-2)
    assert facts["search"] == []
    before = parity.fitted_table(saved, sorted(colors.glob("test/*/*.png")))
    found = Model(out, threads=1)
    after = parity.exported_table(found, sorted(colors.glob("test/*/*.png")))
    assert (before.argmax(1) == after.argmax(1)).all()
    assert found.probabilities(np.zeros((1, 3, 32, 32), np.float32)).shape == (1, 4)


@pytest.mark.slow
def test_other_answers_are_refused(
    finished: Path, saved: Saved, colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(parity.LIMITS, "fp16", parity.Limit(difference=1e-9))
    with pytest.raises(
        UserError, match=r"^RMAdapter in fp16: a probability differs by .+; --force keeps it"
    ):
        export(finished, saved, tmp_path / "model", "fp16", colors)
    assert not list(tmp_path.iterdir())
    facts = export(finished, saved, tmp_path / "model", "fp16", colors, force=True)
    assert "a probability differs" in facts["kept in spite of"]
    assert (
        "It was kept although a probability differs" in (tmp_path / "model/README.md").read_text()
    )


def test_generated_images_are_noted(
    finished: Path,
    saved: Saved,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # where the data is not
    assert len(comparison_images(finished, saved, None, False, "fp32").images) == parity.GENERATED
    assert "compared on generated images, as the run's data is gone" in capsys.readouterr().err


def test_int8_needs_images_with_labels(finished: Path, saved: Saved, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--data"):
        export(finished, saved, tmp_path / "model", "int8")
    assert not list(tmp_path.iterdir())


def test_a_full_disk(
    finished: Path,
    saved: Saved,
    exported: Path,
    colors: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import onnx

    there = onnx.load(exported / "model.onnx")  # it is the writing that fails
    monkeypatch.setattr("rmadapter.deploy.export.graph.trace", lambda *_: there)

    def full() -> None:
        with limited_file_size(100_000):
            export(finished, saved, tmp_path / "model", data=colors)

    with pytest.raises(UserError, match="cannot be written"):
        full()
    assert not list(tmp_path.iterdir())


def test_refused_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_options(tmp_path / "new", "onnx", "fp32")
    os.symlink(tmp_path / "nowhere", tmp_path / "link")
    for there in (tmp_path, tmp_path / "link"):
        with pytest.raises(UserError, match="--out"):
            check_options(there, "onnx", "fp32")
    with pytest.raises(UserError, match=r"--precision fp8.* int8"):
        check_options(tmp_path / "new", "onnx", "fp8")
    with pytest.raises(UserError, match=r"--to tflite.* litert"):
        check_options(tmp_path / "new", "tflite", "fp32")
    missing = exporting.TARGETS["onnx"]._replace(modules=("onnx", "no_such_module"))
    monkeypatch.setitem(exporting.TARGETS, "onnx", missing)
    with pytest.raises(
        UserError, match=r"^export needs no_such_module; run `pip install 'rmadapter\[export\]'`"
    ):
        check_options(tmp_path / "new", "onnx", "fp32")


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "torch"])
def test_features_too(to: str, finished: Path, saved: Saved, colors: Path, tmp_path: Path) -> None:
    out, images = tmp_path / "model", sorted(colors.glob("test/*/*.png"))
    facts = export(finished, saved, out, data=colors, to=to, embeddings=True)
    assert facts["parity"]["features"] < 1e-5
    features = Model(out, threads=1).embed(images[:3])
    whole = saved.fitted.for_classes(saved.names)
    pixels = np.stack([Model(out).transform(load_image(image)) for image in images[:3]])
    states = saved.fitted.states(torch.from_numpy(pixels))
    expected = torch.nn.functional.normalize(whole.features(states), dim=-1)  # type: ignore[attr-defined]
    assert np.abs(features - expected.detach().numpy()).max() < 1e-5
    command = [sys.executable, out / PREDICT, *images, "--embeddings", tmp_path / "all.npy"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert np.abs(np.load(tmp_path / "all.npy")[:3] - features).max() < 1e-5
    assert "`features` [batch, length]" in (out / "README.md").read_text()


def test_missing_features_are_named(exported: Path, colors: Path) -> None:
    with pytest.raises(UserError, match="--embeddings"):
        Model(exported).embed(sorted(colors.glob("test/*/*.png")))


@pytest.mark.slow
def test_torch_without_this_package(
    finished: Path, saved: Saved, colors: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model"
    facts = export(finished, saved, out, data=colors, to="torch")
    assert {file.name for file in out.iterdir()} == (FILES - {"model.onnx"}) | {"model.pt2"}
    assert facts["parity"]["same"] == 1
    alone = ALONE.replace("sys.modules['torch'] = ", "sys.modules['open_clip'] = ")
    command = [sys.executable, "-c", alone, out / PREDICT, colors / "test/red"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1 + 4
    with zipfile.ZipFile(out / "model.pt2") as parts:
        assert not [
            name
            for name in parts.namelist()
            if b"\x80\x02}" in parts.read(name)[:4] or name.endswith(".pkl")
        ]


@pytest.mark.slow
def test_a_class_more(finished: Path, saved: Saved, colors: Path, tmp_path: Path) -> None:
    out, images = tmp_path / "model", sorted(colors.glob("test/*/*.png"))
    facts = export(finished, saved, out, data=colors, text=True)
    assert facts["parity"]["added"] < 1e-4
    assert facts["parity"]["features"] < 1e-4
    assert {file.name for file in out.iterdir()} == FILES | {
        "text.onnx",
        "tokenizer.json",
        "prompts.json",
        "weights.npy",
    }
    command = [
        sys.executable,
        "-c",
        ALONE,
        out / PREDICT,
        *images,
        "--add",
        "olive_green",
        "--top",
        "5",
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(done.stdout.splitlines()))
    table = next(saved.fitted.probabilities(images, (*saved.names, "olive green"))).tolist()
    for row, shares in zip(rows, table, strict=True):
        found = {
            row[f"label{n}"]: float(row[f"probability{n}"]) for n in ("", "_2", "_3", "_4", "_5")
        }
        assert found == pytest.approx(
            dict(zip([*saved.labels, "olive_green"], shares, strict=True)), abs=1e-4
        )
    with pytest.raises(UserError, match="--text"):
        check_options(tmp_path / "new", "openvino", "fp32", text=True)


# README.md


FACTS: dict[str, Any] = {
    "precision": "fp32",
    "to": "onnx",
    "files": ["model.onnx"],
    "embeddings": False,
    "opset": 20,
    "bytes": 12_345_678,
    "sha256": "a" * 64,
    "classes": 4,
    "method": {"title": "RMAdapter", "source": "a paper"},
    "backbone": {"name": "pocket", "digest": "b" * 64},
    "licence of the weights": "theirs",
    "versions": {"rmadapter": "0.2.0"},
    "parity": {
        "title": "generated",
        "images": 64,
        "same": 1.0,
        "difference": 1.5e-6,
        "before": None,
        "after": None,
    },
    "kept in spite of": "",
}


def test_readme_with_and_without_a_record(finished: Path) -> None:
    bare = readme(FACTS, None, 32)
    for text in (
        "# RMAdapter: 4 classes",
        "12.3 MB",
        "a" * 64,
        "licence of the weights: theirs",
        "1.5e-06",
        "32, 32]",
    ):
        assert text in bare
    assert "|" not in bare
    assert "although" not in bare
    record = read_record(finished / "run.json")
    full = readme({**FACTS, "parity": {**FACTS["parity"], "after": 87.5}}, record, 32)
    (score,) = record.scores
    assert f"| {score.title} (test) | 16 | {score.zero_shot:.1f} | {score.accuracy:.1f} |" in full
    assert "| generated, this export | 64 | | 87.5 |" in full
