"""Tip-Adapter and Tip-Adapter-F against their equations, written out image by image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rmadapter.backbones import Backbone
from rmadapter.data.read import ImageSet, read_images
from rmadapter.errors import UserError
from rmadapter.methods.tip_adapter import Search, TipAdapter, TipAdapterF
from rmadapter.settings import configured
from tests.helpers.shots import logits_of, noise_images, pixels_of, shots_of

THREE = ("cat", "dog", "car")


def unit_features(backbone: Backbone, images: ImageSet) -> tuple[torch.Tensor, ...]:
    """Image features [N, e] and class features [C, e] by the backbone's own forward passes,
    normalised."""
    clip: Any = backbone.model
    tokens = backbone.tokenizer([f"a photo of a {name}." for name in images.classes])
    with torch.no_grad():
        found = clip.encode_image(pixels_of(backbone, images)), clip.encode_text(tokens)
    return tuple(F.normalize(x, dim=-1) for x in found)


def plain(
    x: torch.Tensor, w: torch.Tensor, keys: torch.Tensor, labels: Any, alpha: float, beta: float
) -> torch.Tensor:
    """Zero-shot logits w plus what every shot adds to its class, one after the other."""
    scores = w.clone()
    for key, label in zip(keys, labels, strict=True):
        scores[:, label] += alpha * torch.exp(-beta * (1 - x @ key))
    return scores


@pytest.mark.parametrize("name", ["tiny_clip", "tiny_hf"])
def test_logits_are_those_of_the_equation(
    name: str, colors: Path, request: pytest.FixtureRequest
) -> None:
    backbone: Backbone = request.getfixturevalue(name)
    shots = shots_of(backbone, read_images(colors)["train"])
    x, w = unit_features(backbone, shots.images)
    clip = backbone.model.logit_scale.exp() * x @ w.T  # type: ignore[operator]
    fitted = TipAdapter(Search(alpha=1.7, beta=2.5, search=False)).fit(backbone, shots)
    # Apple's GPU has no float64
    assert all(tensor.dtype == torch.float32 for tensor in fitted.tensors.values())
    expected = plain(x, clip, x, shots.images.labels, 1.7, 2.5)
    torch.testing.assert_close(logits_of(fitted, shots), expected, rtol=1e-4, atol=1e-4)


def test_a_key_is_the_mean_over_views(tiny_clip: Backbone, colors: Path) -> None:
    shots = shots_of(tiny_clip, read_images(colors)["train"], augmentation="standard", views=3)
    views = shots.features()
    fitted = TipAdapter(Search(search=False)).fit(tiny_clip, shots)
    assert len(views) == 3
    assert not torch.allclose(views[0], views[1])
    torch.testing.assert_close(
        fitted.tensors["keys"], F.normalize((views[0] + views[1] + views[2]) / 3, dim=-1)
    )


def test_loss_and_first_step_of_the_trained_keys(tiny_clip: Backbone, colors: Path) -> None:
    shots, clip = shots_of(tiny_clip, read_images(colors)["train"]), tiny_clip.model
    x, w = unit_features(tiny_clip, shots.images)
    zero_shot, y = clip.logit_scale.exp() * x @ w.T, torch.tensor(shots.images.labels)  # type: ignore[operator]
    keys = x.clone().requires_grad_()
    value = F.cross_entropy(plain(x, zero_shot, keys, y, 1.17, 1.0), y)
    value.backward()
    fitted = configured(TipAdapterF(), {"epochs": 1, "search": False}).fit(tiny_clip, shots)
    assert fitted.trained.history[0]["loss"] == pytest.approx(float(value.detach()), rel=1e-4)
    gradient = keys.grad
    assert gradient is not None
    # The first step of AdamW: 1e-3 along g / (|g| + eps), after a decay by 1e-3 * 0.01.
    stepped = x * (1 - 1e-3 * 0.01) - 1e-3 * gradient / (gradient.abs() + 1e-4)
    torch.testing.assert_close(fitted.tensors["keys"], stepped, rtol=1e-4, atol=1e-5)
    expected = plain(x, zero_shot, stepped, y, 1.17, 1.0)
    torch.testing.assert_close(logits_of(fitted, shots), expected, rtol=1e-4, atol=1e-3)


def test_each_epoch_trains_on_the_next_view(tiny_clip: Backbone) -> None:
    """Keys that hardly move: the loss of an epoch is that of its view."""
    shots = shots_of(tiny_clip, noise_images(6, THREE), augmentation="standard", views=2)
    fields = {"epochs": 3, "search": False, "learning_rate": 1e-9}
    fitted = configured(TipAdapterF(), fields).fit(tiny_clip, shots)
    _, w = unit_features(tiny_clip, shots.images)
    scale, keys = tiny_clip.model.logit_scale.exp(), fitted.tensors["keys"]  # type: ignore[operator]
    losses = []
    for view in (0, 1, 0):
        x = F.normalize(shots.features()[view], dim=-1)
        scores = plain(x, scale * x @ w.T, keys, shots.images.labels, 1.17, 1.0)
        losses.append(float(F.cross_entropy(scores, shots.labels)))
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)
    assert [step["loss"] for step in fitted.trained.history] == pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize("method", [TipAdapter(), configured(TipAdapterF(), {"epochs": 2})])
def test_alpha_and_beta_are_the_best_of_the_grid_on_validation_images(
    method: Any, tiny_clip: Backbone
) -> None:
    val = noise_images(15, THREE, seed=101, grain=32)
    shots = shots_of(tiny_clip, noise_images(12, THREE, seed=1, grain=32), val=val)
    method = configured(
        method, {"alpha_steps": 5, "beta_steps": 6, "largest_alpha": 20, "largest_beta": 30}
    )
    (x, w), (held, _) = unit_features(tiny_clip, shots.images), unit_features(tiny_clip, val)
    fitted = method.fit(tiny_clip, shots)
    keys, labels = fitted.tensors["keys"], shots.images.labels
    scale = tiny_clip.model.logit_scale.exp()  # type: ignore[operator]
    hits, gaps = {}, []
    for beta in np.linspace(0.1, 30, 6, endpoint=False):
        for alpha in np.linspace(0.1, 20, 5, endpoint=False):
            scores = plain(held, scale * held @ w.T, keys, labels, alpha, beta)
            best = scores.topk(2).values
            gaps.append(float((best[:, 0] - best[:, 1]).min()))
            hits[alpha, beta] = int((scores.argmax(1) == torch.tensor(val.labels)).sum())
    assert len(set(hits.values())) > 2
    # of logits up to 20
    assert min(gaps) > 1e-3, "rounding would decide what hits: choose other images"
    alpha, beta = max(hits, key=lambda pair: hits[pair])  # the first of equals
    assert [float(fitted.tensors[name]) for name in ("alpha", "beta")] == pytest.approx(
        [alpha, beta]
    )
    expected = plain(x, scale * x @ w.T, keys, labels, alpha, beta)
    torch.testing.assert_close(logits_of(fitted, shots), expected, rtol=1e-4, atol=1e-3)


def test_without_validation_images_every_shot_is_held_out_once(tiny_clip: Backbone) -> None:
    shots = shots_of(tiny_clip, noise_images(12, THREE, grain=32))
    method, views = TipAdapter(), shots.features()
    keys, _ = method.keys(tiny_clip, shots, views)
    parts = list(method.judged(tiny_clip, shots, views, keys))
    assert [len(part[0]) for part in parts] == [3, 3, 3, 3]
    for affinity, values, clip, wanted in parts:
        assert affinity.shape == (3, 9)
        assert affinity.max() < 1 - 1e-4  # no image meets itself
        assert values.sum(0).tolist() == [3, 3, 3]
        assert clip.shape == (3, 3)
        assert sorted(wanted.tolist()) == [0, 1, 2]


def test_with_one_shot_per_class_nothing_is_held_out(tiny_clip: Backbone) -> None:
    one = shots_of(tiny_clip, noise_images(3, THREE, grain=32))
    given = TipAdapter(Search(search=False)).fit(tiny_clip, one)
    searched = TipAdapter().fit(tiny_clip, one)
    assert torch.equal(logits_of(given, one), logits_of(searched, one))
    for field in ("alpha_steps", "beta_steps"):
        with pytest.raises(
            UserError, match=f"{field}=0: Input should be greater than or equal to 1"
        ):
            configured(TipAdapter(), {field: 0})
