"""A custom training loop takes the same steps as `fit`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rmadapter import AdaptedCLIP, FewShotClassifier, load_method
from rmadapter.backbones import Backbone
from rmadapter.prompts import tokenize
from rmadapter.task import TEMPLATES
from rmadapter.training.loop import order
from tests.helpers.shots import noisy_colors, pixels_of

SETTINGS: dict[str, Any] = {"first_block": 3, "rank": 4, "epochs": 2, "batch_size": 6, "alpha": 1.0}


def test_the_loop_of_the_usage_page_gives_the_losses_of_fit(tiny_clip: Backbone) -> None:
    """As docs/reference/python.md has it: two steps with the method's own optimiser and rates."""
    images = noisy_colors()
    ours = (
        FewShotClassifier(tiny_clip.name, method="rmadapter", shots=0, device="cpu", **SETTINGS)
        .fit(images)
        .history_
    )

    method: Any = load_method("rmadapter", SETTINGS)
    model = AdaptedCLIP(tiny_clip, method.adapter, method.loss, seed=1).train()
    text = model.frozen_text(tokenize(tiny_clip, images.classes, TEMPLATES))
    optimizer = method.recipe.make(model.adapters.parameters())
    for step, rows in enumerate(order(len(images), 6, seed=1, epoch=0)[:2]):
        optimizer.param_groups[0]["lr"] = method.recipe.rate(step, 3, 2)
        labels = torch.tensor(images.labels)[rows]
        terms = model(labels, model.frozen(pixels_of(tiny_clip, images, rows.tolist())), text)
        for name, term in terms.items():
            assert term.item() == pytest.approx(ours[step][name], rel=1e-4, abs=1e-6), (step, name)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
    # a step that changes something
    assert ours[1]["loss"] != pytest.approx(ours[0]["loss"], rel=1e-3)
