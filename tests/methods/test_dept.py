"""DePT against a plain reimplementation, its two learning rates by torch's own SGD, and who answers
about what."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.methods.dept import DePT
from rmadapter.methods.maple import MaPLe
from rmadapter.settings import configured
from rmadapter.training.contract import Known
from tests.helpers.deep_prompts import (
    LABELS,
    NAMES,
    assert_same_terms,
    eight_images,
    pixels,
    prompts_inserted,
)
from tests.helpers.rounding import assert_same_float32, double
from tests.helpers.shots import logits_of, noise_images, shots_of, untrained
from tests.helpers.slow import ci_except


def shaken(module: Any) -> Any:
    """With a head of which every part counts."""
    noise = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        if not name.startswith("prompts"):
            parameter.data += 0.5 * torch.randn(
                parameter.shape, generator=noise, dtype=parameter.dtype
            )
    return module


def plain_heads(
    module: Any, backbone: Backbone, images: Tensor, names: tuple[str, ...]
) -> tuple[Tensor, ...]:
    """Logits of the prompts, and of the head about images and about class texts."""
    inner = module.prompts
    mapped = [
        p @ layer.weight.T + layer.bias for p, layer in zip(inner.prompts, inner.maps, strict=True)
    ]
    with prompts_inserted(backbone, list(inner.prompts), mapped) as model:
        w = model.encode_text(backbone.tokenizer([f"a photo of a {name}." for name in names]))
        f = model.encode_image(images)
    ours = model.logit_scale.exp() * F.cosine_similarity(f[:, None], w[None], dim=-1)
    parts = ((f, module.image), (w, module.text))
    return ours, *(module.head(side.scale * x + side.shift) for x, side in parts)


@pytest.mark.parametrize("name", ci_except(["tiny_clip", "tiny_hf"], "tiny_clip"))
@pytest.mark.parametrize("share", [0.7, 0.2])
def test_terms_and_gradients_are_plain_ones(
    name: str, share: float, request: pytest.FixtureRequest
) -> None:
    given = request.getfixturevalue(name)
    backbone, images = double(given), pixels(given)
    start = untrained(DePT(depth=2, share=share), backbone, shots_of(given, noise_images(5, NAMES)))
    module: Any = shaken(start.module.double())
    lean = start.terms(range(5), images=backbone.image.frozen(images, 1))
    ours, of_images, of_texts = plain_heads(module, backbone, images, NAMES)
    head = torch.cat([of_images, of_texts[LABELS]]).log_softmax(-1)
    plain = {
        "ce": (1 - share) * F.cross_entropy(ours, LABELS),
        "ce_head": -share * head[torch.arange(10), torch.cat([LABELS, LABELS])].mean(),
    }
    assert_same_terms(module, lean, {"loss": sum(plain.values()), **plain})  # type: ignore[dict-item]


def test_the_head_answers_about_trained_classes_alone(tiny_clip: Backbone) -> None:
    """In any order and number of them, and about none of them where one is new."""
    backbone, images = double(tiny_clip), pixels(tiny_clip)
    module: Any = shaken(DePT(depth=2).module(backbone, classes=4).double())
    some, others, known = ("tree house", "cat"), ("tree house", "cat", "boat"), Known(NAMES)
    states = backbone.image.frozen(images, 1)
    with torch.no_grad():
        ours, head, _ = plain_heads(module, backbone, images, NAMES)
        alone = plain_heads(module, backbone, images, others)[0]
        found, without = (module.for_classes(names, known)(states) for names in (some, others))
    torch.testing.assert_close(found, (0.3 * ours + 0.7 * head)[:, [3, 0]], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(without, alone, rtol=1e-9, atol=1e-9)


def test_the_head_learns_at_a_rate_of_its_own(tiny_clip: Backbone) -> None:
    """Four epochs of one step each by torch's SGD with two groups, as Dassl has them: the warm-up
    is that of both."""
    fields: dict[str, Any] = {
        "depth": 2,
        "epochs": 4,
        "batch_size": 8,
        "learning_rate": 0.01,
        "warmup_rate": 0.005,
    }
    method, shots = configured(DePT(), fields), eight_images(tiny_clip)
    fitted, module = method.fit(tiny_clip, shots), method.module(tiny_clip, classes=4)
    named = dict(module.named_parameters())
    prompts, head = (
        [p for n, p in named.items() if n.startswith("prompts.") == own] for own in (True, False)
    )
    optimizer = torch.optim.SGD(
        [{"params": prompts}, {"params": head}], 1.0, momentum=0.9, weight_decay=5e-4
    )
    text, states = module.prompts.text(shots.classes), shots.source(1).batch(torch.arange(8))
    for epoch in range(4):
        falls = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * (epoch - 1) / 4))).item()
        for group, peak in zip(optimizer.param_groups, (0.01, 0.065), strict=True):
            group["lr"] = peak * falls if epoch else 0.005
        optimizer.zero_grad()
        module.loss(shots.labels, states, text)["loss"].backward()
        optimizer.step()
    for name, parameter in named.items():
        torch.testing.assert_close(fitted.tensors[name], parameter.detach(), rtol=1e-4, atol=1e-5)
    assert [step["lr"] for step in fitted.trained.history][:2] == [0.005, 0.01]
    slow = configured(method, {"head_rate": 1.0}).fit(tiny_clip, shots)
    assert not torch.allclose(slow.tensors["head.weight"], fitted.tensors["head.weight"], atol=1e-3)


def test_without_the_head_it_is_maple(tiny_clip: Backbone) -> None:
    shots = eight_images(tiny_clip)
    fields = {"epochs": 3, "batch_size": 4, "depth": 2, "learning_rate": 0.01}
    alone = configured(DePT(share=0.0), fields).fit(tiny_clip, shots)
    assert_same_float32(
        logits_of(alone, shots), logits_of(configured(MaPLe(), fields).fit(tiny_clip, shots), shots)
    )
