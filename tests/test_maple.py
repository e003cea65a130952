"""MaPLe against a plain reimplementation, and what a fit does."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from rmadapter.backbone import Backbone, load_backbone
from rmadapter.bench.methods.deep import cosine
from rmadapter.bench.methods.maple import MaPLe
from test_deep import LABELS, NAMES, double, hooked, learns, pictures, same


@pytest.mark.parametrize("name", ["tiny_clip", "tiny_hf"])
@pytest.mark.parametrize("fields", [{"depth": 3}, {"n_ctx": 4}, {"depth": 1}], ids=str)
def test_logits_loss_and_gradients_are_plain_ones(
    name: str, fields: dict[str, int], request: pytest.FixtureRequest
) -> None:
    backbone = double(request.getfixturevalue(name))
    module = MaPLe(**fields).module(backbone).double()  # type: ignore[arg-type]
    pixels = pictures(backbone)
    image, classes = module(module.text(NAMES), module.image.frozen(pixels))
    lean = cosine(backbone, image, classes)
    mapped = [p @ layer.weight.T + layer.bias for p, layer in zip(module.prompts, module.maps, strict=True)]
    with hooked(backbone, list(module.prompts), mapped) as model:
        text = model.encode_text(backbone.tokenizer([f"a photo of a {name}." for name in NAMES]))
        plain = model.logit_scale.exp() * F.cosine_similarity(model.encode_image(pixels)[:, None], text[None], dim=-1)
    torch.testing.assert_close(lean, plain, rtol=1e-9, atol=1e-10)
    same_loss = [{"loss": F.cross_entropy(logits, LABELS)} for logits in (lean, plain)]
    same(module, *same_loss)


def test_the_start_is_clip_with_more_tokens_in_the_image(tiny_clip: Backbone) -> None:
    module = MaPLe(depth=1).module(tiny_clip)
    tokens = tiny_clip.tokenizer([f"a photo of a {name}." for name in NAMES])
    expected = tiny_clip.model.encode_text(tokens)  # type: ignore[operator]
    torch.testing.assert_close(module.class_features(module.text(NAMES)), expected, rtol=1e-4, atol=1e-5)


def test_it_learns_eight_images(tiny_clip: Backbone) -> None:
    learns(MaPLe(epochs=80, learning_rate=0.05, batch_size=8), tiny_clip)


@pytest.fixture(scope="module")
def vit_b16() -> Backbone:
    return load_backbone("ViT-B-16/none")


def test_parameters_are_the_codes(vit_b16: Backbone) -> None:
    # Counted in the released code: 9 prompts of 2 x 512, and 9 linear maps from 512 to 768.
    assert MaPLe().parameters(vit_b16) == 9 * 2 * 512 + 9 * (512 * 768 + 768) == 3_555_072
