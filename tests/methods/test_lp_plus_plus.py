"""LP++ against the released algorithm, written out in NumPy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rmadapter.backbones import Backbone
from rmadapter.data.read import read_images
from rmadapter.methods.lp_plus_plus import Blend, LPPlusPlus
from rmadapter.methods.parts.features import one_hot
from rmadapter.prompts import zero_shot_weights
from rmadapter.settings import configured
from rmadapter.training.contract import Shots
from tests.helpers.shots import logits_of, noisy_colors, shots_of

Array = np.ndarray


@pytest.fixture
def shots(tiny_clip: Backbone, colors: Path) -> Shots:
    return shots_of(tiny_clip, read_images(colors)["train"])


def written_out(x: Array, labels: Array, text: Array, epochs: int) -> tuple[Array, list[float]]:
    """Logits of features x [N, e] after so many epochs, and the loss of each, in float64."""
    count, cosines, right = len(x), x @ text.T, np.eye(len(text))[labels]
    weight, bias = right.T @ x, np.zeros(len(text))
    alpha = np.full(
        len(text), 250 * np.mean([cosines[labels == k, k].mean() for k in range(len(text))])
    )
    rate = 4 * count / np.linalg.eigvalsh(x.T @ x).max()
    rate_of_alpha = count / (4 * (cosines**2).sum(0).max())
    speed, speed_of_bias, slope, losses = 0 * weight, 0 * bias, 0 * alpha, []
    for epoch in range(epochs):
        scores = x @ weight.T + bias + alpha * cosines
        p = np.exp(scores - scores.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        losses.append(-np.log(p[range(count), labels]).mean())
        error = (p - right) / count
        slope = slope + (error * cosines).sum(0)
        speed, speed_of_bias = 0.9 * speed + error.T @ x, 0.9 * speed_of_bias + error.sum(0)
        weight, bias = weight - rate * speed, bias - rate * speed_of_bias
        if (epoch + 1) % 10 == 0:
            alpha = alpha - rate_of_alpha * slope
    return x @ weight.T + bias + alpha * cosines, losses


@pytest.mark.parametrize("epochs", [1, 10, 45])
def test_losses_and_logits_are_those_of_the_released_algorithm(
    tiny_clip: Backbone, shots: Shots, epochs: int
) -> None:
    x = F.normalize(shots.plain_features(), dim=-1).double().numpy()
    text = zero_shot_weights(tiny_clip, shots.classes, shots.templates).double().numpy()
    expected, losses = written_out(x, np.array(shots.images.labels), text, epochs)
    fitted = configured(LPPlusPlus(), {"epochs": epochs}).fit(tiny_clip, shots)
    assert [step["loss"] for step in fitted.trained.history] == pytest.approx(
        losses, rel=1e-3, abs=1e-5
    )
    np.testing.assert_allclose(logits_of(fitted, shots).numpy(), expected, rtol=1e-3, atol=1e-3)


def test_a_factor_of_the_rate_holds_to_the_end(tiny_clip: Backbone, shots: Shots) -> None:
    whole, part = (
        configured(LPPlusPlus(), {"epochs": 5, "learning_rate": factor})
        .fit(tiny_clip, shots)
        .trained.history
        for factor in (1.0, 0.5)
    )
    assert [step["lr"] for step in part] == pytest.approx([step["lr"] / 2 for step in whole])


def test_the_gradient_of_alpha_is_that_of_the_loss(tiny_clip: Backbone, shots: Shots) -> None:
    views, values = F.normalize(shots.features(), dim=-1).double(), one_hot(shots).double()
    blend = Blend(
        views, values, zero_shot_weights(tiny_clip, shots.classes, shots.templates).double(), 3.0
    )
    alpha = blend.alpha.clone().requires_grad_()
    weight = blend.weight.detach() + alpha[:, None] * blend.text
    F.cross_entropy(views[0] @ weight.T, shots.labels).backward()
    torch.testing.assert_close(blend.gradient(), alpha.grad)
    torch.testing.assert_close(blend.slope, alpha.grad)


def test_a_shot_of_weight_2_is_two_shots_and_views_are_averaged(tiny_clip: Backbone) -> None:
    images = noisy_colors(3)
    weights = tuple(float(1 + i % 3) for i in range(12))  # 2 on average
    rows = [row for row, weight in enumerate(weights) for _ in range(int(weight))]
    text = zero_shot_weights(tiny_clip, images.classes, ("a {}.",))
    weighed, repeated = (
        Blend(F.normalize(shots.features(), dim=-1), one_hot(shots), text, 250.0)
        for shots in (
            shots_of(tiny_clip, replace(images, weights=weights)),
            shots_of(tiny_clip, images.subset(rows)),
        )
    )
    torch.testing.assert_close(weighed.alpha, repeated.alpha)
    torch.testing.assert_close(2 * weighed.weight, repeated.weight)
    assert weighed.rates() == pytest.approx(repeated.rates(), rel=1e-4)
    shots = shots_of(tiny_clip, images, augmentation="standard", views=2)
    views = F.normalize(shots.features(), dim=-1)
    both, *each = (
        Blend(some, one_hot(shots), text, 250.0) for some in (views, views[:1], views[1:])
    )
    torch.testing.assert_close(both.weight, (each[0].weight + each[1].weight) / 2)
    torch.testing.assert_close(both.alpha, (each[0].alpha + each[1].alpha) / 2)
    assert not torch.allclose(both.weight, each[0].weight)


def test_alpha_moves_after_every_so_many_epochs(tiny_clip: Backbone, shots: Shots) -> None:
    """By nothing that a fit of fewer epochs could see."""
    some = {every: configured(LPPlusPlus(), {"epochs": 6, "every": every}) for every in (3, 6, 7)}
    found = {every: method.fit(tiny_clip, shots) for every, method in some.items()}
    losses = {
        every: [step["loss"] for step in fitted.trained.history] for every, fitted in found.items()
    }
    assert losses[6] == losses[7]
    assert losses[3][:3] == losses[6][:3]
    assert losses[3][3:] != losses[6][3:]
    assert not torch.equal(found[6].tensors["weight"], found[7].tensors["weight"])
