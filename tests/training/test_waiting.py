"""A training step never makes the processor wait for a GPU: shown on a processor, by following what
would be on the GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rmadapter import Callback
from rmadapter.backbones import Backbone
from rmadapter.methods import METHODS
from rmadapter.training import loop
from rmadapter.training.loop import Batch, Trainer, minimise
from rmadapter.training.shots import Shots
from rmadapter.training.traits import Recipe
from tests.helpers.methods import quick_method
from tests.helpers.shots import noisy_colors, shots_of
from tests.helpers.slow import ci_except
from tests.helpers.syncs import Device, on

# It chooses the classes of a step by similarities that are computed on the GPU.
CHOOSES = ("skip-tuning",)


def waits(fit: Callable[[], Any], backbone: Backbone) -> tuple[int, list[str]]:
    """Return how many steps a training took, and what waited for the device from the first until
    the losses were read, after the last."""
    device, step, read = Device(backbone.model.state_dict().values()), Trainer.step, Trainer.read
    steps: list[Batch] = []

    def watched(trainer: Trainer, loss: Any, batch: Batch, *words: Any) -> None:
        device.held.add([*trainer.module.state_dict().values(), batch.labels])
        device.watching = True
        step(trainer, loss, batch, *words)
        steps.append(batch)

    def unwatched(trainer: Trainer) -> int:
        device.watching = False
        return read(trainer)

    with pytest.MonkeyPatch.context() as patch, on(device):
        patch.setattr(loop, "READ_SECONDS", 1e9)
        patch.setattr(Trainer, "step", watched)
        patch.setattr(Trainer, "read", unwatched)
        fit()
    return len(steps), device.waits


@pytest.mark.parametrize("name", ci_except(METHODS, "coop", "rmadapter", "tip-adapter-f"))
def test_a_step_waits_for_nothing(name: str, tiny_clip: Backbone) -> None:
    method, shots = quick_method(name), shots_of(tiny_clip, noisy_colors(2))
    steps, found = waits(lambda: method.fit(tiny_clip, shots), tiny_clip)
    assert (steps > 0) == (method.recipe is not None)
    assert bool(found) == (name in CHOOSES), found


@pytest.mark.parametrize("name", ["rmadapter", "maple", "2sfs"])
def test_a_step_in_bfloat16_waits_for_nothing(name: str, tiny_clip: Backbone) -> None:
    """Of float16, torch reads after each step whether a gradient overflowed."""
    shots = shots_of(tiny_clip, noisy_colors(2), precision="bf16")
    steps, found = waits(lambda: quick_method(name).fit(tiny_clip, shots), tiny_clip)
    assert steps
    assert not found


class Weight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(40))


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("item", lambda x, labels: x.sum().item()),
        ("tolist", lambda x, labels: x.tolist()),
        ("__bool__", lambda x, labels: 1.0 if x.isfinite().all() else 0.0),
        ("aten::nonzero", lambda x, labels: x.nonzero()),
        ("aten::index by a mask", lambda x, labels: x[x > 0]),
        ("aten::index by places on the processor", lambda x, labels: x[[0]]),
        ("aten::_unique2", lambda x, labels: labels.unique()),
        ("tensor of numbers", lambda x, labels: torch.tensor([1.0], device=x.device)),
        ("to", lambda x, labels: torch.ones(1).to(x.device)),
        ("to", lambda x, labels: torch.eye(2).to(x)),
    ],
)
def test_what_waits_is_found(
    name: str, use: Callable[[Tensor, Tensor], Any], tiny_clip: Backbone
) -> None:
    module, shots = Weight(), shots_of(tiny_clip, noisy_colors(2))

    def loss(batch: Batch) -> Tensor:
        scores = batch.images.features * module.weight
        use(scores.detach(), batch.labels)
        return scores.sum()

    recipe = Recipe(epochs=1, batch_size=4)
    steps, found = waits(lambda: minimise(module, loss, recipe, shots, shots.source()), tiny_clip)
    assert steps == 2
    assert name in found


# ---- when losses are read ----


def readings(shots: Shots, seconds: float, patch: pytest.MonkeyPatch) -> tuple[list[int], Any]:
    """Return how many steps were read at each reading, and the history."""
    patch.setattr(loop, "READ_SECONDS", seconds)
    read, counts = Trainer.read, list[int]()

    def counted(trainer: Trainer) -> int:
        counts.append(read(trainer))
        return counts[-1]

    patch.setattr(Trainer, "read", counted)
    method = quick_method("coop")
    return counts, method.fit(shots.cache.backbone, shots).trained.history


def test_losses_are_the_same_whenever_they_are_read(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    shots = shots_of(tiny_clip, noisy_colors(2))
    with monkeypatch.context() as patch:
        each, history = readings(shots, -1.0, patch)
    with monkeypatch.context() as patch:
        once, again = readings(shots, 1e9, patch)
    assert each == [1] * len(history)
    assert once == [len(history)]
    assert again == history


def test_losses_are_read_at_each_step_that_somebody_follows(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    shots = replace(shots_of(tiny_clip, noisy_colors(2)), callbacks=[Callback(seen.append)])
    counts, history = readings(shots, 1e9, monkeypatch)
    assert counts == [1] * len(history)
    assert seen == history


def test_a_loss_that_is_not_finite_is_named_by_its_step(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "READ_SECONDS", 1e9)
    module, shots = Weight(), shots_of(tiny_clip, noisy_colors(2))
    numbers = iter([1.0, 1.0, float("inf"), 1.0])

    def loss(batch: Batch) -> Tensor:
        return module.weight.sum() * next(numbers, 1.0)

    with pytest.raises(loop.UserError, match="inf in step 3: lower learning_rate"):
        minimise(module, loss, Recipe(epochs=5, batch_size=4), shots, shots.source())
