"""HOSO-Adapter: which images train what, by gradients written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rmadapter.backbones import Backbone
from rmadapter.errors import UserError
from rmadapter.methods.hoso import HOSOAdapter, one_of_each
from rmadapter.prompts import zero_shot_weights
from rmadapter.settings import configured
from tests.helpers.shots import logits_of, noise_images, shots_of

THREE = ("cat", "dog", "car")
STEP: dict[str, Any] = {
    "epochs": 1, "warmup_epochs": 0, "weight_decay": 0.0, "learning_rate": 0.5, "batch_size": 100,
}  # fmt: skip


def test_one_shot_of_each_class_is_held_out(tiny_clip: Backbone) -> None:
    shots = shots_of(tiny_clip, noise_images(11, THREE), seed=4)
    held = one_of_each(shots)
    assert [int(label) for label in sorted(shots.labels[held])] == [0, 1, 2]
    assert held == one_of_each(shots)
    seeds = [one_of_each(shots_of(tiny_clip, noise_images(11, THREE), seed=n)) for n in range(9)]
    assert len({tuple(rows) for rows in seeds}) > 1
    assert one_of_each(shots_of(tiny_clip, noise_images(4, THREE))) in ([0], [3])


def test_a_step_moves_the_network_by_some_shots_and_the_ratio_by_the_others(
    tiny_clip: Backbone,
) -> None:
    shots = shots_of(tiny_clip, noise_images(9, THREE, grain=8))
    method = configured(HOSOAdapter(ratio=0.3), STEP)
    fitted = method.fit(tiny_clip, shots)
    held = one_of_each(shots)
    rest = [row for row in range(9) if row not in held]
    x, y = shots.plain_features(), shots.labels
    w, scale = zero_shot_weights(tiny_clip, THREE, shots.templates), tiny_clip.logit_scale
    start = method.module(tiny_clip, shots.seed)

    def loss(rows: list[int], ratio: torch.Tensor) -> torch.Tensor:
        adapted = F.relu(F.relu(x[rows] @ start.down.weight.T) @ start.up.weight.T)
        mixed = ratio * adapted + (1 - ratio) * x[rows]
        return F.cross_entropy(scale * F.normalize(mixed, dim=-1) @ w.T, y[rows])

    ratio = torch.tensor(0.3)
    down, up = torch.autograd.grad(loss(rest, ratio), [start.down.weight, start.up.weight])
    share = start.share.detach().requires_grad_()
    [moved] = torch.autograd.grad(loss(held, share.sigmoid()), [share])
    for name, value, gradient in (
        ("down.weight", start.down.weight, down),
        ("up.weight", start.up.weight, up),
        ("share", share, moved),
    ):
        assert gradient.abs().max() > 1e-4
        wanted = (value - 0.5 * gradient).detach()
        torch.testing.assert_close(fitted.tensors[name], wanted, rtol=1e-3, atol=1e-5)
    history = fitted.trained.history[0]["loss"]
    wanted = loss(rest, ratio).detach() + loss(held, ratio).detach()
    assert history == pytest.approx(float(wanted), rel=1e-4)


def test_logits_mix_by_the_learned_ratio(tiny_clip: Backbone) -> None:
    shots = shots_of(tiny_clip, noise_images(9, THREE, grain=8))
    fitted = configured(HOSOAdapter(), STEP).fit(tiny_clip, shots)
    tensors, x = fitted.tensors, shots.plain_features()
    ratio = tensors["share"].sigmoid()
    adapted = F.relu(F.relu(x @ tensors["down.weight"].T) @ tensors["up.weight"].T)
    mixed = F.normalize(ratio * adapted + (1 - ratio) * x, dim=-1)
    names = ("car", "tree house")
    w = zero_shot_weights(tiny_clip, names, shots.templates)
    wanted = tiny_clip.logit_scale * mixed @ w.T
    torch.testing.assert_close(logits_of(fitted, shots, names), wanted, rtol=1e-4, atol=1e-3)


def test_with_one_shot_per_class_the_ratio_stays(tiny_clip: Backbone) -> None:
    shots = shots_of(tiny_clip, noise_images(3, THREE, grain=8))
    fitted = configured(HOSOAdapter(ratio=0.4), STEP).fit(tiny_clip, shots)
    assert float(fitted.tensors["share"].sigmoid()) == pytest.approx(0.4)
    with pytest.raises(UserError, match="ratio=1"):
        configured(HOSOAdapter(), {"ratio": 1.0})
