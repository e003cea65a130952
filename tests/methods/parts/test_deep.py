"""Deep prompts in both encoders against the backbones' own forward passes, with hooks that put the
prompts in place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rmadapter.backbones import Backbone
from rmadapter.data.read import ImageSet
from rmadapter.errors import UserError
from rmadapter.methods.parts import deep
from rmadapter.methods.parts.context import PromptedText, draw, init_words
from rmadapter.training.contract import Shots
from tests.helpers.rounding import double
from tests.helpers.shots import gradients, logits_of, meaningless, shots_of

NAMES = ("cat", "a small red car", "dog", "tree house")  # of different lengths
LABELS = torch.tensor([0, 1, 2, 3, 0])


def pixels(backbone: Backbone, count: int = 5) -> Tensor:
    shape = (count, 3, backbone.image_size, backbone.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@contextmanager
def hooked(
    backbone: Backbone, text: Sequence[Tensor] = (), image: Sequence[Tensor] = ()
) -> Iterator[Any]:
    """The model, whose own forward passes carry prompts: into text behind its first token, into
    images at their end."""
    model: Any = backbone.model
    visual, encoder = model.visual, getattr(model, "text", model)
    timm, bert = hasattr(visual, "trunk"), hasattr(encoder.transformer, "encoder")
    image_blocks = visual.trunk.blocks if timm else visual.transformer.resblocks
    text_blocks = encoder.transformer.encoder.layer if bert else encoder.transformer.resblocks
    embedding = encoder.transformer.embeddings.word_embeddings if bert else encoder.token_embedding
    norm = visual.trunk.norm_pre if timm else visual.ln_pre

    def inner(x: Tensor, prompt: Tensor) -> Tensor:
        return torch.cat([x[:, :1], prompt.expand(len(x), -1, -1), x[:, 1 + len(prompt) :]], 1)

    def outer(x: Tensor, prompt: Tensor, first: bool) -> Tensor:
        kept = x if first else x[:, : -len(prompt)]
        return torch.cat([kept, (norm(prompt) if first else prompt).expand(len(x), -1, -1)], 1)

    handles = []
    if text:
        handles.append(embedding.register_forward_hook(lambda module, args, x: inner(x, text[0])))
    for block, prompt in zip(text_blocks[1:], text[1:], strict=False):
        handles.append(
            block.register_forward_pre_hook(lambda module, a, p=prompt: (inner(a[0], p), *a[1:]))
        )
    for i, (block, prompt) in enumerate(zip(image_blocks, image, strict=False)):
        change = lambda module, a, p=prompt, i=i: (outer(a[0], p, i == 0), *a[1:])  # noqa: E731
        handles.append(block.register_forward_pre_hook(change))
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()


def same(module: nn.Module, lean: Mapping[str, Tensor], plain: Mapping[str, Tensor]) -> None:
    """Terms, and the gradients of the loss with respect to every trainable tensor, none of which is
    zero."""
    assert lean.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(lean[name], value, rtol=1e-9, atol=1e-12)
    found, expected = (gradients(module, terms["loss"]) for terms in (lean, plain))
    assert expected
    for name, other in expected.items():
        assert other.norm() > 0, name
        assert (found[name] - other).norm() <= 1e-9 * other.norm(), name


def eight_images(backbone: Backbone, **fields: Any) -> Shots:
    """Two images of noise for each of four classes."""
    return shots_of(
        backbone,
        ImageSet.from_lists(meaningless(8).images, ["cat", "dog", "car", "bird"] * 2),
        **fields,
    )


def learns(method: Any, backbone: Backbone) -> None:
    """All of eight images, leaving the backbone alone, and the same way twice."""
    before = replace(backbone).digest  # computed anew
    logits = []
    for _ in range(2):
        shots = eight_images(backbone)
        fitted = method.fit(backbone, shots)
        logits.append(logits_of(fitted, shots))
    assert torch.equal(*logits)
    assert logits[0].argmax(-1).tolist() == list(shots.images.labels)
    assert not logits[0].requires_grad
    assert replace(backbone).digest == before
    assert fitted.parameters == method.parameters(backbone, classes=4).trained
    assert len(fitted.trained.history) == method.recipe.epochs * -(-8 // method.recipe.batch_size)
    assert logits_of(fitted, shots, ("tree", "house")).shape == (8, 2)


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
    with hooked(backbone, text, image) as model:
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
