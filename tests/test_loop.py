"""The peers' loop against torch's own scheduler and plain arithmetic."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rmadapter.backbone import Backbone
from rmadapter.bench.activations import Activations
from rmadapter.bench.methods.base import Training
from rmadapter.bench.methods.loop import Recipe, minimise
from rmadapter.config import Config
from rmadapter.data.images import read_images
from rmadapter.errors import UserError


@pytest.fixture
def train(tiny_clip: Backbone, colors: Path) -> Training:
    """Ten images, none of which is ever read."""
    images = read_images(colors)["train"].subset(range(10))
    return Training(images, None, Activations(tiny_clip, Config(device="cpu")), seed=1, progress=False)


def test_rate_is_constant_then_dassls_cosine_by_epochs() -> None:
    """Dassl steps torch's scheduler once an epoch, for the first time after the warm-up."""
    recipe = Recipe(learning_rate=0.002, epochs=6, warmup_epochs=2, warmup_rate=1e-5)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.002)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=6)
    expected = [1e-5, 1e-5]
    for _ in range(4):
        expected.append(float(scheduler.get_last_lr()[0]))
        optimizer.step()
        scheduler.step()
    found = [recipe.rate(step, 3) for step in range(18)]
    assert found == pytest.approx([rate for rate in expected for _ in range(3)], rel=1e-9)


def test_rate_by_steps_is_a_cosine_that_would_end_at_zero() -> None:
    recipe = Recipe(learning_rate=0.1, epochs=2, warmup_epochs=0, every="step")
    found = [recipe.rate(step, 5) for step in range(11)]
    assert found[0] == 0.1
    assert found[5] == pytest.approx(0.05)
    assert found[10] == pytest.approx(0)
    assert found == sorted(found, reverse=True)


def test_sgd_is_momentum_with_weight_decay_by_hand(train: Training) -> None:
    recipe = Recipe(learning_rate=0.1, weight_decay=0.01, epochs=3, batch_size=4, warmup_epochs=1, warmup_rate=1e-3)
    targets = torch.linspace(-1, 1, 10)
    seen: list[Tensor] = []

    def loss(epoch: int, rows: Tensor) -> Tensor:
        seen.append(rows)
        return ((weight - targets[rows]) ** 2).mean()

    weight = nn.Parameter(torch.tensor(2.0))
    done = minimise([weight], loss, recipe, train)
    losses: list[float] = []
    w, momentum = 2.0, 0.0
    for step, rows in enumerate(seen):
        t = targets[rows].tolist()
        losses.append(float(sum((w - x) ** 2 for x in t) / len(t)))
        gradient = sum(2 * (w - x) for x in t) / len(t) + 0.01 * w
        momentum = 0.9 * momentum + gradient
        w -= recipe.rate(step, 3) * momentum
    assert weight.item() == pytest.approx(w, rel=1e-5)
    assert [record["loss"] for record in done.history] == pytest.approx(losses, rel=1e-5)
    assert [record["epoch"] for record in done.history] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert done.step_seconds is not None
    assert done.step_seconds > 0


def test_every_epoch_goes_through_all_rows_in_an_order_of_its_own(train: Training) -> None:
    def orders(seed: int) -> list[list[int]]:
        rows_of: dict[int, list[int]] = {0: [], 1: []}
        weight = nn.Parameter(torch.zeros(()))

        def loss(epoch: int, rows: Tensor) -> Tensor:
            rows_of[epoch] += rows.tolist()
            torch.rand(7)  # what a method draws leaves the order alone
            return weight * 0

        given = Training(train.images, None, train.activations, seed, progress=False)
        minimise([weight], loss, Recipe(epochs=2, batch_size=3), given)
        return list(rows_of.values())

    first, second = orders(1)
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert orders(1) == [first, second]
    assert orders(2)[0] != first


def test_terms_epochs_and_other_optimisers(train: Training) -> None:
    weight, ends = nn.Parameter(torch.tensor(1.0)), []

    def loss(epoch: int, rows: Tensor) -> dict[str, Tensor]:
        return {"ce": weight * 2, "rest": weight * 1, "loss": weight * 3}

    recipe = Recipe("adamw", learning_rate=0.01, weight_decay=0.0, epochs=2, batch_size=10, warmup_epochs=0)
    done = minimise([weight], loss, recipe, train, lambda epoch: ends.append((epoch, weight.item())))
    assert [epoch for epoch, _ in ends] == [0, 1]
    assert done.history[0] == {"step": 1, "epoch": 1, "ce": 2.0, "rest": 1.0, "loss": 3.0}
    assert ends[0][1] == pytest.approx(0.99, abs=1e-6)  # Adam's first step is the learning rate, whatever the gradient
    assert ends[1][1] == pytest.approx(0.99 - recipe.rate(1, 1), abs=1e-6)
    kinds: dict[Any, type] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    for name, kind in kinds.items():
        assert type(Recipe(name, eps=1e-4).make([weight])) is kind


def test_a_loss_that_is_no_number_is_refused(train: Training) -> None:
    weight = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(UserError, match="the loss became nan: lower learning_rate"):
        minimise([weight], lambda epoch, rows: weight * math.nan, Recipe(epochs=1), train)
