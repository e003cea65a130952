"""MMRL against a plain reimplementation on full padded sequences, and what a fit does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rmadapter.backbone import Backbone, load_backbone
from rmadapter.bench.methods.mmrl import MMRL, Representations
from rmadapter.errors import UserError
from test_deep import LABELS, NAMES, double, eight_images, learns, pictures, same

TEMPLATE = "a photo of a {}."


def enter(x: Tensor, tokens: Tensor, again: bool) -> Tensor:
    """Tokens behind the first of every sequence, in place of those of the block below."""
    return torch.cat([x[:, :1], tokens.expand(len(x), -1, -1), x[:, 1 + again * len(tokens) :]], 1)


def plain_images(model: Any, pixels: Tensor, maps: Mapping[int, Tensor], projection: Tensor) -> tuple[Tensor, Tensor]:
    v, k = model.visual, len(next(iter(maps.values())))
    timm = hasattr(v, "trunk")
    if timm:
        x = v.trunk._pos_embed(v.trunk.patch_embed(pixels))
    else:
        x = v.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([v.class_embedding.expand(len(x), 1, -1), x], 1) + v.positional_embedding
        x = v.ln_pre(x)
    for i, block in enumerate(v.trunk.blocks if timm else v.transformer.resblocks, 1):
        x = block(enter(x, maps[i], i > min(maps)) if i in maps else x)
    x = v.trunk.norm(x) if timm else v.ln_post(x)
    return v.head(x[:, 0]) if timm else x[:, 0] @ v.proj, x[:, 1 : 1 + k].mean(1) @ projection


def plain_text(backbone: Backbone, tokens: Tensor, maps: Mapping[int, Tensor]) -> Tensor:
    model: Any = backbone.model
    k = len(next(iter(maps.values())))
    if not hasattr(model, "text"):
        x = model.token_embedding(tokens) + model.positional_embedding
        for i, block in enumerate(model.transformer.resblocks, 1):
            x = enter(x, maps[i], i > min(maps)) if i in maps else x
            length = x.shape[1]
            x = block(x, attn_mask=torch.full((length, length), -torch.inf, dtype=x.dtype).triu(1))
        return model.ln_final(x)[torch.arange(len(x)), tokens.argmax(-1) + k] @ model.text_projection
    mask = tokens != 0
    x = model.text.transformer.embeddings(input_ids=tokens)
    for i, block in enumerate(model.text.transformer.encoder.layer, 1):
        x = enter(x, maps[i], i > min(maps)) if i in maps else x
        real = torch.cat([mask.new_ones(len(x), x.shape[1] - mask.shape[1]), mask], 1)
        x = block(x, real[:, None, None].expand(-1, 1, x.shape[1], -1))
    words = torch.cat([x[:, :1], x[:, 1 + k :]], 1) * mask[..., None]
    return model.text.proj(words.sum(1) / mask.sum(1, keepdim=True))


def plain_maps(module: Representations, side: str) -> dict[int, Tensor]:
    layers: Any = module.maps[side]
    return {int(i): module.space @ layer.weight.T + layer.bias for i, layer in layers.items()}


@pytest.mark.parametrize("name", ["tiny_clip", "tiny_hf"])
@pytest.mark.parametrize("first_block", [1, 3, 4])
def test_terms_and_gradients_are_plain_ones(name: str, first_block: int, request: pytest.FixtureRequest) -> None:
    backbone = double(request.getfixturevalue(name))
    method = MMRL(tokens=3, width=24, first_block=first_block, regularisation=0.5)
    module = method.module(backbone).double()
    with torch.no_grad():
        module.space.mul_(20)
    pixels = pictures(backbone)
    lean = method.loss(module, LABELS, module.towers[0].frozen(pixels), module.prompts(NAMES, (TEMPLATE,)))

    model: Any = backbone.model
    tokens = backbone.tokenizer([TEMPLATE.format(name) for name in NAMES])
    f_c, f_r = plain_images(model, pixels, plain_maps(module, "image"), module.projection)
    w, w_0 = plain_text(backbone, tokens, plain_maps(module, "text")), model.encode_text(tokens)
    f_0 = model.encode_image(pixels)
    f_c, f_r, w, w_0, f_0 = (x / x.norm(dim=-1, keepdim=True) for x in (f_c, f_r, w, w_0, f_0))
    scale = model.logit_scale.exp()
    plain = {
        "ce": 0.7 * F.cross_entropy(scale * f_c @ w.T, LABELS),
        "ce_representation": 0.3 * F.cross_entropy(scale * f_r @ w.T, LABELS),
        "image": 0.5 * (1 - (f_c * f_0).sum(-1).mean()),
        "text": 0.5 * (1 - (w * w_0).sum(-1).mean()),
    }
    same(module, lean, {"loss": sum(plain.values()), **plain})


def test_templates_are_averaged(tiny_clip: Backbone) -> None:
    backbone = double(tiny_clip)
    module, templates = MMRL(first_block=2).module(backbone).double(), (TEMPLATE, "the {}")
    parts = [
        F.normalize(plain_text(backbone, backbone.tokenizer([t.format(n) for n in NAMES]), plain_maps(module, "text")))
        for t in templates
    ]
    found = module.class_features(module.prompts(NAMES, templates), 2)
    torch.testing.assert_close(found, F.normalize(parts[0] + parts[1]), rtol=1e-9, atol=1e-10)


def test_representations_answer_about_trained_classes_alone(tiny_clip: Backbone) -> None:
    """A class's score does not depend on which others are asked for, but on whether all of them are known."""
    train = eight_images(tiny_clip)
    fitted = MMRL(first_block=3, epochs=2).fit(tiny_clip, train)
    states = train.frozen(fitted.first).batch(torch.arange(8), train.device)
    some = fitted.for_classes(["cat", "dog"])(states)
    others = fitted.for_classes(["cat", "dog", "house"])(states)[:, :2]
    everything = fitted.for_classes(train.images.classes)(states)
    columns = [train.images.classes.index(name) for name in ("cat", "dog")]
    torch.testing.assert_close(some, everything[:, columns])
    assert (some - others).abs().max() > 1e-2
    module = MMRL(first_block=3, epochs=2, alpha=1.0)
    assert module.parameters(tiny_clip) == fitted.parameters


def test_it_learns_eight_images(tiny_clip: Backbone) -> None:
    learns(MMRL(first_block=2, epochs=20, learning_rate=0.005), tiny_clip)


def test_the_first_block_must_exist(tiny_clip: Backbone) -> None:
    with pytest.raises(UserError, match="first_block=6"):
        MMRL().module(tiny_clip)


@pytest.fixture(scope="module")
def vit_b16() -> Backbone:
    return load_backbone("ViT-B-16/none")


def test_parameters_are_the_codes(vit_b16: Backbone) -> None:
    # Counted in the released code: R, 7 maps into either encoder, and the projection of representation features.
    maps = 7 * (512 * 768 + 768) + 7 * (512 * 512 + 512)
    assert MMRL().parameters(vit_b16) == 5 * 512 + maps + 768 * 512 == 4_992_256
