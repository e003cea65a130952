"""The same image gets the same prediction set, the same decision and the same parents by every
route."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pytest
from torch import Tensor

from rmadapter import FewShotClassifier, explain_images
from rmadapter.artifacts.checkpoint import load
from rmadapter.backbones import Backbone
from rmadapter.encoders import States
from rmadapter.export.hub import push
from rmadapter.runs import features
from rmadapter.runs.features import examine
from rmadapter.training.cache import BATCH_SIZE
from tests.helpers.html import Page
from tests.helpers.ray_cluster import ray_session
from tests.helpers.serving import TestClient
from tests.helpers.shell import Command, rmadapter

from rmadapter_studio.jobs import Jobs  # isort: skip
from rmadapter_studio.session import Session  # isort: skip
from rmadapter_studio.shared import Shared  # isort: skip
from rmadapter_serve.model import ServeOptions, open_served  # isort: skip
from rmadapter_serve.routes import create_app  # isort: skip
from rmadapter_serve.limits import Limits  # isort: skip
from rmadapter_serve.service import Service  # isort: skip

__all__ = ["ray_session", "rmadapter"]  # fixtures

Decisions: TypeAlias = "list[tuple[list[str], bool | None, str]]"  # set, familiar, decision
SETS, BOTH = ("--error", "10%"), ("--error", "10%", "--turn-away", "10%")


@pytest.fixture(scope="module")
def images(blends: list[Path], noise: Path) -> list[Path]:
    return [*blends, noise]


@pytest.fixture(scope="module")
def expected(calibrated: Path, tiny_clip: Backbone, images: list[Path]) -> Decisions:
    """By the definitions, for images of which none is as near to a limit as engines may differ; the
    limit of all classes is 0.2."""
    saved = load(calibrated, tiny_clip)
    table, far = examine(saved.fitted, images, False)
    assert np.abs(table - 0.2).min() > 1e-3
    rejection = saved.fitted.familiarity
    assert rejection
    near, familiar = (rejection.accepts(table, far + more, 0.1) for more in (-0.002, 0.002))
    assert (near == familiar).all()
    decisions: Decisions = []
    for row, is_familiar in zip(table, familiar.tolist(), strict=True):
        order = np.argsort(-row, kind="stable")
        labels = [str(saved.labels[i]) for i in order if row[i] >= 0.2] or [
            str(saved.labels[order[0]])
        ]
        decision = "answer" if len(labels) == 1 else "unsure"
        decisions.append((labels, is_familiar, decision if is_familiar else "none of these"))
    assert {decision for *_, decision in decisions} == {"answer", "unsure", "none of these"}
    assert decisions[-1][-1] == "none of these"
    return decisions


def without_shares(expected: Decisions) -> Decisions:
    """Return what is decided by the sets alone."""
    return [(labels, None, "answer" if len(labels) == 1 else "unsure") for labels, *_ in expected]


def of_rows(rows: list[dict[str, Any]]) -> Decisions:
    """Return the decisions of a file's rows, whose sets are lists, or in CSV JSON."""
    decisions: Decisions = []
    for row in rows:
        labels = json.loads(row["set"]) if isinstance(row["set"], str) else row["set"]
        is_answer = row["decision"] == "answer"
        assert row["label"] == (labels[0] if is_answer else row["decision"])
        decisions.append((labels, familiar_of(row), row["decision"]))
    return decisions


def familiar_of(row: dict[str, Any]) -> bool | None:
    return json.loads(str(row["familiar"]).lower()) if "familiar" in row else None


