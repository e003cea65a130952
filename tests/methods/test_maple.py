"""MaPLe against a plain reimplementation, and what a fit does."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from rmadapter.backbones import Backbone
from rmadapter.methods.maple import MaPLe
from tests.helpers.deep_prompts import LABELS, NAMES, assert_same_terms, pixels, prompts_inserted
from tests.helpers.rounding import double
from tests.helpers.shots import noise_images, shots_of, untrained
from tests.helpers.slow import ci_except


@pytest.mark.parametrize("name", ci_except(["tiny_clip", "tiny_hf"], "tiny_clip"))
@pytest.mark.parametrize("fields", [{"depth": 3}, {"n_ctx": 4}, {"depth": 1}], ids=str)
def test_logits_loss_and_gradients_are_plain_ones(
    name: str, fields: dict[str, int], request: pytest.FixtureRequest
) -> None:
    given = request.getfixturevalue(name)
    backbone, images = double(given), pixels(given)
    start = untrained(MaPLe(**fields), backbone, shots_of(given, noise_images(5, NAMES)))  # type: ignore[arg-type]
    module, states = start.module.double(), backbone.image.frozen(images, 1)
    lean = module.logits(module.image_features(states), module.class_features(module.text(NAMES)))
    mapped = [
        p @ layer.weight.T + layer.bias
        for p, layer in zip(module.prompts, module.maps, strict=True)
    ]
    with prompts_inserted(backbone, list(module.prompts), mapped) as model:
        text = model.encode_text(backbone.tokenizer([f"a photo of a {name}." for name in NAMES]))
        plain = model.logit_scale.exp() * F.cosine_similarity(
            model.encode_image(images)[:, None], text[None], dim=-1
        )
    torch.testing.assert_close(lean, plain, rtol=1e-9, atol=1e-10)
    assert_same_terms(
        module, start.terms(range(5), images=states), {"loss": F.cross_entropy(plain, LABELS)}
    )


def test_the_start_is_clip_with_more_tokens_in_the_image(tiny_clip: Backbone) -> None:
    module = MaPLe(depth=1).module(tiny_clip)
    tokens = tiny_clip.tokenizer([f"a photo of a {name}." for name in NAMES])
    expected = tiny_clip.model.encode_text(tokens)  # type: ignore[operator]
    torch.testing.assert_close(
        module.class_features(module.text(NAMES)), expected, rtol=1e-4, atol=1e-5
    )
