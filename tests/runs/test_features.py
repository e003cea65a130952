"""Image features of methods, and what they share with their answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rmadapter.backbones import Backbone
from rmadapter.data.read import load_image, read_images
from rmadapter.runs.features import (
    class_means,
    distances,
    examine,
    image_features,
    outputs_of,
    with_means,
)
from rmadapter.runs.run import learn
from rmadapter.training.contract import Fitted
from tests.helpers.labs import prepare
from tests.helpers.methods import quick_method

METHODS = ("linear-probe", "ridge", "rmadapter", "rmadapter-plus", "mmrl", "tip-adapter-f")


def fit(name: str, backbone: Backbone, colors: Path) -> tuple[Fitted, list[Path]]:
    """Return a fitted method that keeps class means, and its training images."""
    wanted, lab = prepare(backbone, read_images(colors), shots=2)
    few = lab.draw(wanted.task)
    fitted = learn(quick_method(name), few.train, wanted.task, few, lab)
    fitted = with_means(fitted, few.train, lab.train_cache(wanted.task))
    return fitted, [Path(str(image)) for image in few.train.images]


def test_class_means_and_distances_by_hand() -> None:
    features = torch.tensor([[2.0, 0.0], [0.0, 3.0], [0.0, 1.0], [1.0, 1.0]])
    means = class_means(features, [0, 0, 1, 2], 4)
    half = 0.5**0.5
    expected = torch.tensor([[half, half], [0, 1], [half, half], [0, 0]])
    torch.testing.assert_close(means, expected)
    far = distances(torch.tensor([[0.0, 5.0], [-1.0, 0.0]]), means[:2])
    torch.testing.assert_close(far, torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("name", METHODS)
def test_sharing_features_changes_no_answer(name: str, tiny_clip: Backbone, colors: Path) -> None:
    fitted, images = fit(name, tiny_clip, colors)
    pixels = torch.stack([tiny_clip.preprocess(image) for image in map(load_image, images)])
    states = fitted.states(pixels)
    with torch.no_grad():
        expected = fitted.score()(states).softmax(-1).numpy()
        features = image_features(fitted, fitted.classes)(states)
    assert fitted.means is not None
    table, far = outputs_of(fitted, fitted.classes, True)(states)
    np.testing.assert_allclose(table, expected, atol=1e-5)
    assert far == pytest.approx(distances(features, fitted.means).numpy(), abs=1e-5)
    alone, none = outputs_of(fitted, fitted.classes, False)(states)
    np.testing.assert_allclose(alone, expected, atol=1e-5)
    assert none is None


@pytest.mark.parametrize("name", METHODS)
def test_training_images_are_near_their_class_mean(
    name: str, tiny_clip: Backbone, colors: Path
) -> None:
    """With two images of each class, an image is at most as far as half of the way between them."""
    fitted, images = fit(name, tiny_clip, colors)
    assert fitted.means is not None
    table, far = examine(fitted, images, False)
    batches = fitted.probabilities(images)
    np.testing.assert_allclose(table, torch.cat([*batches]).numpy(), atol=1e-5)
    torch.testing.assert_close(fitted.means.norm(dim=-1), torch.ones(len(fitted.classes)))
    pixels = torch.stack([tiny_clip.preprocess(image) for image in map(load_image, images)])
    with torch.no_grad():
        unit = F.normalize(image_features(fitted, fitted.classes)(fitted.states(pixels)), dim=-1)
    pairs = (unit[::2] * unit[1::2]).sum(-1)
    most = 1 - ((1 + pairs) / 2).sqrt().repeat_interleave(2)  # half of the angle
    assert (far <= most.numpy() + 1e-4).all()
