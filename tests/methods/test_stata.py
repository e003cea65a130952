"""StatA against its equations, with loops over images and classes in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm

from rmadapter.backbones import Backbone
from rmadapter.methods.stata import StatA
from rmadapter.training.contract import Known
from tests.helpers.shots import near_prompts, states_of, unit_rows

NAMES = ("cat", "dog", "car", "tree")


def softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max(-1, keepdims=True))
    found: np.ndarray = powers / powers.sum(-1, keepdims=True)
    return found


def affinity(x: np.ndarray, k: int) -> np.ndarray:
    """Cosines of each image and its k nearest others."""
    cosines, found = x @ x.T, np.zeros((len(x), len(x)))
    for i, row in enumerate(cosines):
        others = sorted((j for j in range(len(x)) if j != i), key=lambda j: -row[j])
        for j in others[:k]:
            found[i, j] = row[j]
    return found


def plain(x: np.ndarray, prompts: np.ndarray, scale: float, method: StatA) -> np.ndarray:
    """Shares [B, C] of the classes."""
    count, classes = len(x), len(prompts)
    first = z = softmax(scale * x @ prompts.T)
    near = affinity(x, method.neighbours)
    pull = method.strength * 25 / method.neighbours * (near + near.T)
    squares = (x[:, None] - prompts) ** 2  # [B, C, e]
    at_first = np.einsum("bc,bce->e", z, squares) / count
    means, variances = prompts.copy(), np.tile(at_first, (classes, 1))
    for number in range(method.rounds + 1):
        density = np.stack(
            [norm(means[c], variances[c] ** 0.5).logpdf(x).sum(-1) for c in range(classes)], 1
        )
        for _ in range(5):
            z = softmax(np.log(first) + (density + pull @ z) / 50)
        if number == method.rounds:
            return z
        for c in range(classes):
            held = int((z.argmax(1) == c).sum())
            b = held / (method.anchor + held)
            means[c] = unit_rows(b * unit_rows(z[:, c] @ x) + (1 - b) * prompts[c])
            own = z[:, c] @ (x - means[c]) ** 2 / z[:, c].sum()
            variances[c] = b * own + (1 - b) * (at_first + (prompts[c] - means[c]) ** 2)
    raise AssertionError


@pytest.mark.parametrize(
    "method",
    [StatA(), StatA(anchor=10, strength=0, rounds=2), StatA(strength=3, neighbours=1, rounds=1)],
)
def test_shares_are_those_of_the_equations(method: StatA, tiny_clip: Backbone) -> None:
    prompts, images = near_prompts(tiny_clip, NAMES, count=20)
    fitted = method.restore(tiny_clip, Known(NAMES), {})
    found = fitted.score()(states_of(images)).softmax(-1).numpy()
    x, scale = unit_rows(images.double().numpy()), float(tiny_clip.logit_scale)
    wanted = plain(x, prompts.double().numpy(), scale, method)
    zero_shot = softmax(scale * x @ prompts.double().numpy().T)
    assert np.abs(wanted - zero_shot).max() > 0.02
    np.testing.assert_allclose(found, wanted, atol=2e-3)


def test_answers_depend_on_the_batch_and_one_image_has_one(tiny_clip: Backbone) -> None:
    _, images = near_prompts(tiny_clip, NAMES, count=20)
    fitted = StatA().restore(tiny_clip, Known(NAMES), {})
    assert fitted.remembers
    score = fitted.score()
    together, alone = score(states_of(images)), score(states_of(images[:1]))
    assert not torch.allclose(together[:1], alone, atol=1e-2)
    assert alone.isfinite().all()
    assert score(states_of(images[:2].repeat(2, 1))).isfinite().all()  # images that are equal
    assert fitted.score(("cat",))(states_of(images)).exp().sum() == pytest.approx(20)
