"""Tip-Adapter and Tip-Adapter-F against their equations, written out image by image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rmadapter.backbone import Backbone, load_backbone
from rmadapter.bench.activations import Activations
from rmadapter.bench.methods.base import Classifier, NotApplicable, Training
from rmadapter.bench.methods.tip_adapter import TipAdapter, TipAdapterF
from rmadapter.config import Config
from rmadapter.data.images import ImageSet, load_image, read_images
from rmadapter.errors import UserError

CPU = torch.device("cpu")


def shots(backbone: Backbone, images: ImageSet, val: ImageSet | None = None, **fields: Any) -> Training:
    activations = Activations(backbone, Config.make({"device": "cpu", **fields}))
    return Training(images, val, activations, progress=False)


def logits(done: Classifier, train: Training, names: tuple[str, ...] | None = None) -> torch.Tensor:
    states = train.frozen(images=train.images).batch(torch.arange(len(train.images)), CPU)
    return done.for_classes(names or train.images.classes)(states)


def unit_features(backbone: Backbone, images: ImageSet) -> tuple[torch.Tensor, ...]:
    """Image features [N, e] and class features [C, e] by the backbone's own forward passes, normalised."""
    clip: Any = backbone.model
    pictures = torch.stack([backbone.preprocess(load_image(image)) for image in images.images])
    tokens = backbone.tokenizer([f"a photo of a {name}." for name in images.classes])
    with torch.no_grad():
        return tuple(F.normalize(x, dim=-1) for x in (clip.encode_image(pictures), clip.encode_text(tokens)))


def plain(x: torch.Tensor, w: torch.Tensor, keys: torch.Tensor, labels: Any, alpha: float, beta: float) -> torch.Tensor:
    """Zero-shot logits w plus what every shot adds to its class, one after the other."""
    scores = w.clone()
    for key, label in zip(keys, labels, strict=True):
        scores[:, label] += alpha * torch.exp(-beta * (1 - x @ key))
    return scores


@pytest.mark.parametrize("name", ["tiny_clip", "tiny_hf"])
def test_logits_are_those_of_the_equation(name: str, colors: Path, request: pytest.FixtureRequest) -> None:
    backbone: Backbone = request.getfixturevalue(name)
    train = shots(backbone, read_images(colors)["train"])
    x, w = unit_features(backbone, train.images)
    clip = backbone.model.logit_scale.exp() * x @ w.T  # type: ignore[operator]
    done = TipAdapter(alpha=1.7, beta=2.5, search=False).fit(backbone, train)
    expected = plain(x, clip, x, train.images.labels, 1.7, 2.5)
    torch.testing.assert_close(logits(done, train), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(done, train, train.images.classes[::-1]), logits(done, train).flip(1))
    with pytest.raises(NotApplicable, match="'tree'"):
        done.for_classes(["tree"])


def test_a_key_is_the_mean_over_views(tiny_clip: Backbone, colors: Path) -> None:
    images = read_images(colors)["train"]
    train = shots(tiny_clip, images, augmentation="standard", views=3)
    views = train.frozen().features.unflatten(0, (3, len(images)))
    cache, _ = TipAdapter().cache(tiny_clip, torch.zeros(4, views.shape[-1]), views, train)
    assert not torch.allclose(views[0], views[1])
    torch.testing.assert_close(cache.keys, F.normalize((views[0] + views[1] + views[2]) / 3, dim=-1))


