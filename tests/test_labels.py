"""Labels come back as the user wrote them, by every route."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from rmadapter import FewShotClassifier, load, read_images
from rmadapter.artifacts.record import read_record
from rmadapter.backbones import Backbone
from rmadapter.data.read import load_image
from rmadapter.errors import UserError
from rmadapter.prompts import cosine_logits, zero_shot_weights
from rmadapter.runs.evaluate import known_names
from tests.helpers.shell import Command, backbone_option, quick_options, refused, rmadapter
from tests.helpers.slow import slow_except

__all__ = ["rmadapter"]  # a fixture

QUICK = quick_options(2, epochs=2)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("named")


@pytest.fixture
def named(rmadapter: Command, colors: Path, kept: Path, tiny_clip: Backbone) -> Path:
    """A run whose classes have a label and another name in the prompt; nobody changes it."""
    if not (kept / "run").exists():
        (kept / "names.csv").write_text("label,name\nnight_sky,stars at night\nred,scarlet\n")
        command = ["fit", colors, "--backbone", tiny_clip.name, *QUICK]
        rmadapter.done(*command, "--names-from", kept / "names.csv", "--out", kept / "run")
    return kept / "run"


def test_labels_and_prompt_names_are_both_kept(
    named: Path, tiny_clip: Backbone, colors: Path
) -> None:
    saved = load(named, tiny_clip)
    assert saved.labels == ("blue", "green", "night_sky", "red")
    assert saved.names == saved.fitted.classes == ("blue", "green", "stars at night", "scarlet")
    assert saved.custom_names == {"night_sky": "stars at night", "red": "scarlet"}
    split = json.loads((named / "split.json").read_text("utf-8"))
    assert (split["classes"], split["labels"]) == (list(saved.names), list(saved.labels))


@pytest.mark.ci
def test_labels_come_back_by_every_route(
    rmadapter: Command, named: Path, tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    image, its = colors / "test/night_sky/0.png", backbone_option(named)
    table = rmadapter("predict", named, image, *its).out
    assert "night_sky" in table
    assert "stars" not in table
    [answer] = rmadapter.json("predict", named, image, *its)
    assert {guess["class"] for guess in answer["classes"]} == {"blue", "green", "night_sky", "red"}
    classifier = FewShotClassifier.load(named, backbone=tiny_clip.name)
    paths = [colors / f"test/{name}/{i}.png" for name in ("night_sky", "red") for i in range(4)]
    best = [{"night_sky": 2, "red": 3}[path.parent.name] for path in paths]
    right = float((classifier.predict_proba(paths).argmax(1) == best).mean())
    for spelling in ("night_sky", "Night sky", "stars at night"):
        assert classifier.score(paths, [spelling] * 4 + ["red"] * 4) == right
    assert set(classifier.predict(paths)) <= set(classifier.classes_.tolist())
    classifier.save(tmp_path / "copy")
    assert load(tmp_path / "copy", tiny_clip).labels == ("blue", "green", "night_sky", "red")


@pytest.mark.ci
@pytest.mark.parametrize(
    ("method", "settings"),
    slow_except(
        [
            ("rmadapter", ["epochs=1", "first_block=3", "rank=4"]),
            ("zero-shot", []),
            ("coop", ["epochs=1"]),
            ("linear-probe-zero-shot", ["epochs=1"]),
            ("mmrl", ["epochs=1", "first_block=3"]),
            ("clip-lora", ["iterations=2"]),
        ],
        "rmadapter",
    ),
)
def test_a_class_with_several_descriptions_keeps_its_label(
    rmadapter: Command,
    colors: Path,
    tmp_path: Path,
    tiny_clip: Backbone,
    method: str,
    settings: list[str],
) -> None:
    (tmp_path / "names.csv").write_text("label,name\nred,scarlet\nblue,sea\nred,the red one\n")
    more = [word for setting in ["device=cpu", *settings] for word in ("--set", setting)]
    command = ["fit", colors, "--backbone", tiny_clip.name, "--shots", 2, "--method", method]
    run = tmp_path / "run"
    rmadapter.done(*command, "--names-from", tmp_path / "names.csv", *more, "--out", run)
    saved = load(run, tiny_clip)
    assert saved.names == ("sea", "green", "night sky", "scarlet | the red one")
    assert saved.labels == ("blue", "green", "night_sky", "red")
    judgement = read_record(run / "run.json").judgement
    assert judgement is not None
    assert judgement.classes == saved.labels
    assert "the red one" not in (run / "report.html").read_text("utf-8")
    its = backbone_option(run)
    found = rmadapter.json("eval", run, colors, *its)
    assert found["accuracy"] == read_record(run / "run.json").scores[0].accuracy
    [answer] = rmadapter.json("predict", run, colors / "test/red/0.png", *its)
    assert {guess["class"] for guess in answer["classes"]} == set(saved.labels)


def test_descriptions_in_python_and_beside_the_data(
    colors: Path, tmp_path: Path, tiny_clip: Backbone
) -> None:
    shutil.copytree(colors, tmp_path / "data")
    (tmp_path / "data/classnames.json").write_text('{"red": "scarlet | the red one"}')
    assert read_images(tmp_path / "data")["test"].classes[-1] == "scarlet | the red one"
    images = [colors / f"test/{name}/0.png" for name in ("red", "blue")]
    classifier = FewShotClassifier(tiny_clip.name, method="zero-shot", shots=0)
    classifier.fit(images, [0, 1], class_names=["scarlet | the red one", "blue"])
    weights = zero_shot_weights(tiny_clip, ["scarlet | the red one", "blue"], ["a photo of a {}."])
    features = tiny_clip.image.frozen(
        torch.stack([tiny_clip.preprocess(load_image(path)) for path in images])
    ).features
    expected = cosine_logits(tiny_clip, features, weights).softmax(-1).detach().numpy()
    np.testing.assert_allclose(classifier.predict_proba(images), expected, atol=1e-5)
    assert classifier.classes_.tolist() == [0, 1]


def test_a_score_refuses_an_unknown_label(named: Path, tiny_clip: Backbone, colors: Path) -> None:
    classifier = FewShotClassifier.load(named, backbone=tiny_clip.name)
    with pytest.raises(UserError, match=r"'rde' .* did you mean 'red'"):
        classifier.score([colors / "test/red/0.png"], ["rde"])


def test_eval_uses_the_names_of_the_run(rmadapter: Command, named: Path, colors: Path) -> None:
    command = ["eval", named, colors, *backbone_option(named)]
    record = json.loads((named / "run.json").read_text("utf-8"))
    assert rmadapter.json(*command)["accuracy"] == record["scores"][0]["accuracy"]
    held = rmadapter.json(*command, "--split", "heldout")
    assert held["n_images"] == 16  # the draw's digest counts the names


@pytest.mark.ci
def test_eval_uses_the_names_of_both_halves_of_the_classes(
    rmadapter: Command, tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    (tmp_path / "names.csv").write_text("label,name\nblue,sea\nred,scarlet\n")
    run = tmp_path / "run"
    words = ["--method", "zero-shot", "--shots", 2, "--half", "base", "--out", run]
    words += ["--backbone", tiny_clip.name, "--names-from", tmp_path / "names.csv"]
    rmadapter.done("fit", colors, *words)
    saved = load(run, tiny_clip)
    assert saved.custom_names == {"blue": "sea"}
    assert known_names(run, saved) == {"blue": "sea", "red": "scarlet"}
    command = ["eval", run, colors, *backbone_option(run), "--split", "heldout"]
    assert rmadapter.json(*command, "--half", "novel")["n_images"] > 0


def test_names_that_fit_no_class_are_refused(
    rmadapter: Command, colors: Path, tmp_path: Path
) -> None:
    (tmp_path / "names.csv").write_text("label,name\nnight-sky,stars\n")
    command = ["fit", colors, "--out", tmp_path / "run", "--names-from", tmp_path / "names.csv"]
    refused(rmadapter(*command), "'night-sky'", "did you mean 'night_sky'?")
    (tmp_path / "names.csv").write_text("label,name\nred,Blue\n")
    refused(rmadapter(*command), "classes 'blue' and 'red' are both called 'Blue'")


def test_runs_that_kept_no_labels_still_load(
    finished: Path, tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    """Until 0.2 `fit` kept the prompt names as labels."""
    run = shutil.copytree(finished, tmp_path / "run")
    model = json.loads((run / "model.json").read_text("utf-8"))
    (run / "model.json").write_text(json.dumps({**model, "labels": model["classes"]}))
    (run / "SHA256SUMS").unlink()
    classifier = FewShotClassifier.load(run, backbone=tiny_clip.name)
    assert classifier.classes_.tolist() == ["blue", "green", "night sky", "red"]
    paths = sorted((colors / "test/night_sky").iterdir())
    # 0.0 while labels were compared as text
    assert classifier.score(paths, ["night_sky"] * 4) == 1.0
