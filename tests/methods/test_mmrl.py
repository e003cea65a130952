"""MMRL against a plain reimplementation on full padded sequences, and what a fit does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.errors import UserError
from rmadapter.methods.mmrl import MMRL, MMRL_PLUS_PLUS, LowRank, Representations
from rmadapter.settings import configured
from tests.helpers.deep_prompts import LABELS, NAMES, assert_same_terms, eight_images, pixels
from tests.helpers.rounding import assert_same_float32, double
from tests.helpers.shots import logits_of, noise_images, shots_of, untrained
from tests.helpers.slow import ci_except

TEMPLATE = "a photo of a {}."


def enter(x: Tensor, tokens: Tensor, again: bool, beta: float) -> Tensor:
    """Tokens behind the first of every sequence, in place of those of the block below, or beside
    them."""
    k = len(tokens)
    new = beta * tokens + (1 - beta) * x[:, 1 : 1 + k] if again else tokens.expand(len(x), -1, -1)
    return torch.cat([x[:, :1], new, x[:, 1 + again * k :]], 1)


def plain_images(
    model: Any, images: Tensor, maps: Mapping[int, Tensor], projection: Tensor, beta: float = 1
) -> tuple[Tensor, Tensor]:
    v, k = model.visual, len(next(iter(maps.values())))
    timm = hasattr(v, "trunk")
    if timm:
        x = v.trunk._pos_embed(v.trunk.patch_embed(images))
    else:
        x = v.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([v.class_embedding.expand(len(x), 1, -1), x], 1) + v.positional_embedding
        x = v.ln_pre(x)
    for i, block in enumerate(v.trunk.blocks if timm else v.transformer.resblocks, 1):
        x = block(enter(x, maps[i], i > min(maps), beta) if i in maps else x)
    x = v.trunk.norm(x) if timm else v.ln_post(x)
    return v.head(x[:, 0]) if timm else x[:, 0] @ v.proj, x[:, 1 : 1 + k].mean(1) @ projection


def plain_text(
    backbone: Backbone, tokens: Tensor, maps: Mapping[int, Tensor], beta: float = 1
) -> Tensor:
    model: Any = backbone.model
    k = len(next(iter(maps.values())))
    if not hasattr(model, "text"):
        x = model.token_embedding(tokens) + model.positional_embedding
        for i, block in enumerate(model.transformer.resblocks, 1):
            x = enter(x, maps[i], i > min(maps), beta) if i in maps else x
            length = x.shape[1]
            x = block(x, attn_mask=torch.full((length, length), -torch.inf, dtype=x.dtype).triu(1))
        return (
            model.ln_final(x)[torch.arange(len(x)), tokens.argmax(-1) + k] @ model.text_projection
        )
    mask = tokens != 0
    x = model.text.transformer.embeddings(input_ids=tokens)
    for i, block in enumerate(model.text.transformer.encoder.layer, 1):
        x = enter(x, maps[i], i > min(maps), beta) if i in maps else x
        real = torch.cat([mask.new_ones(len(x), x.shape[1] - mask.shape[1]), mask], 1)
        x = block(x, real[:, None, None].expand(-1, 1, x.shape[1], -1))
    words = torch.cat([x[:, :1], x[:, 1 + k :]], 1) * mask[..., None]
    return model.text.proj(words.sum(1) / mask.sum(1, keepdim=True))


def plain_maps(module: Representations, side: str) -> dict[int, Tensor]:
    layers: Any = module.maps[side]
    shared: Any = module.shared[side] if len(module.shared) else 0
    return {
        int(i): module.space @ (shared + layer.weight).T + layer.bias for i, layer in layers.items()
    }


PLUS = {"rank": 2, "projection_rank": 3, "beta": 0.7}


@pytest.mark.parametrize("name", ci_except(["tiny_clip", "tiny_hf"], "tiny_clip"))
@pytest.mark.parametrize("first_block", [1, 3, 4])
@pytest.mark.parametrize("plus", [{}, PLUS], ids=["MMRL", "MMRL++"])
def test_terms_and_gradients_are_plain_ones(
    name: str, first_block: int, plus: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    given = request.getfixturevalue(name)
    backbone, images = double(given), pixels(given)
    method = MMRL(tokens=3, width=24, first_block=first_block, regularisation=0.5, **plus)
    start = untrained(method, backbone, shots_of(given, noise_images(5, NAMES)))
    module = start.module.double()
    with torch.no_grad():
        module.space.mul_(20)
        for part in module.modules():
            if isinstance(part, LowRank):
                part.b.normal_()  # else it adds nothing
    assert start.source.first == module.first == first_block
    lean = start.terms(range(5), images=backbone.image.frozen(images, first_block))

    model: Any = backbone.model
    tokens = backbone.tokenizer([TEMPLATE.format(name) for name in NAMES])
    projection, beta = module.projection, method.beta
    if plus:
        head = model.visual.head.proj if name == "tiny_hf" else None
        frozen = model.visual.proj if head is None else head.weight.T
        projection = frozen + projection.a @ projection.b
    f_c, f_r = plain_images(model, images, plain_maps(module, "image"), projection, beta)
    w = plain_text(backbone, tokens, plain_maps(module, "text"), beta)
    w_0 = model.encode_text(tokens)
    f_0 = model.encode_image(images)
    f_c, f_r, w, w_0, f_0 = (x / x.norm(dim=-1, keepdim=True) for x in (f_c, f_r, w, w_0, f_0))
    scale = model.logit_scale.exp()
    plain = {
        "ce": 0.7 * F.cross_entropy(scale * f_c @ w.T, LABELS),
        "ce_representation": 0.3 * F.cross_entropy(scale * f_r @ w.T, LABELS),
        "image": 0.5 * (1 - (f_c * f_0).sum(-1).mean()),
        "text": 0.5 * (1 - (w * w_0).sum(-1).mean()),
    }
    assert_same_terms(module, lean, {"loss": sum(plain.values()), **plain})


def test_templates_are_averaged(tiny_clip: Backbone) -> None:
    backbone = double(tiny_clip)
    module, templates = MMRL(first_block=2).module(backbone).double(), (TEMPLATE, "the {}")
    tokens = [backbone.tokenizer([t.format(n) for n in NAMES]) for t in templates]
    maps = plain_maps(module, "text")
    parts = [F.normalize(plain_text(backbone, each, maps)) for each in tokens]
    found = module.class_features(module.prompts(NAMES, templates), 2)
    torch.testing.assert_close(found, F.normalize(parts[0] + parts[1]), rtol=1e-9, atol=1e-10)


def test_representations_answer_about_trained_classes_alone(tiny_clip: Backbone) -> None:
    """A class's score does not depend on which others are asked for, but on whether all of them are
    known."""
    shots = eight_images(tiny_clip)
    fitted = configured(MMRL(), {"first_block": 3, "epochs": 2}).fit(tiny_clip, shots)
    some = logits_of(fitted, shots, ("cat", "dog"))
    others = logits_of(fitted, shots, ("cat", "dog", "house"))[:, :2]
    everything = logits_of(fitted, shots)
    columns = [shots.classes.index(name) for name in ("cat", "dog")]
    assert_same_float32(some, everything[:, columns])
    assert (some - others).abs().max() > 1e-2
    # the answers are alpha f_c + (1 - alpha) f_r, and f_c alone
    module, clip = MMRL(first_block=3).module(tiny_clip), tiny_clip.model
    module.load_state_dict(dict(fitted.tensors))
    with torch.no_grad():
        f_c, f_r = module.image_features(shots.source(3).batch(torch.arange(8)))
        w = module.class_features(module.prompts(("cat", "dog"), shots.templates), 1)
        by_class, by_representation = (
            clip.logit_scale.exp() * F.normalize(f, dim=-1) @ w.T for f in (f_c, f_r)
        )  # type: ignore[operator]
    torch.testing.assert_close(some, 0.7 * by_class + 0.3 * by_representation, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(others, by_class, rtol=1e-4, atol=1e-4)


def test_it_starts_from_clips_own_projection(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And adds to it; where there is none to add to, a sentence."""
    module = configured(MMRL_PLUS_PLUS, {"first_block": 3}).module(tiny_clip)
    x = torch.randn(2, tiny_clip.image.width)
    assert torch.equal(module.project(x), x @ tiny_clip.model.visual.proj)  # type: ignore[operator, union-attr]
    monkeypatch.setattr(type(tiny_clip.image), "projection", None)
    with pytest.raises(UserError, match="no linear projection"):
        configured(MMRL_PLUS_PLUS, {"first_block": 3}).module(tiny_clip)
