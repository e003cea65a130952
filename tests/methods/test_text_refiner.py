"""TextRefiner against its equations written out on the encoders' own modules, and as a whole on
eight images."""

from __future__ import annotations

import math
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmadapter.backbones import Backbone
from rmadapter.methods import text_refiner
from rmadapter.methods.coop import CoOp
from rmadapter.methods.text_refiner import Refiner, TextRefiner, Training, local_features
from rmadapter.settings import configured
from tests.helpers.context_prompts import eight_shots, plain_text
from tests.helpers.rounding import double
from tests.helpers.shots import logits_of, noise_images, shots_of, untrained
from tests.helpers.slow import ci_except

NAMES = ("cat", "a small red car", "dog", "tree house")
KINDS = ("tiny_clip", "tiny_hf")


def plain_tokens(backbone: Backbone, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Features of all tokens [B, L, e], and how much the class token looks at each, by a hook on
    the top block."""
    model: Any = backbone.model
    trunk = getattr(model.visual, "trunk", None)
    block, seen = backbone.image.blocks[-1], {}

    def hook(_: nn.Module, args: Any, output: Tensor) -> None:
        seen.update(x=args[0], y=output)

    handle = block.register_forward_hook(hook)
    model.encode_image(pixels)
    handle.remove()
    if trunk is None:
        n = block.ln_1(seen["x"])
        looks = block.attn(n, n, n, need_weights=True)[1]
        return model.visual.ln_post(seen["y"]) @ model.visual.proj, looks[:, 0]
    n, heads = block.norm1(seen["x"]), block.attn.num_heads
    q, k, _ = block.attn.qkv(n).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    looks = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1).mean(1)
    return model.visual.head(trunk.norm(seen["y"])), looks[:, 0]


def plain_write(cache: Tensor, tokens: Tensor, keep: float) -> Tensor:
    """Row by row, with the softmax over tokens that the paper has."""
    tokens = F.normalize(tokens, dim=-1)
    like, found = tokens @ cache.T, cache.clone()
    for row in range(len(cache)):
        share = like[:, row].softmax(0)
        mine = like.argmax(1) == row
        if mine.any():
            told = (share[mine, None] / share.max() * tokens[mine]).sum(0)
            found[row] = keep * cache[row] + (1 - keep) * told
    return F.normalize(found, dim=-1)


def plain_terms(
    module: Training, backbone: Backbone, pixels: Tensor, labels: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """Terms of the loss without their weights, and the aligned tokens."""
    refiner, scale = module.refiner, backbone.logit_scale
    model: Any = backbone.model
    t = F.normalize(plain_text(backbone, NAMES, refiner.ctx), dim=-1)
    read = F.softmax(t @ refiner.cache.T, dim=1) @ refiner.cache
    w = t + 0.2 * torch.cat([t, read], 1) @ refiner.map.weight.T
    tokens, looks = plain_tokens(backbone, pixels)
    first, norm, _, last = module.align
    hidden = tokens.flatten(0, 1) @ first.weight.T  # type: ignore[operator]
    hidden = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + 1e-5).sqrt()
    hidden = (hidden * norm.weight + norm.bias).clamp(min=0)  # type: ignore[operator]
    aligned = (hidden @ last.weight.T + last.bias).view_as(tokens)  # type: ignore[operator, union-attr]
    local = []
    for image, look, label in zip(aligned, looks, labels, strict=True):
        most = look[1:].argsort(descending=True)[:5] + 1
        rows = torch.stack([image[0], *image[most], image.mean(0)])
        local.append(F.cross_entropy(scale * rows @ t.T, label.expand(7)))
    f = F.normalize(model.encode_image(pixels), dim=-1)
    terms = {
        "ce": F.cross_entropy(scale * f @ w.T, labels),
        "local": torch.stack(local).mean(),
        "likeness": (F.normalize(w, dim=-1) - t).abs().mean(),
    }
    return terms, aligned.flatten(0, 1)


@pytest.mark.parametrize("name", ci_except(KINDS, "tiny_clip"))
def test_loss_gradients_cache_and_answers_are_the_plain_ones(
    name: str, request: pytest.FixtureRequest
) -> None:
    given: Backbone = request.getfixturevalue(name)
    backbone, pixels = double(given), torch.randn(4, 3, 32, 32).double()
    shots = shots_of(given, noise_images(4, NAMES))
    start = untrained(TextRefiner(slots=6), backbone, shots)
    module: Training = start.module.double().train()
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    states = backbone.image.frozen(pixels, module.refiner.first)
    plain, aligned = plain_terms(module, backbone, pixels, shots.labels)
    loss = plain["ce"] + plain["local"] / 50 + 20 * plain["likeness"]
    cache = plain_write(module.refiner.cache, aligned.detach(), 0.8)
    assert not torch.allclose(cache, module.refiner.cache)
    terms = start.terms(range(4), images=states)
    torch.testing.assert_close(terms["loss"], loss, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(module.refiner.cache, cache, rtol=1e-9, atol=1e-9)
    own = list(module.parameters())
    found, expected = (torch.autograd.grad(value, own) for value in (terms["loss"], loss))
    scale = max(float(gradient.norm()) for gradient in expected)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-9 * scale)
    refiner, others = module.refiner.eval(), ("house", "dog")
    answer = refiner.for_classes(others, shots.known)(states)
    t = F.normalize(plain_text(backbone, others, refiner.ctx), dim=-1)
    w = (
        t
        + 0.2
        * torch.cat([t, F.softmax(t @ refiner.cache.T, 1) @ refiner.cache], 1)
        @ refiner.map.weight.T
    )
    f = F.normalize(backbone.model.encode_image(pixels), dim=-1)  # type: ignore[operator]
    torch.testing.assert_close(answer, backbone.logit_scale * f @ w.T, rtol=1e-9, atol=1e-9)


def test_few_tokens_are_all_read(tiny_clip: Backbone) -> None:
    tokens, places = local_features(
        tiny_clip, tiny_clip.image.frozen(torch.randn(2, 3, 32, 32), 4), 100
    )
    assert tokens.shape == (2, 17, 40)
    assert places.sort().values.tolist() == [[*range(1, 17)]] * 2


def test_several_processes_go_on_with_the_mean_of_their_caches(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def written(tokens: Tensor) -> Tensor:
        module = Training(Refiner(TextRefiner(slots=3), tiny_clip, 1), 0.8, 1)
        module.write(tokens)
        return module.refiner.cache

    parts = torch.randn(2, 5, 40, generator=torch.Generator().manual_seed(0))
    alone = [written(part) for part in parts]
    monkeypatch.setattr(text_refiner, "several", lambda: True)
    for one, other in ((0, 1), (1, 0)):
        monkeypatch.setattr(
            text_refiner, "add_up", Mock(side_effect=lambda found, at=other: found.add_(alone[at]))
        )
        torch.testing.assert_close(written(parts[one]), F.normalize(alone[0] + alone[1], dim=-1))


def test_without_what_is_added_it_is_coop(tiny_clip: Backbone) -> None:
    shots, fields = eight_shots(tiny_clip), {"epochs": 5, "batch_size": 8, "learning_rate": 0.02}
    refined = configured(TextRefiner(), {**fields, "alpha": 0.0, "local_weight": 0.0}).fit(
        tiny_clip, shots
    )
    torch.testing.assert_close(
        logits_of(refined, shots),
        logits_of(configured(CoOp(), fields).fit(tiny_clip, shots), shots),
    )
