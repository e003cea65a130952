"""HiCroPL against a plain reimplementation, and what a fit does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.errors import UserError
from rmadapter.methods import hicropl
from rmadapter.methods.hicropl import HEADS, HiCroPL
from rmadapter.settings import configured
from tests.helpers.deep_prompts import (
    LABELS,
    NAMES,
    assert_same_terms,
    eight_images,
    pixels,
    prompts_inserted,
)
from tests.helpers.rounding import double
from tests.helpers.shots import logits_of, noise_images, shots_of, untrained
from tests.helpers.slow import ci_except


def attended(own: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of 8 heads, one after the other."""
    maps = zip((q, k, v), own.in_proj_weight.chunk(3), own.in_proj_bias.chunk(3), strict=True)
    heads = zip(*((x @ weight.T + bias).chunk(HEADS, -1) for x, weight, bias in maps), strict=True)
    read = [(a @ b.T / b.shape[1] ** 0.5).softmax(-1) @ c for a, b, c in heads]
    return torch.cat(read, -1) @ own.out_proj.weight.T + own.out_proj.bias


def normed(own: Any, x: Tensor) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * own.weight + own.bias


def mapped(
    module: Any, to: str, prompts: list[Tensor], by: str, guides: list[Tensor]
) -> list[Tensor]:
    proxies = []
    for pool, guide in zip(module.proxies[by], guides, strict=True):
        n = normed(pool.norm, guide)
        read = attended(pool.attention, normed(pool.norm, pool.token), n, n)
        proxies.append(normed(pool.top_norm, pool.token + read))
    own, y = module.mappers[to], torch.cat(proxies)
    q, k, v = (
        x @ m.weight.T + m.bias
        for x, m in ((torch.cat(prompts), own.query), (y, own.key), (y, own.value))
    )
    x = q + attended(own.attention, *(normed(own.norm, part) for part in (q, k, v)))
    wide = normed(own.top_norm, x) @ own.up.weight.T + own.up.bias
    x = x + wide * torch.sigmoid(1.702 * wide) @ own.down.weight.T + own.down.bias
    return [*x.split(len(prompts[0]))]


@pytest.mark.parametrize("name", ci_except(["tiny_clip", "tiny_hf"], "tiny_clip"))
def test_terms_and_gradients_are_plain_ones(name: str, request: pytest.FixtureRequest) -> None:
    """Of 4 blocks each, of which the text's lower two guide the image's, and the image's upper two
    the text's."""
    given = request.getfixturevalue(name)
    backbone, images = double(given), pixels(given)
    shots = shots_of(given, noise_images(5, NAMES), templates=("the small {}",))
    start = untrained(HiCroPL(n_ctx=2), backbone, shots)
    module: Any = start.module
    noise = torch.Generator().manual_seed(0)
    for parameter in module.parameters():  # prompts and proxies that differ, and count
        parameter.data += 0.5 * torch.randn(parameter.shape, generator=noise)
    module.double()
    lean = start.terms(range(5), images=backbone.image.frozen(images, 1))

    (*text, t3, t4), (v1, v2, *image) = module.prompts["text"], module.prompts["image"]
    texts = [*text, *mapped(module, "text", [t3, t4], "image", image)]
    with prompts_inserted(
        backbone, texts, [*mapped(module, "image", [v1, v2], "text", text), *image]
    ) as model:
        w = model.encode_text(backbone.tokenizer([f"a photo of a {name}." for name in NAMES]))
        f = model.encode_image(images)
    w_0 = model.encode_text(backbone.tokenizer([f"the small {name}" for name in NAMES]))
    f, f_0, w, w_0 = (
        x / x.norm(dim=-1, keepdim=True) for x in (f, model.encode_image(images), w, w_0)
    )
    f, w = ((x + y) / (x + y).norm(dim=-1, keepdim=True) for x, y in ((f, f_0), (w, w_0)))
    plain = {
        "ce": F.cross_entropy(model.logit_scale.exp() * f @ w.T, LABELS),
        "image": 12 * (1 - (f * f_0).sum(-1).mean()),
        "text": 12 * (1 - (w * w_0).sum(-1).mean()),
    }
    assert_same_terms(module, lean, {"loss": sum(plain.values()), **plain})  # type: ignore[dict-item]


def test_answers_need_no_untouched_features_given(tiny_clip: Backbone) -> None:
    """Of images by themselves, and of those whose features are at hand."""
    shots = eight_images(tiny_clip)
    fitted = configured(HiCroPL(), {"n_ctx": 2, "epochs": 1}).fit(tiny_clip, shots)
    alone = torch.cat(list(fitted.probabilities(shots.images.images)))
    torch.testing.assert_close(alone, logits_of(fitted, shots).div(fitted.temperature).softmax(-1))


def test_lambda_holds_features_near_the_untouched(tiny_clip: Backbone) -> None:
    fields = {"n_ctx": 2, "epochs": 10, "learning_rate": 0.01, "batch_size": 8}
    fits = {w: configured(HiCroPL(), {**fields, "consistency": w}) for w in (0.1, 12.0)}
    last = {
        w: method.fit(tiny_clip, eight_images(tiny_clip)).trained.history[-1]
        for w, method in fits.items()
    }
    for side in ("image", "text"):
        assert last[12.0][side] / 12.0 < 0.8 * last[0.1][side] / 0.1


def test_encoders_of_unequal_height_turn_at_the_same_one(tiny_clip: Backbone) -> None:
    low = HiCroPL(n_ctx=2, depth=3, turn=1).module(tiny_clip)
    assert [len(low.prompts[side]) for side in ("text", "image")] == [3, 3]  # type: ignore[arg-type]
    all_blocks = HiCroPL(n_ctx=2).module(tiny_clip)
    assert all_blocks.turn == {"text": 2, "image": 2}
    assert [len(all_blocks.proxies[side]) for side in ("text", "image")] == [2, 2]  # type: ignore[arg-type]


def test_a_width_that_its_heads_do_not_divide(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hicropl, "HEADS", 7)
    with pytest.raises(UserError, match=r"7 heads of attention do not divide .* width, 48"):
        HiCroPL().module(tiny_clip)
