"""SS-Text, SS-Text+ and SS-Text-U against their formulas, class by class in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rmadapter.backbones import Backbone
from rmadapter.data.read import ImageSet
from rmadapter.methods.ss_text import SSText, SSTextPlus, SSTextU, transport
from rmadapter.training.contract import Shots
from tests.helpers.shots import logits_of, noise_images, own_features, shots_of, unit_rows

THREE, FOUR = ("cat", "dog", "car"), ("bird", "cat", "dog", "car")
PARTS = (0, 0, 0, 0, 0, 1, 1, 2)  # five, two and one shot


def uneven(seed: int = 0) -> ImageSet:
    return replace(noise_images(len(PARTS), THREE, seed=seed, grain=16), labels=PARTS)


def expected(name: str, x: np.ndarray, prompts: np.ndarray, scale: float) -> np.ndarray:
    """The unit weights [C, e] of SS-Text or SS-Text+."""
    sums = [sum(x[i] for i in range(len(x)) if PARTS[i] == label) for label in range(3)]
    if name == "SS-Text":
        return unit_rows(np.stack([scale * one + t for one, t in zip(sums, prompts, strict=True)]))
    near = [
        scale * PARTS.count(label) / len(PARTS) * one + prompts[label]
        for label, one in enumerate(sums)
    ]
    middle = sum(near) / 3
    return unit_rows(np.stack([v - unit_rows(2 * v - middle) for v in near]))


@pytest.mark.parametrize("method", [SSText(), SSTextPlus()], ids=["plain", "plus"])
def test_logits_are_scaled_cosines_of_the_weights(method: SSText, tiny_clip: Backbone) -> None:
    images, asked = uneven(), noise_images(5, THREE, seed=3, grain=16)
    fitted = method.fit(tiny_clip, shots_of(tiny_clip, images))
    x, prompts = own_features(tiny_clip, images, THREE)
    scale = float(tiny_clip.logit_scale)
    weights = expected(method.title, x, prompts, scale)
    wanted = scale * own_features(tiny_clip, asked, THREE)[0] @ weights.T
    found = logits_of(fitted, shots_of(tiny_clip, asked), THREE)
    np.testing.assert_allclose(found.double().numpy(), wanted, rtol=1e-3, atol=1e-3)


def test_a_class_without_shots_has_its_prompt(tiny_clip: Backbone) -> None:
    images = uneven()
    fitted = SSText().fit(tiny_clip, shots_of(tiny_clip, images))
    names = ("dog", "bird")
    x, prompts = own_features(tiny_clip, images, names)
    found = logits_of(fitted, shots_of(tiny_clip, images), names)
    wanted = float(tiny_clip.logit_scale) * x @ prompts.T
    np.testing.assert_allclose(found[:, 1].double().numpy(), wanted[:, 1], rtol=1e-3, atol=1e-3)
    assert not np.allclose(found[:, 0].double().numpy(), wanted[:, 0], atol=0.1)


def test_the_weights_of_images_count(tiny_clip: Backbone) -> None:
    images = replace(uneven(), weights=(2, 1, 1, 1, 1, 1, 2, 1))
    found = SSTextPlus().fit(tiny_clip, shots_of(tiny_clip, images)).tensors["weights"]
    x, prompts = own_features(tiny_clip, images, THREE)
    sums = np.stack([
        sum(images.weights[i] * x[i] for i in range(len(PARTS)) if PARTS[i] == label)
        for label in range(3)
    ])  # fmt: skip
    shares = np.array([6, 3, 1]) / 10
    # weights are 1 on average
    near = float(tiny_clip.logit_scale) * shares[:, None] * sums * 8 / 10 + prompts
    wanted = unit_rows(near - unit_rows(2 * near - near.mean(0)))
    np.testing.assert_allclose(found.double().numpy(), wanted, rtol=1e-3, atol=1e-4)


def plain_transport(logits: np.ndarray, shares: np.ndarray, iterations: int) -> np.ndarray:
    """Sinkhorn's iterations on the matrix itself, classes by images."""
    q = np.exp(logits - logits.max()).T
    for _ in range(iterations):
        q *= (shares / q.sum(1))[:, None]
        q /= q.sum(0) * q.shape[1]
    return (q * q.shape[1]).T


def test_transport_scales_rows_and_columns() -> None:
    rng = np.random.default_rng(0)
    logits, shares = rng.normal(0, 3, (40, 4)), np.array([0.5, 0.3, 0.15, 0.05])
    for iterations in (1, 10):
        found = transport(torch.from_numpy(logits), torch.from_numpy(shares), iterations)
        np.testing.assert_allclose(found.numpy(), plain_transport(logits, shares, iterations))
    long = transport(torch.from_numpy(logits), torch.from_numpy(shares), 500).numpy()
    np.testing.assert_allclose(long.mean(0), shares, atol=1e-6)
    np.testing.assert_allclose(long.sum(1), 1)


def test_images_without_labels_move_the_weights(tiny_clip: Backbone) -> None:
    images, pool = uneven(), noise_images(12, FOUR, seed=9, grain=16)
    shots = shots_of(tiny_clip, images, unlabelled=pool)
    fitted = SSTextU(rounds=2, sinkhorn=4).fit(tiny_clip, shots)
    x, prompts = own_features(tiny_clip, images, FOUR)
    u, scale = own_features(tiny_clip, pool, FOUR)[0], float(tiny_clip.logit_scale)
    counts = np.array([0, 5, 2, 1])  # the bird has no shots
    shares = np.where(counts > 0, counts / 8, 1 / 8 / 4)
    shares /= shares.sum()
    fixed = prompts.copy()
    for i, label in enumerate(PARTS):
        fixed[label + 1] += scale * counts[label + 1] / (2 * 8) * x[i]
    weights = prompts
    for _ in range(2):
        z = plain_transport(scale * u @ unit_rows(weights).T, shares, 4)
        weights = fixed + scale / len(u) * z.T @ u
    found = fitted.tensors["weights"].double().numpy()
    np.testing.assert_allclose(found, unit_rows(weights)[1:], rtol=1e-3, atol=1e-4)
    alone = SSTextU().fit(tiny_clip, shots_of(tiny_clip, images)).tensors["weights"]
    np.testing.assert_allclose(alone.double().numpy(), unit_rows(fixed)[1:], rtol=1e-3, atol=1e-4)
    assert not np.allclose(alone.double().numpy(), found, atol=1e-2)


def test_labels_of_the_pool_are_not_read(tiny_clip: Backbone) -> None:
    images, pool = uneven(), noise_images(12, FOUR, seed=9, grain=16)
    other = replace(pool, labels=tuple(reversed(pool.labels)))

    def weights(unlabelled: ImageSet) -> torch.Tensor:
        shots: Shots = shots_of(tiny_clip, images, unlabelled=unlabelled)
        return SSTextU().fit(tiny_clip, shots).tensors["weights"]

    assert torch.equal(weights(pool), weights(other))
