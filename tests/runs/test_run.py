"""From a task to its record: what is asked of which images, and answers against the backbone's own
forward pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rmadapter.artifacts.checkpoint import load
from rmadapter.backbones import Backbone
from rmadapter.bench.plan import Plan
from rmadapter.bench.protocols import expand
from rmadapter.bench.runner import run_all
from rmadapter.data.fewshot import FewShot
from rmadapter.data.read import ImageSet, load_image, read_images
from rmadapter.errors import UserError
from rmadapter.methods.linear_probe import LinearProbe
from rmadapter.methods.rmadapter import RMAdapter
from rmadapter.runs.evaluate import evaluate
from rmadapter.runs.fit import fit
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request
from rmadapter.runs.run import run_key, run_task
from rmadapter.settings import Machine, configured
from rmadapter.task import Question, Task
from rmadapter.training.cache import Cache
from tests.helpers.labs import prepare
from tests.helpers.shots import pixels_of

# all that a key reads of a published backbone
WEIGHTS: Any = SimpleNamespace(name="pocket", digest="weights")


def test_each_question_is_tested_on_its_images() -> None:
    def images(*labels: int) -> ImageSet:
        pixels = tuple(np.full((2, 2, 3), label, np.uint8) for label in labels)
        return ImageSet(pixels, labels, ("a", "b", "c"))

    def lengths(splits: dict[str, ImageSet], classes: Any) -> dict[str, int]:
        lab, task = Lab(progress=False), Task(data="x", classes=classes, shots=1)
        lab.add("x", splits)
        return {
            question.name if split == "test" else f"{question.name} {split}": len(part)
            for question, part, split in lab.tests(task)
        }

    splits = {"train": images(0, 1, 2, 2), "test": images(0, 1, 1, 2)}
    assert lengths(splits, "all") == {"all": 4}
    assert lengths(splits, "base") == {"base": 3, "novel": 1}
    assert lengths(splits, "novel") == {"novel": 1}
    assert lengths({**splits, "test": images()}, "all") == {"all held out": 1}
    assert lengths({"train": images(0, 1, 2, 2)}, "base") == {"novel held out": 1}
    assert lengths({"train": images(0, 1, 2)}, "base") == {}


def test_a_method_that_no_record_holds_is_refused_before_images_are_read() -> None:
    """One made in Python, whose settings nobody has checked."""
    with pytest.raises(UserError, match="C=1e"):
        run_task(Task(data="nowhere"), LinearProbe(C=1e300), Lab(progress=False), "linear-probe")


@pytest.mark.ci
def test_a_bench_and_a_fit_of_the_same_task_give_the_same_metrics(
    colors: Path, tiny_clip: Backbone, tmp_path: Path
) -> None:
    """To the last digit, for methods on tokens, on features, and with an answer for some classes
    alone."""
    common = configured(Task(), {"backbone": tiny_clip.name})
    methods, quick = ["rmadapter", "coop", "linear-probe"], {"epochs": 2}
    values = {"rmadapter": {**quick, "first_block": 3, "rank": 4}, "coop": quick}
    jobs = expand(
        "base-to-novel", [colors.name], methods, [2], [3], root=colors.parent, common=common
    )
    machine = configured(Request.make().machine, {"device": "cpu"})
    plan = Plan(tuple(jobs), tmp_path / "bench", colors.parent, machine, values)
    for record in run_all(plan, progress=False):
        name = record.method.name
        settings = {"backbone": tiny_clip.name, "shots": 3, "seed": 2, "classes": "base"}
        settings |= {"device": "cpu", **values.get(name, {})}
        wanted = Request.make(settings, name, data=colors.name)
        lab = Lab(wanted.machine, colors.parent, progress=False)
        fitted = fit(wanted.task, wanted.method, tmp_path / name, lab, name)
        assert fitted.scores == record.scores
        assert (fitted.key, fitted.split_digest) == (record.key, record.split_digest)


def test_a_key_changes_with_the_settings_that_change_figures() -> None:
    images = ImageSet((np.zeros((2, 2), np.uint8),), (0,), ("cat",))
    few = FewShot(images, None, images, 1, 1, ())

    def key(**values: Any) -> str:
        wanted = Request.make(values, "rmadapter", data=values.pop("data", "a/b"))
        return run_key(wanted.task, wanted.method, wanted.name, wanted.machine, WEIGHTS, few)

    plain = key()
    machine: dict[str, Any] = {"device": "cpu", "workers": 2, "cache_memory": 0}
    figures: dict[str, Any] = {"data": "a/c", "seed": 2, "rank": 3, "precision": "bf16"}
    assert {key(**{name: value}) for name, value in machine.items()} == {plain}
    assert key(data="elsewhere/b") == key(data="../a/b/") == plain
    for name, value in (figures | {"classes": "base"}).items():
        assert key(**{name: value}) != plain
    folders = [key(backbone=name) for name in ("x/clip", "clip", "./clip/", "../other/clip")]
    assert len({*folders}) == 1
    published = [key(backbone=name) for name in ("ViT-B-16/openai", "ViT-B-32/openai")]
    assert len({folders[0], plain, *published}) == 4
    assert len({plain, *(key(augmentation="standard", views=views) for views in (0, 1))}) == 3


def plain(backbone: Backbone, images: ImageSet) -> np.ndarray:
    """Return [N, C] by open_clip's encode_image and encode_text, without cache and batches."""
    with torch.no_grad():
        tokens = backbone.tokenizer([f"a photo of a {name}." for name in images.classes])
        weights = F.normalize(backbone.model.encode_text(tokens), dim=-1)
        rows = []
        for source in images.images:
            features = backbone.model.encode_image(backbone.preprocess(load_image(source))[None])
            logits = backbone.model.logit_scale.exp() * F.normalize(features, dim=-1) @ weights.T
            rows.append(logits.softmax(-1))
    return torch.cat(rows).numpy()


