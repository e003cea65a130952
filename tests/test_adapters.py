"""RMAdapter and MMA in the bench are the package's own, and leave the backbone as it was."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rmadapter.backbone import Backbone
from rmadapter.bench.activations import Activations
from rmadapter.bench.methods import load_method
from rmadapter.bench.methods.adapters import COMMON
from rmadapter.bench.methods.base import Training
from rmadapter.config import Config
from rmadapter.data.images import ImageSet, read_images
from rmadapter.errors import UserError
from rmadapter.evaluation import evaluate
from rmadapter.model import AdaptedCLIP
from rmadapter.train import train as train_adapters

QUICK = {"first_block": 3, "rank": 4, "epochs": 2}
ADAPTERS = ("mma", "rmadapter", "rmadapter-paper")


@pytest.fixture
def splits(colors: Path) -> dict[str, ImageSet]:
    return read_images(colors)


def training(backbone: Backbone, images: ImageSet, seed: int = 1, **words: object) -> Training:
    settings = Config.make({"backbone": backbone.name, "device": "cpu", **words})
    return Training(images, None, Activations(backbone, settings), seed, progress=False)


def logits(backbone: Backbone, name: str, train: Training, images: ImageSet) -> torch.Tensor:
    done = load_method(name, QUICK).fit(backbone, train)
    with torch.no_grad():
        score = done.for_classes(images.classes)
        states = train.activations.stream(images, done.first, progress=False)
        return torch.cat([score(part) for part in states])


@pytest.mark.parametrize("words", [{"augmentation": "none"}, {"augmentation": "standard", "views": 2}])
@pytest.mark.parametrize("name", ["mma", "rmadapter"])
def test_as_fit_trains_and_eval_evaluates_it(
    tiny_clip: Backbone, splits: dict[str, ImageSet], name: str, words: dict[str, Any]
) -> None:
    """The same probabilities as by the library's own way, with the views that the bench sets for all methods."""
    shots = splits["train"].subset(range(0, 24, 3))
    found = logits(tiny_clip, name, training(tiny_clip, shots, **words), splits["test"])
    fields = {"backbone": tiny_clip.name, "seed": 1, "device": "cpu", **words, **QUICK}
    model = AdaptedCLIP(tiny_clip, Config.make(fields, name))
    train_adapters(model, shots, progress=False)
    expected = evaluate(model, splits["test"], progress=False)
    np.testing.assert_allclose(found.softmax(-1).numpy(), expected.probabilities, rtol=1e-4, atol=1e-5)
    assert abs(expected.probabilities - expected.zero_shot).max() > 1e-4  # it did learn something


def test_methods_share_a_backbone_that_none_changes(tiny_clip: Backbone, splits: dict[str, ImageSet]) -> None:
    shots, test = splits["train"].subset(range(0, 24, 3)), splits["test"]
    alone = {name: logits(tiny_clip, name, training(tiny_clip, shots), test) for name in ADAPTERS}
    shared = training(tiny_clip, shots)  # the activations of one are those of the next
    for name in (*ADAPTERS, *reversed(ADAPTERS)):
        assert torch.equal(logits(tiny_clip, name, shared, test), alone[name])
    again = dataclasses.replace(tiny_clip)  # a digest is kept once it is known: this one is computed anew
    assert again.digest == tiny_clip.digest
    assert not any(p.requires_grad for p in tiny_clip.model.parameters())


@pytest.mark.parametrize("field", COMMON)
def test_what_is_common_to_all_is_not_a_methods(field: str) -> None:
    with pytest.raises(UserError, match=f"rmadapter.{field}: the bench sets {field} for all methods alike"):
        load_method("rmadapter", {field: 1})


def test_wrong_fields_are_noticed_when_the_method_is_named() -> None:
    with pytest.raises(UserError, match="unknown field 'rnak'; did you mean 'rank'"):
        load_method("mma", {"rnak": 8})


def test_parameters_by_hand(tiny_clip: Backbone) -> None:
    """Two image blocks of width 64 and two text blocks of width 48, with biases; MMA has r x r + r for each level."""
    r = 4
    branch = sum(d * r + r + r * d + d for d in (64, 48, 64, 48))
    rebuilt = sum(r * r + r + r * d + d for d in (64, 48, 64, 48))
    assert load_method("mma", QUICK).parameters(tiny_clip) == branch + 2 * (r * r + r)
    assert load_method("rmadapter", QUICK).parameters(tiny_clip) == branch + rebuilt
