"""Deep prompts in both encoders against the backbones' own forward passes, with hooks that put the
prompts in place."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.errors import UserError
from rmadapter.methods.parts import deep
from rmadapter.methods.parts.context import PromptedText, draw, init_words
from tests.helpers.deep_prompts import NAMES, pixels, prompts_inserted
from tests.helpers.rounding import double


def prompts(count: int, tokens: int, width: int) -> list[Tensor]:
    """Far larger than a method draws them."""
    return list((20 * draw(count * tokens, width, 3).double()).split(tokens))


@pytest.mark.parametrize("name", ["tiny_clip", "tiny_hf", "tiny_siglip"])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_features_are_those_of_the_backbones_own_forward(
    name: str, depth: int, request: pytest.FixtureRequest
) -> None:
    backbone = double(request.getfixturevalue(name))
    deep.check_room(backbone, "this")
    text, image = prompts(depth, 3, backbone.text.width), prompts(depth, 2, backbone.image.width)
    assert len(text) == len(image) == depth
    images, tokens = pixels(backbone), backbone.tokenizer([f"X X X of {name}." for name in NAMES])
    lean = deep.encode_text(PromptedText(backbone, [f"of {name}" for name in NAMES], 3), text)
    with prompts_inserted(backbone, text, image) as model:
        torch.testing.assert_close(lean, model.encode_text(tokens), rtol=1e-9, atol=1e-10)
        expected = model.encode_image(images)
    found = deep.encode_image(backbone, backbone.image.frozen(images, 1), image)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    assert (expected - backbone.model.encode_image(images)).abs().max() > 1e-3  # type: ignore[operator]


def test_rotary_positions_leave_no_room(tiny_eva: Backbone) -> None:
    with pytest.raises(UserError, match="MaPLe adds tokens"):
        deep.check_room(tiny_eva, "MaPLe")


@pytest.mark.parametrize("name", ["tiny_clip", "tiny_hf"])
def test_context_starts_as_words(name: str, request: pytest.FixtureRequest) -> None:
    backbone = request.getfixturevalue(name)
    two, rest = deep.first_context(backbone, "a photo of a", 2, seed=1)
    assert torch.equal(two, init_words(backbone, "a photo"))
    assert rest == "of a"
    four, rest = deep.first_context(backbone, "a photo of a", 4, seed=1)
    assert len(four) == 4
    assert rest == ""
    drawn, rest = deep.first_context(backbone, "a photo of a", 5, seed=1)
    assert torch.equal(drawn, draw(5, backbone.text.width, 1))
    assert rest == ""


def test_logits_are_cosines_over_the_temperature(tiny_clip: Backbone) -> None:
    image, text = torch.randn(3, 40), torch.randn(2, 40)
    expected = torch.nn.functional.cosine_similarity(image[:, None], text[None], dim=-1)
    expected = expected * tiny_clip.model.logit_scale.exp()  # type: ignore[operator]
    torch.testing.assert_close(deep.logits(tiny_clip, image, text), expected)
