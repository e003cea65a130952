"""A backbone without a text encoder, from a fit to a served model; what needs texts is refused."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import softmax
from scipy.stats import multivariate_normal
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge

from rmadapter import FewShotClassifier
from rmadapter.artifacts.checkpoint import load
from rmadapter.artifacts.page import rewrite_page
from rmadapter.artifacts.record import Record, read_record
from rmadapter.backbones import Backbone
from rmadapter.curate.suspects import find_suspects
from rmadapter.data.read import read_images
from rmadapter.encoders import States
from rmadapter.errors import UserError
from rmadapter.methods import DEFAULT, load_method
from rmadapter.methods.gda import precision
from rmadapter.methods.linear_probe import LinearProbe
from rmadapter.predict.explain import explain_images
from rmadapter.runs.fit import fit
from rmadapter.runs.unseen import BASELINES
from rmadapter.training.contract import Fitted, NotApplicable
from tests.helpers.html import Page
from tests.helpers.labs import prepare
from tests.helpers.shell import Command, backbone_option, fit_command, refused, rmadapter
from tests.helpers.shots import noise_images, shots_of
from tests.helpers.slow import slow_except

__all__ = ["rmadapter"]  # a fixture
WITHOUT_TEXT = ("linear-probe", "ridge", "gda", "proker")


def run_of(
    backbone: Backbone, colors: Path, out: Path, method: str = "linear-probe", split: str = "",
    **settings: object,
) -> Record:  # fmt: skip
    """Fit to the images of `colors`. split: of the data to use, by default all."""
    data = colors / split if split else colors
    if method == "linear-probe":
        settings = {"search_steps": 0, **settings}
    request, lab = prepare(backbone, read_images(data), method, **settings)
    task = request.task
    lab.add(str(data), read_images(data))
    return fit(
        type(task)(**{**vars(task), "data": str(data)}), request.method, out, lab, request.name
    )


@pytest.fixture(scope="module")
def run(tiny_timm: Backbone, colors: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("image_only") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setitem(BASELINES, "linear-probe", LinearProbe(search_steps=0))
        run_of(tiny_timm, colors, out)
    return out


# The methods


def fitted_on(
    backbone: Backbone, name: str, **settings: object
) -> tuple[Fitted, np.ndarray, np.ndarray]:
    """Return a method fitted to noise, and the unit features [N, e] and labels [N] of the shots."""
    images = noise_images(36, ("cat", "dog", "owl"))
    shots = shots_of(backbone, images)
    fitted = load_method(name, settings).fit(backbone, shots)
    features = F.normalize(shots.plain_features().double(), dim=-1).numpy()
    return fitted, features, shots.labels.numpy()


def answers_of(fitted: Fitted, features: np.ndarray) -> np.ndarray:
    states = States(None, None, torch.from_numpy(features).float())
    return fitted.score()(states).double().numpy()


def test_ridge_is_ridge_regression_of_the_labels(tiny_timm: Backbone) -> None:
    fitted, x, y = fitted_on(tiny_timm, "ridge", penalty=0.5, head=2.0)
    targets = np.eye(3)[y] - 1 / 3
    expected = 100 * 2 * Ridge(alpha=0.5, fit_intercept=False).fit(x, targets).predict(x)
    assert np.allclose(answers_of(fitted, x), expected, atol=2e-3)


def test_gda_is_the_posterior_of_normal_classes(tiny_timm: Backbone) -> None:
    fitted, x, y = fitted_on(tiny_timm, "gda")
    means = np.stack([x[y == label].mean(0) for label in range(3)])
    inverse = precision(torch.from_numpy(x - means[y])).numpy()
    densities = [multivariate_normal(mean, np.linalg.inv(inverse)).logpdf(x) for mean in means]
    expected = softmax(np.stack(densities, 1), axis=1)
    assert np.allclose(
        softmax(answers_of(fitted, x), axis=1), expected, atol=5e-3
    )  # of logits around 20,000


def test_proker_is_kernel_ridge_regression_of_the_labels(tiny_timm: Backbone) -> None:
    fitted, x, y = fitted_on(tiny_timm, "proker", beta=2.0, penalty=0.2, search=False)
    kernel = np.exp(-2.0 * (1 - x @ x.T))
    regression = KernelRidge(alpha=0.2, kernel="precomputed").fit(kernel, np.eye(3)[y])
    expected = 100 * 0.2 * regression.predict(kernel)
    assert np.allclose(answers_of(fitted, x), expected, atol=2e-3)


@pytest.mark.parametrize("name", WITHOUT_TEXT)
def test_a_class_without_images_does_not_apply(tiny_timm: Backbone, name: str) -> None:
    fitted, _, _ = fitted_on(tiny_timm, name)
    with pytest.raises(NotApplicable, match="violet"):
        fitted.score((*fitted.classes, "violet"))


@pytest.mark.parametrize("name", ["zero-shot", "tip-adapter", "coop", "rmadapter", "clip-lora"])
def test_a_method_that_needs_texts_is_refused(
    rmadapter: Command, tiny_timm: Backbone, colors: Path, tmp_path: Path, name: str
) -> None:
    words = fit_command(colors, tiny_timm, tmp_path / "run", "--method", name)
    refused(rmadapter(*words), "no text encoder", *WITHOUT_TEXT)
    assert not list(tmp_path.glob("run/*"))


@pytest.mark.ci
def test_half_of_the_classes_can_be_trained(
    rmadapter: Command, tiny_timm: Backbone, colors: Path, tmp_path: Path
) -> None:
    words = fit_command(colors, tiny_timm, tmp_path / "run", "--half", "base")
    refused(rmadapter(*words, "--method", "mma"), "no text encoder", *WITHOUT_TEXT)
    answer = rmadapter(*words, "--json")
    assert answer.code == 0
    found = json.loads(answer.out)
    assert found["test, base classes"]["accuracy"] > 50
    assert found["test, novel classes"]["accuracy"] is None
    assert "harmonic_mean" not in found


# A run


def test_the_default_method_needs_no_text(
    tiny_timm: Backbone, colors: Path, tmp_path: Path
) -> None:
    record = run_of(tiny_timm, colors, tmp_path / "run", DEFAULT, shots=2)
    assert record.scores[0].zero_shot is None
    assert record.scores[0].accuracy is not None


@pytest.mark.parametrize(
    ("split", "shots", "how"),
    [("", 16, "test"), ("train", 3, "held out"), ("train", 0, "cross-validated")],
)
def test_each_way_to_judge_has_no_row_of_zero_shot(
    tiny_timm: Backbone, colors: Path, tmp_path: Path, split: str, shots: int, how: str
) -> None:
    out = tmp_path / "run"
    record = run_of(tiny_timm, colors, out, "ridge", split, shots=shots)
    assert record.scores[0].split == how
    assert record.judgement is not None
    assert [row.name for row in record.judgement.rows] == ["linear-probe", record.method.title]
    with (out / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["zero_shot"] for row in rows} == {row["zero_shot_probability"] for row in rows}
    assert {row["zero_shot"] for row in rows} == {""}
    page = Page(out / "report.html").text
    assert "no text encoder" in page
    assert "nan" not in page.split()
    written = (out / "report.html").read_bytes()
    assert rewrite_page(out).read_bytes() == written


@pytest.mark.ci
@pytest.mark.real_plots
def test_curves_are_those_of_the_method_alone(
    tiny_timm: Backbone, colors: Path, tmp_path: Path
) -> None:
    run_of(tiny_timm, colors, tmp_path / "run", shots=2)
    assert "zero-shot" not in Page(tmp_path / "run/report.html").text


def test_a_saved_run_answers_as_before(run: Path, tiny_timm: Backbone, colors: Path) -> None:
    images = sorted(map(str, colors.glob("test/*/*.png")))
    first = load(run, tiny_timm).fitted
    second = load(run, tiny_timm.name).fitted
    a, b = (torch.cat([*one.probabilities(images)]) for one in (first, second))
    assert torch.equal(a, b)
    record = read_record(run / "run.json")
    names = [label for label in first.classes for _ in range(4)]
    right = [first.classes[i] == name for i, name in zip(a.argmax(1), names, strict=True)]
    assert 100 * np.mean(right) == record.scores[0].accuracy


@pytest.mark.ci
def test_predict_eval_explain_and_compare(
    rmadapter: Command, run: Path, colors: Path, tmp_path: Path
) -> None:
    own = backbone_option(run)
    answer = rmadapter(
        "predict", run, colors / "test/red", *own, "--unfamiliar", "--turn-away", "40%", "--json"
    )
    assert answer.code == 0
    rows = json.loads(answer.out)
    assert {row["classes"][0]["class"] for row in rows} == {"red"}
    assert all(row["unfamiliar"] >= 0 and row["decision"] for row in rows)
    found = json.loads(rmadapter("eval", run, colors, *own, "--json").out)
    assert (found["accuracy"], found["zero_shot_accuracy"]) == (100, None)
    answer = rmadapter("explain", run, colors / "test/red/0.png", *own, "--out", tmp_path / "why")
    assert answer.code == 0
    assert "zero-shot" not in answer.out
    assert "red" in answer.out
    [page] = tmp_path.glob("why/*.html")
    assert ">zero-shot:<" not in page.read_text()
    answer = rmadapter("compare", run, run, "--data", colors, *own, "--json")
    assert [row["accuracy"] for row in json.loads(answer.out)["runs"]] == [100, 100]


def test_explain_gives_no_answer_of_zero_shot(run: Path, tiny_timm: Backbone, colors: Path) -> None:
    [one] = explain_images(run, [colors / "test/red/0.png"], backbone=tiny_timm, progress=False)
    assert one.zero_shot == ()
    assert one.neighbours[0].label == "red"


def test_names_without_images_are_refused(
    rmadapter: Command, run: Path, colors: Path, tmp_path: Path
) -> None:
    own = backbone_option(run)
    refused(rmadapter("add", run, "violet", "--out", tmp_path / "more", *own), *WITHOUT_TEXT)
    refused(rmadapter("predict", run, colors / "test/red", "--names", "red,violet", *own), "violet")
    assert not (tmp_path / "more").exists()


@pytest.mark.ci
def test_images_of_new_classes_are_added(
    rmadapter: Command, run: Path, colors: Path, tmp_path: Path
) -> None:
    shutil.copytree(colors / "test/red", tmp_path / "new/violet")
    words = ("add", run, tmp_path / "new", "--out", tmp_path / "more", *backbone_option(run))
    assert rmadapter(*words).code == 0
    assert "violet" in load(tmp_path / "more", backbone_option(run)[1]).fitted.classes


def test_suspects(
    tiny_timm: Backbone, colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # random weights set no class far ahead of another
    monkeypatch.setattr("rmadapter.curate.suspects.MIN_MARGIN", 0.0)
    damaged = tmp_path / "damaged"
    shutil.copytree(colors / "train", damaged)
    shutil.copy(colors / "test/red/0.png", damaged / "blue/wrong.png")
    _, lab = prepare(tiny_timm, read_images(damaged), "linear-probe")
    found = find_suspects(damaged, settings={"backbone": tiny_timm.name}, progress=False, lab=lab)
    wrong = {one.image: one.suggested for one in found.suspects}
    assert wrong["blue/wrong.png"] == "red"


def test_the_classifier(tiny_timm: Backbone, colors: Path) -> None:
    own = {"method": "linear-probe", "search_steps": 0, "progress": False}
    model = FewShotClassifier(tiny_timm.name, **own).fit(colors)
    assert model.score(colors) == 1
    with pytest.raises(NotApplicable, match="violet"):
        model.add_classes(["violet"])
    with pytest.raises(UserError, match="no text encoder"):
        FewShotClassifier(tiny_timm.name, method="clap", progress=False).fit(colors)


# A model that leaves the package


@pytest.mark.ci
@pytest.mark.parametrize("architecture", slow_except(["vit", "test_convnext"], "vit"))
def test_an_export_answers_as_the_run_and_is_served(
    rmadapter: Command, run: Path, colors: Path, tmp_path: Path, architecture: str
) -> None:
    pytest.importorskip("onnxruntime", reason="pip install 'rmadapter[export]'")
    pytest.importorskip("onnxscript", reason="pip install 'rmadapter[export]'")
    from rmadapter.export.folder import export
    from rmadapter.export.runtime import Model
    from rmadapter.export.targets import ExportOptions
    from rmadapter_serve.model import ServeOptions, open_served

    saved = load(run, backbone_option(run)[1])
    if architecture != "vit":
        from rmadapter.backbones import load_backbone
        from tests.helpers.models import write_timm

        backbone = load_backbone(f"timm:{write_timm(tmp_path / 'model', architecture)}")
        run_of(backbone, colors, tmp_path / "run", "gda")
        run, saved = tmp_path / "run", load(tmp_path / "run", backbone)
    facts = export(run, saved, tmp_path / "exported", ExportOptions(embeddings=True))
    assert facts["parity"]["same"] == 1
    assert facts["parity"]["difference"] < 1e-5
    assert "| - |" in (tmp_path / "exported/README.md").read_text()  # no accuracy before
    images = sorted(colors.glob("test/*/*.png"))
    [expected] = saved.fitted.probabilities(images)
    model = Model(tmp_path / "exported")
    [(_, outputs)] = model.outputs(images)
    assert np.allclose(outputs.probabilities, expected.numpy(), atol=1e-5)
    for options in (
        ServeOptions(tmp_path / "exported"),
        ServeOptions(run, backbone=saved.fitted.backbone.name),
    ):
        served = open_served(options)
        answered = served.model.probabilities(model.pixels(images))
        assert np.allclose(answered, expected.numpy(), atol=1e-5)
    words = ("export", run, "--out", tmp_path / "texts", "--text", *backbone_option(run))
    refused(rmadapter(*words), "--text")
    assert not (tmp_path / "texts").exists()


@pytest.mark.ci
def test_a_bench_has_no_figures_of_zero_shot(
    rmadapter: Command, tiny_timm: Backbone, colors: Path, tmp_path: Path
) -> None:
    words = (
        "bench",
        "few-shot",
        "--datasets",
        colors,
        "--methods",
        "linear-probe,ridge",
        "--shots",
        "1",
    )
    more = ("--seeds", "1", "--backbone", tiny_timm.name, "--out", tmp_path / "bench")
    answer = rmadapter(*words, *more)
    assert answer.code == 0, answer.err
    assert rmadapter("report", tmp_path / "bench", "--out", tmp_path / "report").code == 0
