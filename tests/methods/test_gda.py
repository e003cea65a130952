"""GDA against scikit-learn's discriminant analysis and its equations, class by class."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from rmadapter.backbones import Backbone
from rmadapter.data.read import read_images
from rmadapter.methods import gda, load_method
from rmadapter.methods.gda import GDA
from tests.helpers.shots import logits_of, noise_images, pixels_of, shots_of

THREE = ("cat", "dog", "car")


class Given:
    """A covariance estimator of scikit-learn that returns what it was given."""

    def __init__(self, covariance: np.ndarray) -> None:
        self.covariance_ = covariance

    def fit(self, x: np.ndarray) -> Given:
        return self


def kubokawa(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The inverse covariance of features [M, e], written out."""
    deviations = np.concatenate(
        [features[labels == i] - features[labels == i].mean(0) for i in range(labels.max() + 1)]
    )
    count, size = deviations.shape
    covariance = np.cov(deviations.T)
    return size * np.linalg.inv((count - 1) * covariance + np.trace(covariance) * np.eye(size))


@pytest.fixture
def features() -> tuple[np.ndarray, np.ndarray]:
    """30 unit features [30, 8] of three classes, and their labels."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 10)
    x = rng.normal(size=(30, 8)) + 2 * np.eye(8)[labels]
    return x / np.linalg.norm(x, axis=1, keepdims=True), labels


def test_classifier_is_scikit_learns(features: tuple[np.ndarray, np.ndarray]) -> None:
    x, labels = features
    inverse = kubokawa(x, labels)
    oracle = LinearDiscriminantAnalysis(
        solver="lsqr", covariance_estimator=Given(np.linalg.inv(inverse)), priors=[1 / 3] * 3
    ).fit(x, labels)
    weight, bias = gda.classifier(torch.from_numpy(x)[None], torch.from_numpy(labels), 3)
    np.testing.assert_allclose(weight.numpy(), oracle.coef_, rtol=1e-8)
    np.testing.assert_allclose(bias.numpy(), oracle.intercept_, rtol=1e-8)


def test_every_view_counts(features: tuple[np.ndarray, np.ndarray]) -> None:
    x, labels = (torch.from_numpy(part) for part in features)
    views = torch.stack([x[0::2], x[1::2]])  # two views of every second image
    found = gda.classifier(views, labels[0::2], 3)
    expected = gda.classifier(x[None], labels, 3)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_logits_add_to_zero_shot(tiny_clip: Backbone, colors: Path) -> None:
    shots = shots_of(tiny_clip, read_images(colors)["train"])
    fitted = GDA(alpha=0.7, search=False).fit(tiny_clip, shots)
    with torch.no_grad():
        x = F.normalize(tiny_clip.model.encode_image(pixels_of(tiny_clip, shots.images)), dim=-1)
    weight, bias = gda.classifier(x[None], shots.labels, len(shots.classes))
    zero_shot = logits_of(load_method("zero-shot").fit(tiny_clip, shots), shots)
    expected = zero_shot + 0.7 * (x @ weight.T + bias)
    torch.testing.assert_close(logits_of(fitted, shots), expected, rtol=1e-3, atol=1e-3)


def test_classes_without_shots_by_hand(features: tuple[np.ndarray, np.ndarray]) -> None:
    x = features[0]
    prompts = np.eye(8)[:2]
    weight, bias = gda.without_shots(torch.from_numpy(x), torch.from_numpy(prompts))
    means, inverses = [], []
    for prompt in prompts:
        nearest = x  # all of them: there are fewer than 64
        means.append(np.concatenate([nearest, np.repeat(prompt[None], 16, 0)]).mean(0))
        apart = (nearest - prompt).T @ (nearest - prompt) / (len(x) - 1)
        inverses.append(8 * np.linalg.inv((len(x) - 1) * apart + np.trace(apart) * np.eye(8)))
    inverse, mu = np.mean(inverses, 0), np.stack(means)
    np.testing.assert_allclose(weight.numpy(), mu @ inverse, rtol=1e-8)
    expected = math.log(1 / 2) - np.einsum("cd,de,ce->c", mu, inverse, mu) / 2
    np.testing.assert_allclose(bias.numpy(), expected, rtol=1e-8)


def test_only_the_nearest_shots_describe_a_class_without() -> None:
    generator = torch.Generator().manual_seed(0)
    prompt = F.normalize(torch.randn(1, 8, generator=generator).double(), dim=-1)
    near = F.normalize(prompt + 0.1 * torch.randn(gda.NEIGHBOURS, 8, generator=generator), dim=-1)
    found = gda.without_shots(torch.cat([-near, near]), prompt)
    for one, other in zip(found, gda.without_shots(near, prompt), strict=True):
        torch.testing.assert_close(one, other)


def test_known_and_new_classes_answer_together(tiny_clip: Backbone, colors: Path) -> None:
    shots = shots_of(tiny_clip, read_images(colors)["train"])
    fitted = GDA(search=False).fit(tiny_clip, shots)
    known = shots.classes[1]
    both = logits_of(fitted, shots, ("house", known))
    torch.testing.assert_close(both[:, 1], logits_of(fitted, shots)[:, 1], rtol=1e-4, atol=1e-4)
    alone = logits_of(fitted, shots, ("house",))
    torch.testing.assert_close(both[:, :1], alone, rtol=1e-4, atol=1e-4)


def test_alpha_is_the_best_of_the_grid_on_validation_images(tiny_clip: Backbone) -> None:
    val = noise_images(15, THREE, seed=101, grain=32)
    shots = shots_of(tiny_clip, noise_images(12, THREE, seed=1, grain=32), val=val)
    fitted = GDA().fit(tiny_clip, shots)
    judged = shots_of(tiny_clip, val)
    hits = []
    for alpha in gda.ALPHAS:
        given = GDA(alpha=alpha, search=False).fit(tiny_clip, shots)
        answers = logits_of(given, judged, shots.classes).argmax(1)
        hits.append(int((answers == judged.labels).sum()))
    assert len({*hits}) > 1
    best = gda.ALPHAS[hits.index(max(hits))]
    assert float(fitted.tensors["alpha"]) == pytest.approx(best)


def test_one_shot_without_views_is_zero_shot(tiny_clip: Backbone) -> None:
    shots = shots_of(tiny_clip, noise_images(3, THREE, grain=32))
    fitted = GDA().fit(tiny_clip, shots)
    zero_shot = logits_of(load_method("zero-shot").fit(tiny_clip, shots), shots)
    found = logits_of(fitted, shots)  # nothing deviates from its mean, so nothing is known
    torch.testing.assert_close(found - found[:, :1], zero_shot - zero_shot[:, :1])
    assert float(fitted.tensors["alpha"]) == pytest.approx(0.1)
