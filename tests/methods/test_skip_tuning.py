"""Skip Tuning against plain fine-tuning by the backbone's own forward pass, and the law that skips
classes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.encoders.blocks import PreNorm
from rmadapter.methods.parts.tuned import TunedCLIP
from rmadapter.methods.skip_tuning import Prompts, SkipTuning, choose_classes
from rmadapter.prompts import tokenize
from tests.helpers.rounding import assert_same_float32, double
from tests.helpers.shots import noise_images, shots_of, untrained
from tests.helpers.slow import ci_except
from tests.helpers.tuned import TEMPLATES, plain_logits, plain_model

NAMES = ("cat", "a small red car. a blue bird", "dog", "house")
KINDS = ("tiny_clip", "tiny_siglip", "tiny_eva", "tiny_hf")


def plain_loss(logits: Tensor, labels: Tensor, keep: Tensor) -> Tensor:
    """Image by image: cross-entropy among the classes that are kept for it."""
    found = [
        F.cross_entropy(row[some][None], some[:label].sum()[None])
        for row, label, some in zip(logits, labels, keep, strict=True)
    ]
    return torch.stack(found).mean()


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [3, 1024])
@pytest.mark.parametrize("skipped", [0.0, 0.5, 0.75])
@pytest.mark.parametrize("name", ci_except(KINDS, "tiny_clip"))
def test_it_is_fine_tuning_of_the_upper_blocks(
    name: str,
    skipped: float,
    chunk: int,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Loss, every gradient and the answers, of all classes and of some."""
    monkeypatch.setattr("rmadapter.prompts.CHUNK_PROMPTS", chunk)  # more prompts than fit at once
    given: Backbone = request.getfixturevalue(name)
    backbone, pixels = double(given), torch.randn(5, 3, 32, 32).double()
    shots = shots_of(given, noise_images(5, NAMES), templates=TEMPLATES)
    for ratio in (1.0, 0.3):
        start = untrained(SkipTuning(skipped=skipped, ratio=ratio), backbone, shots)
        module: TunedCLIP = start.module
        for parameter in module.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        model, states = plain_model(module), backbone.image.frozen(pixels, module.first)
        similar = plain_logits(backbone.model, backbone, pixels, NAMES)
        keep = choose_classes(
            similar, shots.labels, ratio, 0.3, torch.Generator().manual_seed(shots.seed)
        )
        assert keep.all() == (ratio == 1)
        plain = plain_loss(plain_logits(model, backbone, pixels, NAMES), shots.labels, keep)
        terms = start.terms(range(5), images=states)
        assert float(terms["classes"]) == pytest.approx(float(keep.sum(1).float().mean()))
        torch.testing.assert_close(terms["loss"], plain, rtol=1e-9, atol=1e-9)
        theirs = dict(model.named_parameters())
        for value, some in (
            (terms["loss"], list(module.tuned.values())),
            (plain, [theirs[k.replace("/", ".")] for k in module.tuned]),
        ):
            torch.autograd.backward(value, inputs=some)
        scale = max(float(parameter.grad.norm()) for parameter in module.tuned.values())
        for key, parameter in module.tuned.items():
            grad = theirs[key.replace("/", ".")].grad
            assert parameter.grad is not None, key
            torch.testing.assert_close(parameter.grad, grad, rtol=1e-7, atol=1e-9 * scale)
        fitted = SkipTuning(skipped=skipped).restore(backbone, shots.known, module.state_dict())
        others = ("tree", "cat", "red bird")
        with torch.no_grad():
            expected = plain_logits(model, backbone, pixels, others)
        torch.testing.assert_close(fitted.score(others)(states), expected, rtol=1e-9, atol=1e-9)


