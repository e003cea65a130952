"""HeBA against the backbones' own forward passes with hooks, and its loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rmadapter.methods.heba import HeBA
from tests.helpers.deep_prompts import NAMES, pixels
from tests.helpers.inside_blocks import SCALES, front_of, hooked, scale_of, sum_of_patches
from tests.helpers.rounding import double
from tests.helpers.shots import gradients
from tests.helpers.slow import ci_except


def normed(x: Tensor, layer: Any) -> Tensor:
    """LayerNorm, number by number."""
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred**2).mean(-1, keepdim=True)
    return centred / (variance + 1e-5).sqrt() * layer.weight + layer.bias


def added(x: Tensor, layer: Any, front: int | None) -> Tensor:
    """What a layer adds to tokens. front: tokens before the patches of images; None for texts."""
    tokens = x if front is None else x[:, front:]
    inner = tokens @ layer.down.weight.T
    if front is not None:
        inner = sum_of_patches(inner, layer.conv.weight)
    inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))  # GELU
    found = normed(tokens + inner @ layer.up.weight.T, layer.norm)
    return found if front is None else torch.cat([torch.zeros_like(x[:, :front]), found], 1)


@pytest.mark.parametrize("name", ci_except(["tiny_clip", "tiny_hf", "tiny_siglip"], "tiny_clip"))
def test_features_and_gradients_are_plain_ones(name: str, request: pytest.FixtureRequest) -> None:
    """Gradients of weights are as if s were 1, while in everything below it counts."""
    backbone = double(request.getfixturevalue(name))
    module, images = HeBA().module(backbone).double(), pixels(backbone)
    front, tokens = front_of(backbone), backbone.tokenizer(["", *NAMES])
    goal = torch.randn(5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    f = module.image_features(backbone.image.frozen(images, 1), SCALES)
    w = module.text_features(tokens, SCALES)
    near = {
        "image": lambda x, layer: added(x, layer, front),
        "text": lambda x, layer: added(x, layer, None),
    }
    with hooked(backbone, module, near) as model:
        f_plain = model.encode_image(images)
        w_plain = F.normalize(model.encode_text(tokens), dim=-1)
    torch.testing.assert_close(f, f_plain, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(w, w_plain, rtol=1e-9, atol=1e-10)
    assert (f - model.encode_image(images)).abs().max() > 1e-3
    found, plain = (
        gradients(module, (x @ y.T * goal).sum()) for x, y in ((f, w), (f_plain, w_plain))
    )
    # which pools over all patches
    assert ("layers.image.3.mlp.up.weight" in found) == (name == "tiny_siglip")
    for own, expected in plain.items():
        assert expected.norm() > 0, own
        torch.testing.assert_close(found[own], expected / scale_of(own), rtol=1e-7, atol=1e-9)


def test_labels_are_smoothed() -> None:
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 2, 2, 4])
    wanted = torch.full((4, 5), 0.1 / 5)
    wanted[range(4), labels] += 0.9
    expected = -(wanted * logits.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(HeBA().loss(logits, labels), expected)
    torch.testing.assert_close(
        HeBA(smoothing=0.0).loss(logits, labels), F.cross_entropy(logits, labels)
    )
