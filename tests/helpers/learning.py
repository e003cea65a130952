"""Check that a method learns eight images and changes nothing else; kill and resume a training."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch

from rmadapter.methods import load_method
from rmadapter.training.contract import Fitted, Shots
from rmadapter.training.shots import Unfinished
from rmadapter.training.traits import Recipe
from tests.helpers.shots import logits_of

# Settings of PromptSRC to learn eight images
PROMPTSRC = {"epochs": 120, "learning_rate": 0.05, "batch_size": 8, "mean": 120.0}
PROMPTSRC |= {"text_weight": 0.0, "image_weight": 0.0}


def assert_learns(method: Any, shots: Shots, falls: float = 1.0) -> None:
    """Learn all shots, twice with equal results. falls: bound on the last loss, relative to the
    first."""
    backbone, random_state = shots.cache.backbone, torch.random.get_rng_state()
    before = replace(backbone).digest  # computed anew
    fitted, again = method.fit(backbone, shots), method.fit(backbone, shots)
    logits = logits_of(fitted, shots)
    assert logits.argmax(-1).tolist() == list(shots.images.labels)
    assert torch.equal(logits, logits_of(again, shots))
    assert not logits.requires_grad
    if losses := [step.get("ce", step["loss"]) for step in fitted.trained.history]:
        assert len(losses) == prod(method.recipe.length(shots.images.labels))
        assert losses[-1] < falls * losses[0]
    assert replace(backbone).digest == before
    assert all(parameter.grad is None for parameter in backbone.model.parameters())
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())
    assert torch.equal(torch.random.get_rng_state(), random_state)


class Killed(BaseException):
    """A stand-in for SIGKILL, after which nothing runs."""


def killed_and_resumed(
    train: Callable[[Shots], Any], shots: Shots, folder: Path, survived: int | random.Random
) -> tuple[Any, Any]:
    """Return the results of an undisturbed training, and of one that was killed and resumed.

    survived: steps before the kill; a generator draws their number for a method's training.
    """
    whole, rate = train(shots), Recipe.rate
    if isinstance(survived, random.Random):
        steps = len(whole.trained.history)
        survived = survived.randrange(1, steps) if steps > 1 else 0
    unfinished = Unfinished(folder / "training.safetensors", "k")
    shots = replace(shots, unfinished=unfinished)

    def dies(recipe: Recipe, step: int, per_epoch: int, epochs: int) -> float:
        if step == survived:
            raise Killed
        return rate(recipe, step, per_epoch, epochs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rmadapter.training.loop.SAVE_SECONDS", -1.0)
        patch.setattr(Recipe, "rate", dies)
        with pytest.raises(Killed):
            train(shots)
    assert unfinished.path.exists() == (survived > 0)
    torch.manual_seed(survived)  # where the generators of another process stand
    return whole, train(shots)


SMALL = {
    "first_block": 2,
    "rank": 4,
    "batch_size": 4,
    "epochs": 3,
    "learning_rate": 0.01,
    "alpha": 1,
}


def fit_adapters(shots: Shots, **fields: Any) -> Fitted:
    return load_method("rmadapter", {**SMALL, **fields}).fit(shots.cache.backbone, shots)


def losses(fitted: Fitted) -> list[float]:
    return [step["loss"] for step in fitted.trained.history]
