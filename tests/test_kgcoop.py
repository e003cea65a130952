"""KgCoOp against a plain forward pass of open_clip's modules, and as a whole on eight images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rmadapter.backbone import Backbone, load_backbone
from rmadapter.bench.methods.base import Training
from rmadapter.bench.methods.coop import CoOp
from rmadapter.bench.methods.kgcoop import KgCoOp
from test_coop import CLASSES, LABELS, eight, leaves_no_trace, logits_of, overfits, plain_logits, same_as_plain
from test_prompts import plain_text


def knowledge(backbone: Backbone, classes: Tensor) -> Tensor:
    """One minus the mean cosine to the features of "a photo of a NAME."."""
    model: Any = backbone.model
    known = F.normalize(model.encode_text(backbone.tokenizer([f"a photo of a {name}." for name in CLASSES])), dim=-1)
    return 1 - (F.normalize(classes, dim=-1) * known).sum(-1).mean()


@pytest.mark.parametrize("name", ["tiny_clip", "tiny_hf"])
def test_loss_and_gradient_are_the_plain_ones(name: str, request: pytest.FixtureRequest) -> None:
    backbone = request.getfixturevalue(name)

    def plain(learner: Any, train: Training) -> Tensor:
        classes = plain_text(backbone, CLASSES, learner.ctx)
        ce = F.cross_entropy(plain_logits(backbone, train, classes), LABELS)
        return ce + 8 * knowledge(backbone, classes)

    assert same_as_plain(KgCoOp(context=""), backbone, plain)  # from noise: "a photo of a" is at a distance of 0


def test_weight_zero_is_coop_and_a_large_one_stays_near_the_written_prompts(tiny_clip: Backbone) -> None:
    fields: dict[str, Any] = {"context": "", "epochs": 60, "batch_size": 8, "learning_rate": 0.02}
    train = eight(tiny_clip)
    coop = logits_of(CoOp(**fields), tiny_clip, train)
    assert torch.equal(logits_of(KgCoOp(**fields, distance_weight=0), tiny_clip, train), coop)
    last = [KgCoOp(**fields, distance_weight=w).fit(tiny_clip, train).history[-1]["distance"] / w for w in (0.01, 8.0)]
    assert last[1] < 0.5 * last[0]


def test_parameters_are_those_of_the_code() -> None:
    # The released trainer gives the optimiser "ctx" alone, 4 tokens of width 512.
    assert KgCoOp().parameters(load_backbone("ViT-B-16/none")) == 2048


def test_eight_images_are_learned_by_heart(tiny_clip: Backbone) -> None:
    assert overfits(KgCoOp(epochs=120, learning_rate=0.02, distance_weight=0.1), tiny_clip)


@pytest.mark.parametrize("name", ["tiny_clip", "tiny_hf"])
def test_a_fit_leaves_no_trace(name: str, request: pytest.FixtureRequest) -> None:
    assert leaves_no_trace(KgCoOp(context="", epochs=3), request.getfixturevalue(name))
