"""A custom training loop takes the same steps as `fit`; trackers get its figures."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from rmadapter import AdaptedCLIP, FewShotClassifier, load_method
from rmadapter.backbones import Backbone
from rmadapter.prompts import tokenize
from rmadapter.task import TEMPLATES
from rmadapter.training.loop import order
from tests.helpers.shots import COLORS, noisy_colors, pixels_of

EXAMPLE = Path(__file__).parents[2] / "examples/watch.py"
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


class FakeWriter:
    """With the signature of torch.utils.tensorboard's SummaryWriter."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, float, int]] = []

    def add_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        self.seen.append((tag, scalar_value, global_step or 0))


class FakeRun:
    """With the signature of wandb's Run."""

    def __init__(self) -> None:
        self.seen: list[tuple[dict[str, float], int]] = []

    def log(self, data: dict[str, float], step: int | None = None) -> None:
        self.seen.append((data, step or 0))


def test_trackers_see_every_step(tiny_clip: Backbone) -> None:
    spec = importlib.util.spec_from_file_location("watch", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    watch = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(watch)
    writer, run = FakeWriter(), FakeRun()
    classifier = FewShotClassifier(
        tiny_clip.name, method="rmadapter", shots=0, device="cpu", **SETTINGS
    )
    classifier.fit(noisy_colors(), callbacks=[watch.tensorboard(writer), watch.wandb(run)])
    losses = [step["loss"] for step in classifier.history_]
    assert [value for tag, value, _ in writer.seen if tag == "loss"] == losses
    assert [place for tag, _, place in writer.seen if tag == "loss"] == list(range(1, 7))
    assert {tag for tag, _, _ in writer.seen} == {*classifier.history_[0]}
    assert run.seen == [(dict(step), int(step["step"])) for step in classifier.history_]
    assert [*COLORS] == list(classifier.classes_)


@pytest.mark.parametrize("module", ["torch.utils.tensorboard", "wandb"])
def test_real_trackers_have_these_parameters(module: str) -> None:
    import inspect

    try:
        found = importlib.import_module(module)
    except ImportError:
        pytest.skip(f"{module} is not installed")
    if module == "wandb":
        assert {"data", "step"} <= {*inspect.signature(found.Run.log).parameters}
    else:
        assert [*inspect.signature(found.SummaryWriter.add_scalar).parameters][1:4] == [
            "tag", "scalar_value", "global_step",
        ]  # fmt: skip