def test_loss_and_first_step_of_the_trained_keys(tiny_clip: Backbone, colors: Path) -> None:
    train, clip = shots(tiny_clip, read_images(colors)["train"]), tiny_clip.model
    x, w = unit_features(tiny_clip, train.images)
    zero_shot, y = clip.logit_scale.exp() * x @ w.T, torch.tensor(train.images.labels)  # type: ignore[operator]
    keys = x.clone().requires_grad_()
    value = F.cross_entropy(plain(x, zero_shot, keys, y, 1.17, 1.0), y)
    value.backward()
    method = TipAdapterF(epochs=1, search=False)
    done = method.fit(tiny_clip, train)
    assert done.history[0]["loss"] == pytest.approx(float(value.detach()), rel=1e-4)
    gradient = keys.grad
    assert gradient is not None
    # The first step of AdamW: 1e-3 along g / (|g| + eps), after a decay by 1e-3 * 0.01.
    stepped = x * (1 - 1e-3 * 0.01) - 1e-3 * gradient / (gradient.abs() + 1e-4)
    cache, _ = method.cache(tiny_clip, w, train.frozen().features[None], train)
    torch.testing.assert_close(cache.keys, stepped, rtol=1e-4, atol=1e-5)
    expected = plain(x, zero_shot, stepped, y, 1.17, 1.0)
    torch.testing.assert_close(logits(done, train), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("method", [TipAdapter(), TipAdapterF(epochs=2)])
def test_alpha_and_beta_are_the_best_of_the_grid_on_validation_images(method: TipAdapter, tiny_clip: Backbone) -> None:
    train = shots(tiny_clip, noise(12, 3), noise(15, 3, seed=1))
    assert train.val is not None
    method = replace(method, alpha_steps=5, beta_steps=6, largest_alpha=20, largest_beta=30)
    (x, w), (held, _) = unit_features(tiny_clip, train.images), unit_features(tiny_clip, train.val)
    cache, _ = method.cache(tiny_clip, w, train.frozen().features[None], train)
    scale = tiny_clip.model.logit_scale.exp()  # type: ignore[operator]
    hits = {}
    for beta in np.linspace(0.1, 30, 6, endpoint=False):
        for alpha in np.linspace(0.1, 20, 5, endpoint=False):
            scores = plain(held, scale * held @ w.T, cache.keys, train.images.labels, alpha, beta)
            hits[alpha, beta] = int((scores.argmax(1) == torch.tensor(train.val.labels)).sum())
    assert len(set(hits.values())) > 2
    alpha, beta = max(hits, key=lambda pair: hits[pair])  # the first of equals
    expected = plain(x, scale * x @ w.T, cache.keys, train.images.labels, alpha, beta)
    torch.testing.assert_close(logits(method.fit(tiny_clip, train), train), expected, rtol=1e-4, atol=1e-3)


def noise(count: int, classes: int = 2, seed: int = 0) -> ImageSet:
    """Pictures of one random colour each, without any meaning."""
    arrays = np.random.default_rng(seed).integers(0, 256, (count, 1, 1, 3), np.uint8).repeat(32, 1).repeat(32, 2)
    return ImageSet(tuple(arrays), tuple(i % classes for i in range(count)), ("cat", "dog", "car")[:classes])


def test_without_validation_images_every_shot_is_held_out_once(tiny_clip: Backbone) -> None:
    train = shots(tiny_clip, noise(12, 3))
    _, w = unit_features(tiny_clip, train.images)
    method, views, labels = TipAdapter(), train.frozen().features[None], torch.tensor(train.images.labels)
    cache, _ = method.cache(tiny_clip, w, views, train)
    parts = list(method._held_out(tiny_clip, w, views, labels, train, cache))
    assert [len(part[0]) for part in parts] == [3, 3, 3, 3]
    for affinity, values, clip, wanted in parts:
        assert affinity.shape == (3, 9)
        assert affinity.max() < 1 - 1e-4  # no image meets itself
        assert values.sum(0).tolist() == [3, 3, 3]
        assert clip.shape == (3, 3)
        assert sorted(wanted.tolist()) == [0, 1, 2]
    one = shots(tiny_clip, noise(3, 3))
    given, searched = TipAdapter(search=False).fit(tiny_clip, one), TipAdapter().fit(tiny_clip, one)
    assert torch.equal(logits(given, one), logits(searched, one))
    with pytest.raises(UserError, match="at least 1"):
        TipAdapter(alpha_steps=0).fit(tiny_clip, one)


def test_eight_images_are_learnt_by_heart_and_the_backbone_stays(tiny_clip: Backbone) -> None:
    before = {k: v.clone() for k, v in tiny_clip.model.state_dict().items()}
    train = shots(tiny_clip, noise(8))
    for method in (
        TipAdapter(alpha=50, beta=50, search=False),
        TipAdapterF(alpha=5, beta=20, search=False, epochs=200, learning_rate=0.01),
    ):
        done, again = method.fit(tiny_clip, train), method.fit(tiny_clip, train)
        assert (logits(done, train).argmax(1) == torch.tensor(train.images.labels)).all()
        assert torch.equal(logits(done, train), logits(again, train))
    assert done.history[-1]["loss"] < 0.1 * done.history[0]["loss"]
    assert all(torch.equal(before[k], v) for k, v in tiny_clip.model.state_dict().items())


def test_parameters() -> None:
    vit = load_backbone("ViT-B-16/none")
    assert TipAdapter().parameters(vit) == 0
    # `adapter.weight` of the released code: [shots of all classes, e], whose e is 1024 for ResNet-50
    assert TipAdapterF().parameters(vit, classes=1000, shots=16) == 16_000 * 512
