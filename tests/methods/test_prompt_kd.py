"""PromptKD against a plain reimplementation, its teacher, and what a fit does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rmadapter import Callback
from rmadapter.artifacts.checkpoint import load, save
from rmadapter.backbones import Backbone
from rmadapter.errors import UserError
from rmadapter.methods import prompt_kd
from rmadapter.methods.prompt_kd import DIGEST, PromptKD
from rmadapter.methods.promptsrc import PromptSRC
from rmadapter.settings import configured
from rmadapter.training import loop as training
from rmadapter.training.contract import Trained
from rmadapter.training.loop import Batch
from rmadapter.training.shots import Unfinished
from rmadapter.training.traits import Recipe
from tests.helpers.deep_prompts import eight_images, pixels, prompts_inserted
from tests.helpers.learning import PROMPTSRC, Killed, assert_learns
from tests.helpers.rounding import double
from tests.helpers.shots import gradients, logits_of
from tests.helpers.slow import ci_except

QUICK = {"teaching": 2, "epochs": 2, "learning_rate": 0.02}


def taught(
    method: PromptKD, backbone: Backbone, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> tuple[Any, ...]:
    """Lesson, loss and source of a fit whose student takes no step."""
    seen: list[Any] = []
    monkeypatch.setattr(prompt_kd, "minimise", lambda *words: [seen.append(words), Trained()][1])
    shots = eight_images(backbone, **settings)
    method.fit(backbone, shots)
    ((lesson, loss, _, _, source),) = seen
    return lesson, loss, source, shots


@pytest.mark.parametrize("name", ci_except(["tiny_clip", "tiny_hf"], "tiny_clip"))
def test_features_are_plain_ones(name: str, request: pytest.FixtureRequest) -> None:
    """Of images in training, with the mean and variance of the batch, and afterwards, with those
    that were kept."""
    backbone = double(request.getfixturevalue(name))
    student = PromptKD(n_image=2, depth=3)._student(backbone, 24).double()
    for parameter in student.prompts:
        parameter.data *= 20
    student.norm.running_mean.uniform_(-1, 1)  # type: ignore[operator, union-attr]
    student.norm.running_var.uniform_(0.5, 2)  # type: ignore[operator, union-attr]
    student.norm.weight.data.uniform_(0.5, 2)
    images = pixels(backbone)
    states = backbone.image.frozen(images, 1)
    with prompts_inserted(backbone, image=[*student.prompts]) as model:
        x = model.encode_image(images) @ student.down.weight.T + student.down.bias
    n: Any = student.norm
    kept = (n.running_mean.clone(), n.running_var.clone())
    for mean, var in ((x.mean(0), x.var(0, correction=0)), kept):
        if mean is kept[0]:
            n.running_mean.copy_(kept[0])
            n.running_var.copy_(kept[1])
            student.eval()
        y = (x - mean) / (var + 1e-5).sqrt() * n.weight + n.bias
        expected = y.clamp(min=0) @ student.up.weight.T + student.up.bias
        torch.testing.assert_close(student.image_features(states), expected, rtol=1e-8, atol=1e-9)
    alone = student.image_features(backbone.image.frozen(images[:1], 1))
    student.train()
    torch.testing.assert_close(student.image_features(backbone.image.frozen(images[:1], 1)), alone)


@pytest.mark.parametrize("apart", [False, True])
def test_the_loss_is_the_divergence_from_the_teacher(
    apart: bool, tiny_clip: Backbone, tiny_hf: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of PromptSRC that was fitted to the same shots, and sees the same views of them; its labels
    are not read."""
    method = PromptKD(
        teacher=tiny_hf.name if apart else "", teaching=3, tau=2.0, weight=5.0, depth=2
    )
    views = {"augmentation": "standard", "views": 2}
    lesson, loss, source, shots = taught(method, tiny_clip, monkeypatch, **views)
    large = tiny_hf if apart else tiny_clip
    tutor = configured(
        PromptSRC(),
        {"epochs": 3, "batch_size": 8, "learning_rate": 0.005, "mean": 2.25, "std": 0.15},
    )
    alike = eight_images(large, **views)
    fitted = tutor.fit(large, alike)
    rows = torch.arange(8)
    z_t = fitted.score()(alike.source(1).batch(rows, 1))
    w = F.normalize(lesson.teacher.class_features(lesson.teacher.text(shots.classes)), dim=-1)
    states = source.batch(rows, 1)
    f = lesson.student.image_features(states)
    z_s = tiny_clip.logit_scale * F.normalize(f, dim=-1) @ w.T
    p, q = (z_t / 2).softmax(-1), (z_s / 2).softmax(-1)
    expected = 5 * 4 * (p * (p / q).log()).sum() / z_s.numel()
    found = loss(Batch(1, rows, torch.zeros(8), states, torch.Generator()))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)
    learned = gradients(lesson.student, found)
    # which norm takes off
    assert all(gradient.norm() > 0 for name, gradient in learned.items() if name != "down.bias")
    assert not any(parameter.requires_grad for parameter in lesson.teacher.parameters())


