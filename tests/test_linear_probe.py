"""The linear probes against their own optimality conditions and a plain softmax regression."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rmadapter.backbone import Backbone, load_backbone
from rmadapter.bench.activations import Activations
from rmadapter.bench.methods.base import Classifier, NotApplicable, Training
from rmadapter.bench.methods.linear_probe import LinearProbe, ZeroShotProbe, raw_text_features
from rmadapter.bench.methods.loop import Recipe
from rmadapter.bench.methods.shots import labels_of, shot_features
from rmadapter.bench.methods.zero_shot import ZeroShot
from rmadapter.config import Config
from rmadapter.data.images import ImageSet, read_images
from rmadapter.errors import UserError

CPU = torch.device("cpu")


def shots(backbone: Backbone, images: ImageSet, val: ImageSet | None = None, seed: int = 1) -> Training:
    return Training(images, val, Activations(backbone, Config.make({"device": "cpu"})), seed, progress=False)


@pytest.fixture
def train(tiny_clip: Backbone, colors: Path) -> Training:
    return shots(tiny_clip, read_images(colors)["train"])


def noise(count: int, classes: tuple[str, ...] = ("cat", "dog")) -> ImageSet:
    """Pictures without any meaning."""
    arrays = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)
    return ImageSet(tuple(arrays), tuple(i % len(classes) for i in range(count)), classes)


def logits(done: Classifier, train: Training, names: tuple[str, ...] | None = None) -> torch.Tensor:
    states = train.frozen().batch(torch.arange(len(train.images)), CPU)
    return done.for_classes(names or train.images.classes)(states)


@pytest.mark.parametrize("strength", [0.316, 50.0])
def test_the_penalised_loss_is_at_its_minimum(train: Training, strength: float) -> None:
    """Logits of the probe against a minimiser in float64 that knows nothing of scikit-learn."""
    x, y = F.normalize(train.frozen().features, dim=-1).double(), torch.tensor(train.images.labels)
    weight, bias = torch.zeros(4, x.shape[1]).double().requires_grad_(), torch.zeros(4).double().requires_grad_()

    def objective() -> torch.Tensor:
        return weight.square().sum() / 2 + strength * F.cross_entropy(x @ weight.T + bias, y, reduction="sum")

    solver = torch.optim.LBFGS([weight, bias], max_iter=2000, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> float:
        solver.zero_grad()
        value = objective()
        value.backward()
        return float(value.detach())

    solver.step(closure)
    found = logits(LinearProbe(search_steps=0, C=strength).fit(train.activations.backbone, train), train).double()
    exact = (x @ weight.T + bias).detach()
    exact, found = exact - exact.mean(1, keepdim=True), found - found.mean(1, keepdim=True)
    assert float((found - exact).norm() / exact.norm()) < 0.01  # where scikit-learn stops


def test_the_search_takes_a_strength_with_most_hits() -> None:
    """On features with so much noise that the penalty matters."""
    random = torch.Generator().manual_seed(0)
    center, labels = torch.randn(10, 40, generator=random), torch.arange(10).repeat(8)
    fit, held = (F.normalize(center[labels] + 3 * torch.randn(80, 40, generator=random), dim=-1) for _ in range(2))
    probe = LinearProbe()

    def hits(strength: float) -> int:
        return int((probe._regression(fit[None], labels, strength).predict(held.numpy()) == labels.numpy()).sum())

    coarse = {exponent: hits(10.0**exponent) for exponent in range(-6, 7, 2)}
    assert len(set(coarse.values())) > 2
    found = probe._search([(fit[None], labels, held, labels)])
    assert hits(found) >= max(coarse.values())
    assert hits(found) >= max(hits(found * 10**0.125), hits(found / 10**0.125))
    assert probe._search([]) == probe.C


def test_hits_are_counted_on_validation_images_or_on_parts_of_the_shots(tiny_clip: Backbone) -> None:
    train, val = noise(12), noise(6)
    for given, sizes in ((val, [(12, 6)]), (None, [(9, 3), (9, 3), (9, 3), (9, 3)])):
        some = shots(tiny_clip, train, given)
        views, labels = shot_features(some), labels_of(some)
        parts = LinearProbe()._held_out(some, views, labels)
        assert [(len(part[0][0]), len(part[2])) for part in parts] == sizes
        assert all(len(part[1]) == len(part[0][0]) and len(part[3]) == len(part[2]) for part in parts)


def test_both_know_their_classes_alone_in_any_order(train: Training) -> None:
    for method in (LinearProbe(), ZeroShotProbe(epochs=2)):
        done = method.fit(train.activations.backbone, train)
        classes = train.images.classes
        assert torch.equal(logits(done, train, classes[::-1]), logits(done, train).flip(1))
        with pytest.raises(NotApplicable, match="'tree'"):
            done.for_classes(["tree"])


def test_eight_images_are_learnt_by_heart_and_the_backbone_stays(tiny_clip: Backbone) -> None:
    before = {k: v.clone() for k, v in tiny_clip.model.state_dict().items()}
    train = shots(tiny_clip, noise(8))
    for method in (LinearProbe(search_steps=0, C=1e6), ZeroShotProbe()):
        done, again = method.fit(tiny_clip, train), method.fit(tiny_clip, train)
        assert (logits(done, train).argmax(1) == torch.tensor(train.images.labels)).all()
        assert torch.equal(logits(done, train), logits(again, train))
    assert all(torch.equal(before[k], v) for k, v in tiny_clip.model.state_dict().items())


def test_one_class_and_one_shot(tiny_clip: Backbone) -> None:
    with pytest.raises(UserError, match="at least two"):
        LinearProbe().fit(tiny_clip, shots(tiny_clip, noise(3, ("cat",))))
    one = shots(tiny_clip, noise(3, ("cat", "dog", "car")))
    given, searched = LinearProbe(search_steps=0).fit(tiny_clip, one), LinearProbe().fit(tiny_clip, one)
    assert torch.equal(logits(given, one), logits(searched, one))  # nothing could be held out
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # scikit-learn takes many classes of one image each for a regression's values
        LinearProbe().fit(tiny_clip, shots(tiny_clip, noise(24, tuple(f"thing {i}" for i in range(24)))))


@pytest.mark.parametrize("name", ["tiny_clip", "tiny_hf"])
def test_without_a_step_the_zero_shot_start_is_zero_shot(
    name: str, colors: Path, request: pytest.FixtureRequest
) -> None:
    backbone: Backbone = request.getfixturevalue(name)
    train = shots(backbone, read_images(colors)["train"])
    done, plain = ZeroShotProbe(epochs=0).fit(backbone, train), ZeroShot().fit(backbone, train)
    torch.testing.assert_close(logits(done, train), logits(plain, train))


def test_its_steps_are_those_of_plain_softmax_regression(train: Training) -> None:
    backbone: Any = train.activations.backbone
    rate = 0.05
    done = ZeroShotProbe(learning_rate=rate, epochs=3, warmup_epochs=0).fit(backbone, train)
    x, y = F.normalize(train.frozen().features, dim=-1), torch.tensor(train.images.labels)
    weight = raw_text_features(backbone, train.images.classes, train.templates)
    scale, velocity, losses = backbone.model.logit_scale.exp(), torch.zeros_like(weight), []
    for epoch in range(3):
        length = weight.norm(dim=-1, keepdim=True)
        unit = weight / length
        scores = scale * x @ unit.T
        losses.append(float(-scores.log_softmax(-1)[range(len(y)), y].mean()))
        error = scale * (scores.softmax(-1) - F.one_hot(y)).T @ x / len(y)
        gradient = (error - (error * unit).sum(-1, keepdim=True) * unit) / length  # of a direction: sideways alone
        velocity = 0.9 * velocity + gradient
        weight = weight - Recipe(learning_rate=rate, epochs=3, warmup_epochs=0).rate(epoch, 1) * velocity
    assert [step["loss"] for step in done.history] == pytest.approx(losses, rel=1e-4)
    expected = scale * x @ F.normalize(weight, dim=-1).T
    torch.testing.assert_close(logits(done, train), expected, rtol=1e-4, atol=1e-4)


def test_parameters_of_vit_b16() -> None:
    vit = load_backbone("ViT-B-16/none")
    assert LinearProbe().parameters(vit, classes=1000) == 1000 * (512 + 1)  # weights and biases of a linear layer
    # one prototype a class, as long as a feature: `prototypes` in trainers/adapters.py of jusiro/CLAP
    assert ZeroShotProbe().parameters(vit, classes=1000) == 1000 * 512