def test_which_classes_are_kept() -> None:
    """The image's class and the nearest always, the k-th behind them by exp(-decay k), in 4,000
    draws."""
    count, generator = 40, torch.Generator().manual_seed(0)
    similar = torch.rand(1, count, generator=generator).expand(4000, -1)
    order = similar[0].argsort(descending=True).tolist()
    label = order.pop(20)
    share = (
        choose_classes(similar, torch.full((4000,), label), 0.1, 0.3, generator).double().mean(0)
    )
    assert share[[label, *order[:3]]].eq(1).all()  # 4 of 40
    wanted = torch.exp(-0.3 * torch.arange(1, 37, dtype=torch.float64))
    assert (share[order[3:]] - wanted).abs().max() < 4 * math.sqrt(0.25 / 4000)
    assert choose_classes(similar, torch.full((4000,), label), 1.0, 0.3, generator).all()
    # the sum of a geometric series, but for its end: what the page calls about three
    beyond = float(share.sum()) - 4
    assert beyond == pytest.approx(1 / (math.exp(0.3) - 1), rel=0.05)


def test_skipped_blocks_are_not_computed(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No lower block runs in a step, and of the classes those alone that an image needs."""
    names = tuple(f"thing {i}" for i in range(30))
    shots = shots_of(tiny_clip, noise_images(30, names))
    start = untrained(SkipTuning(skipped=0.5), tiny_clip, shots)
    ran, prompts, norm, of = [], [], PreNorm.close, Prompts.of

    def close(view: PreNorm, *words: Any) -> Tensor:
        ran.append(view)
        return norm(view, *words)

    def some(these: Prompts, classes: Tensor) -> Any:
        prompts.append(len(classes))
        return of(these, classes)

    monkeypatch.setattr(PreNorm, "close", close)
    monkeypatch.setattr(Prompts, "of", some)
    start.terms([0])
    assert len(ran) == 4  # two of four blocks, in both encoders
    assert not {*map(id, ran)} & {
        id(view) for encoder in (tiny_clip.image, tiny_clip.text) for view in encoder.views
    }
    assert 2 <= prompts[0] < 15


def test_prompts_are_selected_in_chunks_of_so_many_tokens(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"thing {i}" for i in range(9)]
    read = int(tiny_clip.text.real_tokens(tokenize(tiny_clip, names, TEMPLATES))[0].sum())
    monkeypatch.setattr("rmadapter.prompts.MAX_TOKENS", -(-read * 4 // (9 * len(TEMPLATES))))
    chosen = Prompts(tiny_clip, names, TEMPLATES, 3).of(torch.arange(5))
    count = 5 * len(TEMPLATES)
    assert [layout.grid[0] for _, layout in chosen] == [4] * (count // 4) + [count % 4]


@pytest.mark.ci
def test_a_compiled_step_is_the_same(tiny_clip: Backbone) -> None:
    """Which tokens there are is not known when it is compiled."""
    start = untrained(
        SkipTuning(), tiny_clip, shots_of(tiny_clip, noise_images(4, NAMES), templates=TEMPLATES)
    )
    plain = start.terms(range(4))
    compiled = replace(start, loss=torch.compile(start.loss, backend="eager")).terms(range(4))
    for name, term in plain.items():
        assert_same_float32(compiled[name], term)


def test_only_trained_weights_are_stored(tiny_clip: Backbone) -> None:
    """The top block of either encoder, and what lies behind; all else is the backbone's own, shared
    with it."""
    tensors = SkipTuning().module(tiny_clip).state_dict()
    assert {name.split("/resblocks/")[0] for name in tensors} == {
        "tuned.visual/transformer", "tuned.transformer", "tuned.visual/ln_post/weight",
        "tuned.visual/ln_post/bias", "tuned.visual/proj", "tuned.ln_final/weight",
        "tuned.ln_final/bias", "tuned.text_projection",
    }  # fmt: skip
    assert {
        name.split("/resblocks/")[1].split("/")[0] for name in tensors if "/resblocks/" in name
    } == {"3"}
    module = SkipTuning().module(tiny_clip)
    lower: Any = module.image.blocks[2]
    assert lower.mlp.c_fc.weight is tiny_clip.image.blocks[2].mlp.c_fc.weight  # type: ignore[union-attr]