@pytest.mark.slow
def test_the_student_learns_eight_images(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a teacher that did."""
    monkeypatch.setattr(PromptKD, "_tutor", lambda self: configured(PromptSRC(), PROMPTSRC))
    settings = {"epochs": 100, "learning_rate": 0.002, "batch_size": 8}
    assert_learns(configured(PromptKD(), settings), eight_images(tiny_clip))


def test_a_larger_teacher_is_needed_for_new_names_alone(
    tiny_clip: Backbone, tiny_hf: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = configured(PromptKD(), {**QUICK, "teacher": tiny_hf.name})
    shots = eight_images(tiny_clip)
    fitted = method.fit(tiny_clip, shots)
    found: Any = fitted.for_classes(("tree", "dog"))
    again = PromptSRC().module(tiny_hf)
    again.load_state_dict({name: fitted.tensors[f"teacher.{name}"] for name in again.state_dict()})
    expected = F.normalize(again.class_features(again.text(("tree", "dog"))), dim=-1)
    torch.testing.assert_close(found.weights, expected, rtol=1e-4, atol=1e-5)
    wrong = {**fitted.tensors, DIGEST: fitted.tensors[DIGEST].flip(0)}
    with pytest.raises(UserError, match="has other weights"):
        method.restore(tiny_clip, fitted.known, wrong).for_classes(("tree",))
    monkeypatch.setattr(prompt_kd, "reload", None)
    alone = method.restore(tiny_clip, fitted.known, fitted.tensors)
    assert torch.equal(logits_of(alone, shots), logits_of(fitted, shots))
    with pytest.raises(
        RuntimeError, match=r"classes is torch.float32 of \[3, 40\], not numbers of \[4, any\]"
    ):
        method.restore(
            tiny_clip, fitted.known, {**fitted.tensors, "classes": fitted.tensors["classes"][:3]}
        )


def test_callbacks_see_the_steps_of_the_student_alone(tiny_clip: Backbone) -> None:
    steps: list[Any] = []
    shots = replace(eight_images(tiny_clip), callbacks=[Callback(steps.append)])
    assert steps == configured(PromptKD(), QUICK).fit(tiny_clip, shots).trained.history != []


def test_a_saved_model_may_not_name_its_teacher(
    tiny_clip: Backbone, tiny_hf: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of any backbone that is not published: it may come from anyone."""
    own = {"teacher": tiny_hf.name}
    fitted = configured(PromptKD(), {**QUICK, **own}).fit(tiny_clip, eight_images(tiny_clip))
    save(tmp_path, fitted, "prompt-kd")
    monkeypatch.setattr("rmadapter.backbones.load.TRUSTED", set())  # as in another process
    loaded = load(tmp_path, tiny_clip).fitted
    loaded.score()
    with pytest.raises(UserError, match="name it yourself"):
        loaded.score(("tree", "dog"))
    load(tmp_path, tiny_clip, settings=own).fitted.score(("tree", "dog"))


@pytest.mark.parametrize("apart", [False, True])
def test_the_student_learns_from_all_images_among_all_names(
    apart: bool, tiny_clip: Backbone, tiny_hf: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher from the shots alone; and what is kept knows the classes of the shots, without
    labels of others."""
    seen: list[Any] = []
    monkeypatch.setattr(prompt_kd, "minimise", lambda *words: [seen.append(words), Trained()][1])
    shots = eight_images(tiny_clip)
    few = replace(
        shots.images.subset([0, 1, 2, 3]), labels=(0, 0, 1, 1), classes=("cat", "dog"), written=()
    )
    every = replace(shots.images, labels=(0,) * 8, classes=("tree", "dog", "cat"), written=())
    method = PromptKD(teacher=tiny_hf.name if apart else "", teaching=2)
    fitted = method.fit(tiny_clip, replace(shots, images=few, unlabelled=every))
    ((lesson, loss, _, given, source),) = seen
    assert given.images is every
    assert len(source) == 8
    rows = torch.arange(8)
    found = loss(Batch(0, rows, torch.zeros(8), source.batch(rows), torch.Generator()))
    large = tiny_hf if apart else tiny_clip
    expected = method._tutor().fit(large, replace(eight_images(large), images=few))
    z_t = expected.score(every.classes)(eight_images(large).source(1).batch(rows))
    z_s = tiny_clip.logit_scale * F.normalize(
        lesson.student.image_features(source.batch(rows)), dim=-1
    )
    asked = F.normalize(lesson.teacher.class_features(lesson.teacher.text(every.classes)), dim=-1)
    torch.testing.assert_close(found, method.loss(z_s @ asked.T, z_t), rtol=1e-3, atol=1e-5)
    assert fitted.classes == ("cat", "dog")
    torch.testing.assert_close(fitted.tensors["classes"], asked[[2, 1]])


@pytest.mark.parametrize("step", ci_except([3, 9, 10, 13], 9))
def test_a_training_killed_in_teacher_or_student_continues(
    step: int, tiny_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 8 steps of the teacher's and 6 of the student's: bit for bit, and the teacher's are not
    taken twice."""
    method = configured(PromptKD(), {"teaching": 8, "epochs": 3, "batch_size": 4})
    whole, rate, taken = method.fit(tiny_clip, eight_images(tiny_clip)), Recipe.rate, []

    def dies(recipe: Recipe, *words: Any) -> float:
        taken.append(recipe)
        if len(taken) == step:
            raise Killed
        return rate(recipe, *words)

    monkeypatch.setattr(training, "SAVE_SECONDS", -1.0)
    monkeypatch.setattr(Recipe, "rate", dies)
    kept = {"unfinished": Unfinished(tmp_path / "training.safetensors", "k")}
    with pytest.raises(Killed):
        method.fit(tiny_clip, eight_images(tiny_clip, **kept))
    resumed = method.fit(tiny_clip, eight_images(tiny_clip, **kept))
    assert len(taken) == 8 + 6 + 1
    assert all(torch.equal(tensor, resumed.tensors[name]) for name, tensor in whole.tensors.items())
    assert [row["loss"] for row in whole.trained.history] == [
        row["loss"] for row in resumed.trained.history
    ]
    other = {"unfinished": Unfinished(tmp_path / "training.safetensors", "another")}
    with pytest.raises(UserError, match="holds another, unfinished training"):
        method.fit(tiny_clip, eight_images(tiny_clip, **other))
