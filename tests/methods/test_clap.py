"""ZS-LP and CLAP against a plain softmax regression with gradients by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rmadapter.backbones import Backbone
from rmadapter.data.read import read_images
from rmadapter.methods import clap
from rmadapter.methods.clap import CLAP, ZeroShotProbe, strengths
from rmadapter.prompts import raw_text_features
from rmadapter.settings import configured
from rmadapter.training.contract import Shots
from tests.helpers.shots import logits_of, noise_images, noisy_colors, shots_of

BOTH = [ZeroShotProbe(), CLAP()]


@pytest.fixture
def shots(tiny_clip: Backbone, colors: Path) -> Shots:
    return shots_of(tiny_clip, read_images(colors)["train"])


@pytest.mark.ci
def test_the_penalty_holds_weights_near_the_start(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What CLAP is without it, bit for bit, is ZS-LP. The backbone stays."""
    before = {k: v.clone() for k, v in tiny_clip.model.state_dict().items()}
    shots = shots_of(tiny_clip, noise_images(8))
    free, again = (ZeroShotProbe().fit(tiny_clip, shots) for _ in range(2))
    held = CLAP().fit(tiny_clip, shots)
    assert logits_of(free, shots).argmax(1).tolist() == list(shots.images.labels)
    start = raw_text_features(tiny_clip, shots.classes, shots.templates)[0]
    moved = [float((fitted.tensors["weights"] - start).norm()) for fitted in (held, free)]
    assert 0 < moved[0] < 0.5 * moved[1]
    monkeypatch.setattr(clap, "strengths", lambda *words: torch.zeros(2))
    for other in (again, CLAP().fit(tiny_clip, shots)):
        assert torch.equal(other.tensors["weights"], free.tensors["weights"])
    assert all(torch.equal(before[k], v) for k, v in tiny_clip.model.state_dict().items())


@pytest.mark.parametrize(("method", "penalised"), [(ZeroShotProbe(), 0), (CLAP(), 1)])
def test_steps_are_those_of_softmax_regression_with_a_penalty_a_class(
    tiny_clip: Backbone, shots: Shots, method: Any, penalised: int
) -> None:
    """Strengths from the zero-shot probabilities, as trainers/adapters.py of the released code
    defines them."""
    clip = tiny_clip.model
    method = configured(method, {"learning_rate": 0.05, "epochs": 3, "warmup_epochs": 0})
    fitted = method.fit(tiny_clip, shots)
    x, y = F.normalize(shots.plain_features(), dim=-1), shots.labels
    start = raw_text_features(tiny_clip, shots.classes, shots.templates)[0]
    scale: Any = clip.logit_scale.exp()  # type: ignore[operator]
    zero_shot = (scale * x @ F.normalize(start, dim=-1).T).softmax(-1)
    known = torch.stack(
        [zero_shot[y == label, label].mean() for label in range(len(shots.classes))]
    )
    held = penalised * known
    weight, velocity, losses = start, torch.zeros_like(start), []
    for epoch in range(3):
        length = weight.norm(dim=-1, keepdim=True)
        unit = weight / length
        scores = scale * x @ unit.T
        penalty = (held * (weight - start).square().sum(-1)).mean()
        losses.append(float(penalty - scores.log_softmax(-1)[range(len(y)), y].mean()))
        error = scale * (scores.softmax(-1) - F.one_hot(y)).T @ x / len(y)
        gradient = (
            error - (error * unit).sum(-1, keepdim=True) * unit
        ) / length  # of a direction: sideways alone
        gradient = gradient + 2 * held[:, None] * (weight - start) / len(held)
        velocity = 0.9 * velocity + gradient
        weight = weight - method.recipe.rate(epoch, 1, 3) * velocity
    assert [step["loss"] for step in fitted.trained.history] == pytest.approx(losses, rel=1e-4)
    assert known.std() > 0
    expected = scale * x @ F.normalize(weight, dim=-1).T
    torch.testing.assert_close(logits_of(fitted, shots), expected, rtol=1e-4, atol=1e-4)


def test_a_class_is_held_as_firmly_as_zero_shot_knows_it(tiny_clip: Backbone) -> None:
    """Over all views; a shot of weight 2 counts twice, and a class of no weight is not held."""
    images = noisy_colors(3)
    weights = tuple(float(label > 0) * (1 + i % 3) for i, label in enumerate(images.labels))
    rows = [row for row, weight in enumerate(weights) for _ in range(int(weight))]
    text = raw_text_features(tiny_clip, images.classes, ("a {}.",))[0]
    weighed, repeated = (
        strengths(tiny_clip, shots_of(tiny_clip, some), text)
        for some in (replace(images, weights=weights), images.subset(rows))
    )
    torch.testing.assert_close(weighed[1:], repeated[1:])
    assert weighed[0] == 0
    shots = shots_of(tiny_clip, images, augmentation="standard", views=2)
    each = [
        strengths(tiny_clip, replace(shots, cache=fixed), text)
        for fixed in (shots.cache, shots_of(tiny_clip, images).cache)
    ]
    scores = (
        tiny_clip.logit_scale * F.normalize(shots.features(), dim=-1) @ F.normalize(text, dim=-1).T
    )
    right = scores.softmax(-1)[:, range(len(images)), list(images.labels)].mean(0)  # [N]
    expected = torch.stack(
        [right[shots.labels == label].mean() for label in range(len(images.classes))]
    )
    torch.testing.assert_close(each[0], expected)
    assert not torch.allclose(each[0], each[1])
