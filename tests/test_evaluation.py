"""Answers against the backbone's own forward pass, with and without hooks, one image at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rmadapter.backbone import Backbone
from rmadapter.checkpoint import load_adapter
from rmadapter.config import Config
from rmadapter.data.images import ImageSet, load_image, read_images
from rmadapter.errors import UserError
from rmadapter.evaluation import Evaluation, evaluate, novelty_quantiles
from rmadapter.features import freeze_images
from rmadapter.model import AdaptedCLIP


@pytest.fixture(scope="module")
def model(tiny_clip: Backbone, finished: Path) -> AdaptedCLIP:
    return load_adapter(finished, tiny_clip)[0]


@pytest.fixture(scope="module")
def images(colors: Path) -> ImageSet:
    return read_images(colors)["test"]


def plain(model: AdaptedCLIP, images: ImageSet) -> np.ndarray:
    """[N, C] by open_clip's own encode_image and encode_text, whole sequences, no cache, no batch."""
    backbone = model.backbone
    with torch.no_grad():
        tokens = backbone.tokenizer([f"a photo of a {name}." for name in images.classes])
        weights = F.normalize(model.encode_text(tokens), dim=-1)
        rows = []
        for source in images.images:
            features = model.encode_image(backbone.preprocess(load_image(source))[None])
            rows.append((backbone.model.logit_scale.exp() * F.normalize(features, dim=-1) @ weights.T).softmax(-1))
    return torch.cat(rows).numpy()


def test_both_models_answer_as_the_backbone_with_and_without_hooks(model: AdaptedCLIP, images: ImageSet) -> None:
    found = evaluate(model, images, "test", batch_size=3, progress=False)
    assert found.labels.tolist() == list(images.labels)
    assert found.classes == images.classes
    np.testing.assert_allclose(found.probabilities, plain(model, images), atol=1e-5)
    with model.dial(0):
        np.testing.assert_allclose(found.zero_shot, plain(model, images), atol=1e-5)
    assert np.abs(found.probabilities - found.zero_shot).max() > 0.1  # else the two oracles would prove nothing
    assert len(found.novelty) == 0


def test_alpha_zero_is_zero_shot_exactly(model: AdaptedCLIP, images: ImageSet) -> None:
    with model.dial(0):
        found = evaluate(model, images, progress=False)
    np.testing.assert_array_equal(found.probabilities, found.zero_shot)
    assert found.summary()["accuracy"] == found.summary()["zero_shot_accuracy"]


def test_evaluating_leaves_the_dial_where_it_was(model: AdaptedCLIP, images: ImageSet) -> None:
    before = model.alpha
    evaluate(model, images.subset([0]), progress=False)
    assert model.alpha == before == 1


def test_novelty_is_a_percentile_of_the_training_images(model: AdaptedCLIP, images: ImageSet, colors: Path) -> None:
    train = read_images(colors)["train"]
    quantiles = novelty_quantiles(model, train, progress=False)
    assert len(quantiles) == 101
    pictures = torch.stack([model.backbone.preprocess(load_image(source)) for source in train.images])
    errors = model.novelty(pictures).numpy()
    assert quantiles[0] == pytest.approx(errors.min())
    assert quantiles[50] == pytest.approx(np.median(errors))
    assert quantiles[100] == pytest.approx(errors.max())
    test = torch.stack([model.backbone.preprocess(load_image(source)) for source in images.images])
    expected = [100 * (np.array(quantiles) < error).mean() for error in model.novelty(test).tolist()]
    novelty = evaluate(model, images, quantiles=quantiles, batch_size=5, progress=False).novelty
    np.testing.assert_allclose(novelty, expected, atol=1)  # of 101 values, so that a tie makes half a percent
    assert np.ptp(novelty) > 50


def test_no_reconstruction_no_novelty(tiny_clip: Backbone, images: ImageSet) -> None:
    config = Config.make({"first_block": 3, "rank": 2, "lambda_image_rec": 0})
    assert novelty_quantiles(AdaptedCLIP(tiny_clip, config), images, progress=False) == []


def test_summary_counts_by_hand() -> None:
    answers = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3]], np.float32)
    found = Evaluation("t", ("a", "b"), np.array([0, 1, 1, 0]), answers, answers[:, ::-1], np.empty(0)).summary()
    assert found == {"accuracy": 75, "zero_shot_accuracy": 25, "chance": 50, "n_images": 4, "n_classes": 2}


def test_nothing_to_evaluate_is_refused(model: AdaptedCLIP, images: ImageSet) -> None:
    with pytest.raises(UserError, match="empty set: there are no images to evaluate"):
        evaluate(model, images.subset([]), "empty set", progress=False)


def test_frozen_activations_can_stand_in_for_the_images(tiny_clip: Backbone) -> None:
    """Several models on one backbone share them: the images are not read again."""
    arrays = [np.random.default_rng(i).integers(0, 255, (40, 40, 3), dtype=np.uint8) for i in range(5)]
    images = ImageSet.from_lists(arrays, ["cat", "dog", "cat", "dog", "cat"])
    unreadable = replace(images, images=("missing.png",) * 5)
    for seed in (1, 2):
        model = AdaptedCLIP(tiny_clip, Config.make({"first_block": 2, "init": "kaiming", "seed": seed}))
        frozen = freeze_images(model, images, progress=False)
        quantiles = novelty_quantiles(model, images, progress=False)
        assert novelty_quantiles(model, unreadable, frozen, progress=False) == pytest.approx(quantiles, rel=1e-4)
        expected = evaluate(model, images, quantiles=quantiles, progress=False)
        shared = evaluate(model, unreadable, quantiles=quantiles, frozen=frozen, progress=False)
        np.testing.assert_allclose(shared.probabilities, expected.probabilities, rtol=1e-4)
        np.testing.assert_allclose(shared.zero_shot, expected.zero_shot, rtol=1e-4)