@pytest.mark.ci
@pytest.mark.parametrize("words", [SETS, BOTH])
def test_by_the_command_line(
    words: tuple[str, ...], expected: Decisions, calibrated: Path, tiny_clip: Backbone,
    images: list[Path], rmadapter: Command, tmp_path: Path,
) -> None:  # fmt: skip
    expected = expected if words == BOTH else without_shares(expected)
    command = ["predict", calibrated, *images, "--backbone", tiny_clip.name, *words]
    found = rmadapter.json(*command)
    assert [(one["set"], one.get("familiar"), one["decision"]) for one in found] == expected
    rmadapter.done(*command, "--out", tmp_path / "a.csv")
    with open(tmp_path / "a.csv", encoding="utf-8", newline="") as file:
        assert of_rows([*csv.DictReader(file)]) == expected
    rmadapter.done(*command, "--out", tmp_path / "a.jsonl")
    lines = (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()
    assert of_rows([json.loads(line) for line in lines]) == expected


@pytest.mark.ci
def test_by_parquet(
    expected: Decisions, calibrated: Path, tiny_clip: Backbone, images: list[Path],
    rmadapter: Command, tmp_path: Path,
) -> None:  # fmt: skip
    parquet = pytest.importorskip("pyarrow.parquet")
    command = ["predict", calibrated, *images, "--backbone", tiny_clip.name]
    for words, decided in ((SETS, without_shares(expected)), (BOTH, expected)):
        file = tmp_path / f"{len(words)}.parquet"
        rmadapter.done(*command, *words, "--out", file)
        assert of_rows(parquet.read_table(file).to_pylist()) == decided


def test_by_sorting(
    expected: Decisions, calibrated: Path, tiny_clip: Backbone, images: list[Path],
    rmadapter: Command, tmp_path: Path,
) -> None:  # fmt: skip
    command = ["predict", calibrated, *images, "--backbone", tiny_clip.name, *BOTH]
    rmadapter.done(*command, "--sort-into", tmp_path / "sorted")
    for image, (labels, _, decision) in zip(images, expected, strict=True):
        folder = labels[0] if decision == "answer" else decision
        assert (tmp_path / "sorted" / folder / image.name).is_file()


def test_by_a_cluster(
    ray_session: None, expected: Decisions, calibrated: Path, tiny_clip: Backbone,
    images: list[Path], rmadapter: Command, tmp_path: Path,
) -> None:  # fmt: skip
    command = ["predict", calibrated, *images, "--backbone", tiny_clip.name, "--ray"]
    for words, decided in ((SETS, without_shares(expected)), (BOTH, expected)):
        file = tmp_path / f"{len(words)}.jsonl"
        rmadapter.done(*command, *words, "--out", file)
        lines = file.read_text(encoding="utf-8").splitlines()
        assert of_rows([json.loads(line) for line in lines]) == decided


def test_by_explanations(
    expected: Decisions, calibrated: Path, tiny_clip: Backbone, images: list[Path], colors: Path,
    rmadapter: Command, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """By Python and by the command; features are computed once for each batch."""
    batches = []
    image_features = features.image_features

    def counted(*words: Any) -> Callable[[States], Tensor]:
        of = image_features(*words)

        def features_of(states: States) -> Tensor:
            batches.append(states)
            return of(states)

        return features_of

    monkeypatch.setattr(features, "image_features", counted)
    found = explain_images(
        calibrated, images, data=colors, backbone=tiny_clip, progress=False, error=0.1,
        turn_away=0.1,
    )  # fmt: skip
    assert [([*one.labels], one.familiar, one.decision) for one in found] == expected
    assert len(batches) == -(-len(images) // BATCH_SIZE)
    command = ["explain", calibrated, *images, "--run-data", colors, "--backbone", tiny_clip.name]
    for words, decided in ((SETS, without_shares(expected)), (BOTH, expected)):
        shown = rmadapter.json(*command, *words)
        assert [(one["set"], one.get("familiar"), one["decision"]) for one in shown] == decided


def test_by_the_classifier(
    expected: Decisions, calibrated: Path, tiny_clip: Backbone, images: list[Path]
) -> None:
    model = FewShotClassifier.load(calibrated, backbone=tiny_clip.name)
    assert model.predict_set(images, error=0.1) == [labels for labels, *_ in expected]
    assert model.is_familiar(images, turn_away=0.1).tolist() == [known for _, known, _ in expected]
    answered = [labels[0] if len(labels) == 1 else None for labels, *_ in expected]
    assert model.predict(images, error=0.1).tolist() == answered


def test_by_a_pushed_run(
    expected: Decisions, calibrated: Path, tiny_clip: Backbone, images: list[Path], tmp_path: Path
) -> None:
    push(calibrated, "anna/colors", to=tmp_path / "pushed")
    model = FewShotClassifier.load(tmp_path / "pushed", backbone=tiny_clip.name)
    assert model.predict_set(images, error=0.1) == [labels for labels, *_ in expected]
    assert model.is_familiar(images, turn_away=0.1).tolist() == [known for _, known, _ in expected]


def answers_by_server(
    folder: Path, backbone: Backbone, images: list[Path], path: str
) -> list[dict[str, Any]]:
    served = open_served(ServeOptions(folder, backbone=backbone.name, threads=1))
    service = Service({"model": served}, Limits())
    try:
        files = [("files", (image.name, image.read_bytes())) for image in images]
        answer = TestClient(create_app(service)).post(path, files=files)
    finally:
        service.close()
    assert answer.status_code == 200
    found: list[dict[str, Any]] = answer.json()["answers"]
    return found


def by_server(folder: Path, backbone: Backbone, images: list[Path], path: str) -> Decisions:
    found = answers_by_server(folder, backbone, images, path)
    return [(one["set"], one.get("familiar"), one["decision"]) for one in found]


ONE, TWO = "/predict?error=0.1", "/predict?error=0.1&turn_away=0.1"


def test_by_the_server(
    expected: Decisions, calibrated: Path, tiny_clip: Backbone, images: list[Path]
) -> None:
    assert by_server(calibrated, tiny_clip, images, TWO) == expected
    assert by_server(calibrated, tiny_clip, images, ONE) == without_shares(expected)


def test_by_the_app(
    expected: Decisions, calibrated: Path, tiny_clip: Backbone, images: list[Path], tmp_path: Path
) -> None:
    decided = []
    for answer in answers_by_app(calibrated, tiny_clip, images, tmp_path):
        found, familiar = at_a_tenth(answer)
        decision = found["decision"] if familiar else "none of these"
        decided.append((found["set"], familiar, decision))
    assert decided == expected


def answers_by_app(
    run: Path, backbone: Backbone, images: list[Path], folder: Path
) -> list[dict[str, Any]]:
    shutil.copytree(run, folder / "runs/run")
    shared = Shared(backbone, Jobs(), folder / "runs")
    (folder / "visitor").mkdir()
    session = Session(folder / "visitor", shared)
    session.open("run")
    answers = [{**session.predict(image, image.name)} for image in images]
    shared.jobs.close()
    return answers


def at_a_tenth(answer: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Return what the app decides at an error of 10 %, and whether the image is familiar when 10 %
    are turned away."""
    (found,) = [one for one in answer["sets"] if one["error"] == 0.1]
    (familiar,) = [one["familiar"] for one in answer["familiar"] if one["share"] == 0.1]
    return found, familiar


SLOW = pytest.mark.slow
FORMATS = ["onnx", *(pytest.param(to, marks=SLOW) for to in ("openvino", "litert"))]
NEEDED = {
    "onnx": ("onnxruntime", "onnxscript"), "openvino": ("openvino",), "litert": ("litert_torch",)
}  # fmt: skip


@pytest.mark.ci
@pytest.mark.parametrize("to", FORMATS)
def test_by_exports(
    to: str, expected: Decisions, calibrated: Path, tiny_clip: Backbone, images: list[Path],
    colors: Path, tmp_path: Path,
) -> None:  # fmt: skip
    for needed in NEEDED.get(to, ()):
        pytest.importorskip(needed)
    from rmadapter.export.folder import export
    from rmadapter.export.runtime import Model
    from rmadapter.export.targets import ExportOptions

    out = tmp_path / "model"
    export(calibrated, load(calibrated, tiny_clip), out, ExportOptions(to), data=colors)
    model = Model(out, threads=1)
    familiar = model.is_familiar(images, turn_away=0.1)
    assert familiar == [known for _, known, _ in expected]
    command = [sys.executable, out / "predict.py", *images, *BOTH]
    text = subprocess.check_output([*map(str, command)], text=True, stderr=subprocess.DEVNULL)
    assert of_rows([*csv.DictReader(text.splitlines())]) == expected
    assert model.predict_set(images, error=0.1) == [labels for labels, *_ in expected]
    assert by_server(out, tiny_clip, images, TWO) == expected


# Levels of a taxonomy


class Levelled(NamedTuple):
    """What is answered for an image. answer: a label or a parent, "" without one. parent: the most
    probable one, with its probability."""

    decision: str
    answer: str
    parent: str
    probability: float


@pytest.fixture(scope="module")
def levelled(
    expected: Decisions, calibrated: Path, parents: dict[str, str], tiny_clip: Backbone,
    images: list[Path],
) -> list[Levelled]:  # fmt: skip
    """By the definitions, from the probabilities and sets of the run without parents."""
    model = FewShotClassifier.load(calibrated, backbone=tiny_clip.name)
    found = []
    for row, (labels, *_) in zip(model.predict_proba(images), expected, strict=True):
        shares = dict.fromkeys(parents.values(), 0.0)
        for label, share in zip(model.classes_, row, strict=True):
            shares[parents[label]] += float(share)
        parent = max(shares, key=lambda name: shares[name])
        names = labels if len(labels) == 1 else [*{parents[label] for label in labels}]
        answer = names[0] if len(names) == 1 else ""
        decision = "answer" if answer else "unsure"
        found.append(Levelled(decision, answer, parent, shares[parent]))
    assert {one.answer for one in found} > {"dark", ""}
    return found


@pytest.fixture(scope="module")
def turned_away(levelled: list[Levelled], expected: Decisions) -> list[Levelled]:
    """The same where rejected images are none of the classes."""
    return [
        one if familiar else one._replace(decision="none of these", answer="")
        for one, (_, familiar, _) in zip(levelled, expected, strict=True)
    ]


def check_levels(found: list[Levelled], levelled: list[Levelled]) -> None:
    assert [one[:3] for one in found] == [one[:3] for one in levelled]
    shares = [one.probability for one in levelled]
    np.testing.assert_allclose([one.probability for one in found], shares, atol=1e-4)


def levels_of_json(answers: list[dict[str, Any]]) -> list[Levelled]:
    return [
        Levelled(
            one["decision"], (one.get("answer") or {"class": ""})["class"],
            one["levels"][0]["class"], one["levels"][0]["probability"],
        )
        for one in answers
    ]  # fmt: skip


def levels_of_rows(rows: list[dict[str, str]]) -> list[Levelled]:
    found = []
    for row in rows:
        answer = row["label"] if row["decision"] == "answer" else ""
        assert row["label"] == (answer or row["decision"])
        assert (row["level"] or "") == ("parent" if answer == "dark" else "label" * bool(answer))
        share = float(row["probability_parent"])
        found.append(Levelled(row["decision"], answer, row["parent"], share))
    return found


def test_levels_by_the_command_line(
    levelled: list[Levelled], turned_away: list[Levelled], tree_run: Path, tiny_clip: Backbone,
    images: list[Path], rmadapter: Command, tmp_path: Path,
) -> None:  # fmt: skip
    command = ["predict", tree_run, *images, "--backbone", tiny_clip.name]
    check_levels(levels_of_json(rmadapter.json(*command, *SETS)), levelled)
    rmadapter.done(*command, *BOTH, "--out", tmp_path / "a.csv")
    with open(tmp_path / "a.csv", encoding="utf-8", newline="") as file:
        check_levels(levels_of_rows([*csv.DictReader(file)]), turned_away)


def test_levels_by_a_cluster(
    ray_session: None, turned_away: list[Levelled], tree_run: Path, tiny_clip: Backbone,
    images: list[Path], rmadapter: Command, tmp_path: Path,
) -> None:  # fmt: skip
    file = tmp_path / "a.jsonl"
    command = ["predict", tree_run, *images, "--backbone", tiny_clip.name, *BOTH, "--ray"]
    rmadapter.done(*command, "--out", file)
    lines = file.read_text(encoding="utf-8").splitlines()
    check_levels(levels_of_rows([json.loads(line) for line in lines]), turned_away)


def test_levels_by_explanations(
    turned_away: list[Levelled], tree_run: Path, tiny_clip: Backbone, images: list[Path],
    colors: Path, rmadapter: Command, tmp_path: Path,
) -> None:  # fmt: skip
    command = ["explain", tree_run, *images, "--run-data", colors, "--backbone", tiny_clip.name]
    found = rmadapter.json(*command, *BOTH, "--out", tmp_path)
    check_levels(levels_of_json(found["images"]), turned_away)
    page = Page(tmp_path / "explain.html").text
    assert "decision: answer: dark: it may be " in page
    assert "levels above: " in page
    assert "answer: dark: " in rmadapter.done(*command, *BOTH).out


def test_levels_by_the_server(
    levelled: list[Levelled], tree_run: Path, tiny_clip: Backbone, images: list[Path]
) -> None:
    check_levels(levels_of_json(answers_by_server(tree_run, tiny_clip, images, ONE)), levelled)


def test_levels_by_the_app(
    turned_away: list[Levelled], tree_run: Path, tiny_clip: Backbone, images: list[Path],
    tmp_path: Path,
) -> None:  # fmt: skip
    found = []
    for answer in answers_by_app(tree_run, tiny_clip, images, tmp_path):
        decided, familiar = at_a_tenth(answer)
        own = decided["parent"] or decided["set"][0]
        word = decided["decision"] if familiar else "none of these"
        (level,) = answer["levels"]
        shown = level["class"], level["probability"]
        found.append(Levelled(word, own if word == "answer" else "", *shown))
    check_levels(found, turned_away)


@pytest.mark.ci
def test_levels_by_an_export(
    levelled: list[Levelled], turned_away: list[Levelled], tree_run: Path, tiny_clip: Backbone,
    images: list[Path], colors: Path, tmp_path: Path,
) -> None:  # fmt: skip
    for needed in NEEDED["onnx"]:
        pytest.importorskip(needed)
    from rmadapter.export.folder import export

    out = tmp_path / "model"
    export(tree_run, load(tree_run, tiny_clip), out, data=colors)
    command = [sys.executable, out / "predict.py", *images, *SETS]
    text = subprocess.check_output([*map(str, command)], text=True, stderr=subprocess.DEVNULL)
    check_levels(levels_of_rows([*csv.DictReader(text.splitlines())]), levelled)
    check_levels(levels_of_json(answers_by_server(out, tiny_clip, images, TWO)), turned_away)
