"""What every registered method has in common: one backbone, any number format, no trace left, no answer made up."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from rmadapter.backbone import Backbone
from rmadapter.bench.activations import Activations
from rmadapter.bench.methods import METHODS, load_method
from rmadapter.bench.methods.base import Method, NotApplicable, Training
from rmadapter.config import Config
from rmadapter.data.fewshot import few_shot
from rmadapter.data.images import ImageSet, read_images
from rmadapter.errors import UserError

QUICK = {"epochs": 1, "iterations": 2, "first_block": 3, "rank": 4, "layer": 3}
UNTRAINED = ("zero-shot", "zero-shot-ensemble", "tip-adapter")
CLOSED = ("linear-probe", "linear-probe-zero-shot", "tip-adapter", "tip-adapter-f")  # cannot name new classes


@pytest.fixture
def shots(colors: Path) -> ImageSet:
    return few_shot(read_images(colors), 2, 1).train


def quick(name: str) -> Any:
    """The method with little to do on four blocks."""
    method = load_method(name)
    names = Config.model_fields if hasattr(method, "preset") else [f.name for f in fields(method)]
    known = {key: value for key, value in QUICK.items() if key in names}
    if name in ("clip-lora", "mmrl"):
        known.pop("rank", None)
    return load_method(name, known)


def weights(backbone: Backbone) -> str:
    flat = hashlib.sha256()
    for tensor in backbone.model.state_dict().values():
        flat.update(tensor.numpy().tobytes())
    return flat.hexdigest()


def test_there_is_every_method_of_the_papers_tables() -> None:
    named = {load_method(name).title for name in METHODS}
    assert {"CoOp", "CoCoOp", "KgCoOp", "MaPLe", "TCP", "PromptSRC", "MMA", "CoPrompt", "RMAdapter"} <= named
    for name in METHODS:
        method = load_method(name)
        assert isinstance(method, Method)
        assert method.source


def test_unknown_methods_and_fields_are_named() -> None:
    with pytest.raises(UserError, match="did you mean 'coop'"):
        load_method("coopp")
    with pytest.raises(UserError, match="epochs"):
        load_method("coop", {"epoch": 3})


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", METHODS)
def test_a_method_answers_and_leaves_the_backbone_as_it_was(
    name: str, precision: str, tiny_clip: Backbone, shots: ImageSet
) -> None:
    before = weights(tiny_clip)
    activations = Activations(tiny_clip, Config.make({"precision": precision, "device": "cpu"}))
    classifier = quick(name).fit(tiny_clip, Training(shots, None, activations, progress=False))
    states = activations.states(shots, classifier.first).batch(torch.arange(len(shots)), torch.device("cpu"))
    with torch.no_grad():
        logits = classifier.for_classes(shots.classes)(states)
    assert logits.shape == (len(shots), len(shots.classes))
    assert torch.isfinite(logits).all()
    assert (classifier.parameters > 0) == (name not in UNTRAINED)
    names = ["house", "tree", "car", "bird"]
    if name in CLOSED:
        with pytest.raises(NotApplicable):
            classifier.for_classes(names)
    else:
        with torch.no_grad():
            assert classifier.for_classes(names)(states).shape == (len(shots), 4)
    assert weights(tiny_clip) == before
    assert not any(module._forward_hooks for module in tiny_clip.model.modules())


@pytest.mark.parametrize("name", ["coop", "maple"])
def test_half_precision_that_needs_loss_scaling_is_refused(name: str, tiny_clip: Backbone, shots: ImageSet) -> None:
    activations = Activations(tiny_clip, Config.make({"precision": "fp16", "device": "cpu"}))
    with pytest.raises(UserError, match="bf16"):
        quick(name).fit(tiny_clip, Training(shots, None, activations, progress=False))