def test_both_models_answer_as_the_backbone_with_and_without_hooks(
    tiny_clip: Backbone, finished: Path, colors: Path
) -> None:
    fitted = replace(load(finished, tiny_clip).fitted, temperature=1.0)
    images = read_images(colors)["test"]
    cache = Cache(tiny_clip, Machine(device="cpu"), hold=False, progress=False)
    (answers,), (score,) = evaluate(fitted, [(Question("all"), images, "test")], cache)
    assert (answers.title, answers.classes) == ("test, all classes", images.classes)
    assert answers.labels.tolist() == list(images.labels)
    np.testing.assert_allclose(answers.zero_shot, plain(tiny_clip, images), atol=1e-5)
    assert isinstance(fitted.method, RMAdapter)
    model = fitted.method.model(tiny_clip)
    model.adapters.load_state_dict(dict(fitted.tensors))
    with model.attached():
        np.testing.assert_allclose(answers.probabilities, plain(tiny_clip, images), atol=1e-5)
    # else the two oracles would prove nothing
    assert np.abs(answers.probabilities - answers.zero_shot).max() > 0.1
    tables = (answers.zero_shot, answers.probabilities)
    rates = [100 * np.mean(table.argmax(1) == images.labels) for table in tables]
    assert [score.zero_shot, score.accuracy] == [round(rate, 4) for rate in rates]
    assert (score.images, score.classes, score.chance) == (len(images), 4, 25)


@pytest.mark.ci
def test_a_fitted_model_keeps_features_of_its_training_images(
    colors: Path, tiny_clip: Backbone
) -> None:
    """By the untouched encoder and without augmentation, whatever the method sees."""
    augmented: dict[str, Any] = {"epochs": 1, "augmentation": "standard"}
    for method, settings in {"linear-probe": {}, "coop": augmented}.items():
        wanted, lab = prepare(tiny_clip, read_images(colors), method, shots=2, **settings)
        fitted = run_task(wanted.task, wanted.method, lab).fitted
        assert fitted.examples is not None
        pixels = pixels_of(tiny_clip, lab.draw(wanted.task).train)
        model: Any = tiny_clip.model
        with torch.no_grad():
            expected = F.normalize(model.encode_image(pixels), dim=-1)
        torch.testing.assert_close(fitted.examples.float(), expected, atol=1e-3, rtol=0)
        assert fitted.unfamiliar(expected).max() < 1e-3
