"""Learned context and deep prompts against the backbones' own forward passes."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.encoders import TextEncoder
from rmadapter.errors import UserError
from rmadapter.methods.parts.learned_prompts import (
    PromptedText,
    check_room,
    context_vectors,
    draw,
    encode_image,
    encode_text,
    encoder_of,
    first_context,
    init_words,
    prompt_tokens,
)
from tests.helpers.context_prompts import plain_text
from tests.helpers.deep_prompts import NAMES, pixels, prompts_inserted
from tests.helpers.methods import quick_method
from tests.helpers.rounding import double
from tests.helpers.shots import gradients, noise_images, shots_of, untrained


def context_of(width: int, *shape: int) -> Tensor:
    made = torch.randn(
        *shape, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    return made.requires_grad_()


@pytest.mark.parametrize("name", ["tiny_clip", "tiny_siglip", "tiny_eva", "tiny_hf"])
@pytest.mark.parametrize("classwise", [False, True])
@pytest.mark.parametrize("classes", [NAMES, NAMES[1:2]], ids=len)
def test_features_and_gradients_are_those_of_full_sequences(
    name: str, classwise: bool, classes: tuple[str, ...], request: pytest.FixtureRequest
) -> None:
    backbone = double(request.getfixturevalue(name))
    prompts = PromptedText(backbone, classes, 3, share=not classwise)
    context = context_of(backbone.text.width, *((len(classes), 3) if classwise else (3,)))
    lean, plain = prompts.encode(context), plain_text(backbone, classes, context)
    torch.testing.assert_close(lean, plain, rtol=1e-9, atol=1e-10)
    weight = torch.randn(plain.shape, generator=torch.Generator().manual_seed(2), dtype=plain.dtype)
    gradients = [
        torch.autograd.grad((features * weight).sum(), context)[0] for features in (lean, plain)
    ]
    assert gradients[1].norm() > 0
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("share", [False, True])
def test_deep_prompts_stand_where_the_context_stood(tiny_clip: Backbone, share: bool) -> None:
    backbone = double(tiny_clip)
    prompts = PromptedText(backbone, NAMES, 2, share=share)
    context, second = context_of(48, 2), context_of(48, 2) + 1
    assert (prompts.layout.prefix > 0) == share
    lean = prompts.encode(context, lambda i, x: prompts.put(x, second) if i == 3 else x)
    torch.testing.assert_close(
        lean, plain_text(backbone, NAMES, context, {2: second}), rtol=1e-9, atol=1e-10
    )


def test_the_words_of_the_context_give_the_written_prompts(
    tiny_clip: Backbone, tiny_hf: Backbone
) -> None:
    for backbone in (double(tiny_clip), double(tiny_hf)):
        context = init_words(backbone, "a photo of the")
        assert context.shape[0] == 4
        prompts = PromptedText(backbone, NAMES, 4)
        written = backbone.model.encode_text(
            backbone.tokenizer([f"a photo of the {n}." for n in NAMES])
        )  # type: ignore[operator]
        torch.testing.assert_close(prompts.encode(context), written, rtol=1e-9, atol=1e-10)


def test_contexts_that_do_not_fit_are_refused(tiny_clip: Backbone) -> None:
    for n_ctx in (0, 14):
        with pytest.raises(UserError, match="1 to 13"):
            PromptedText(tiny_clip, NAMES, n_ctx)
    PromptedText(tiny_clip, NAMES, 13)


def test_contexts_of_classes_apart_need_prompts_apart(tiny_clip: Backbone) -> None:
    prompts = PromptedText(tiny_clip, NAMES, 2)
    with pytest.raises(AssertionError, match="need share=False"):
        prompts.encode(torch.zeros(len(NAMES), 2, tiny_clip.text.width))


def test_the_start_of_a_text_is_computed_once(tiny_clip: Backbone) -> None:
    """An export is traced, and what is traced cannot be looked at; and nothing keeps the backbone
    alive."""
    asked: list[list[str]] = []
    backbone = replace(
        tiny_clip, tokenizer=lambda texts: asked.append(texts) or tiny_clip.tokenizer(texts)
    )
    PromptedText(backbone, ["cat"], 2)
    found = len(asked)
    PromptedText(backbone, ["dog"], 2)
    assert [*map(len, asked[found:])] == [1]  # the prompt alone
    kept = weakref.ref(backbone)
    del backbone
    gc.collect()
    assert kept() is None


def test_context_starts_as_words_or_as_small_noise_of_the_seed(tiny_clip: Backbone) -> None:
    words = context_vectors(tiny_clip, "a photo of the", 7, seed=1)
    assert torch.equal(words, init_words(tiny_clip, "a photo of the"))
    assert words.requires_grad
    noise = context_vectors(tiny_clip, "", 7, seed=1)
    assert torch.equal(noise, draw(7, tiny_clip.text.width, 1))
    assert not torch.equal(noise, draw(7, tiny_clip.text.width, 2))
    assert draw(100, 100, 1).std().item() == pytest.approx(0.02, rel=0.05)


def test_the_first_of_several_descriptions_is_the_name(tiny_clip: Backbone) -> None:
    context = context_of(tiny_clip.text.width, 3).float()
    some, first = (
        PromptedText(tiny_clip, names, 3)
        for names in (("cat | a small pet", "dog"), ("cat", "dog"))
    )
    assert torch.equal(some.encode(context), first.encode(context))


@pytest.mark.parametrize("limit", ["CHUNK_PROMPTS", "MAX_TOKENS"])
def test_many_prompts_are_encoded_in_chunks_with_the_same_features_and_gradient(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """Of 3 prompts, or of as many tokens as 3 have."""
    backbone, found, sizes = double(tiny_clip), [], list[int]()
    tokens = prompt_tokens(backbone, NAMES, 2)
    read = int(backbone.text.real_tokens(tokens)[0].sum())
    encode = PromptedText.encode
    monkeypatch.setattr(
        PromptedText,
        "encode",
        lambda part, *given: sizes.append(len(features := encode(part, *given))) or features,
    )
    for chunk in (len(NAMES), 3):
        value = chunk if limit == "CHUNK_PROMPTS" else -(-read * chunk // len(NAMES))
        monkeypatch.setattr(f"rmadapter.prompts.{limit}", value)
        context = context_of(backbone.text.width, 2)
        sizes.clear()
        features = encoder_of(backbone, NAMES, 2)(context)
        assert (max(sizes), sum(sizes)) == (chunk, len(NAMES))
        weights = torch.arange(features.numel(), dtype=torch.float64).view_as(features).sin()
        found.append((features.detach(), *torch.autograd.grad((features * weights).sum(), context)))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["cocoop", "coop", "prograd", "tcp", "text-refiner"])
def test_a_step_on_chunks_of_prompts_is_that_on_all_at_once(
    name: str, tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, found, sizes = double(tiny_clip), [], list[int]()
    shots = shots_of(tiny_clip, noise_images(len(NAMES), NAMES))
    layout = TextEncoder.layout
    monkeypatch.setattr(
        TextEncoder,
        "layout",
        lambda encoder, tokens, *given: (
            sizes.append(len(tokens)) or layout(encoder, tokens, *given)
        ),
    )
    for chunk in (len(NAMES), 2):
        monkeypatch.setattr("rmadapter.prompts.CHUNK_PROMPTS", chunk)
        sizes.clear()
        start = untrained(quick_method(name), backbone, shots)
        start.module.double()
        states = backbone.image.frozen(pixels(backbone, len(NAMES)), start.fitted.first)
        loss = start.terms(range(len(NAMES)), images=states)["loss"]
        found.append((loss.detach(), gradients(start.module, loss)))
        assert max(sizes) == chunk
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-10)


def prompts(count: int, tokens: int, width: int) -> list[Tensor]:
    """Far larger than a method draws them."""
    return list((20 * draw(count * tokens, width, 3).double()).split(tokens))


@pytest.mark.parametrize("name", ["tiny_clip", "tiny_hf", "tiny_siglip"])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_features_are_those_of_the_backbones_own_forward(
    name: str, depth: int, request: pytest.FixtureRequest
) -> None:
    backbone = double(request.getfixturevalue(name))
    check_room(backbone, "this")
    text, image = prompts(depth, 3, backbone.text.width), prompts(depth, 2, backbone.image.width)
    assert len(text) == len(image) == depth
    images, tokens = pixels(backbone), backbone.tokenizer([f"X X X of {name}." for name in NAMES])
    lean = encode_text(PromptedText(backbone, [f"of {name}" for name in NAMES], 3), text)
    with prompts_inserted(backbone, text, image) as model:
        torch.testing.assert_close(lean, model.encode_text(tokens), rtol=1e-9, atol=1e-10)
        expected = model.encode_image(images)
    found = encode_image(backbone, backbone.image.frozen(images, 1), image)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    assert (expected - backbone.model.encode_image(images)).abs().max() > 1e-3  # type: ignore[operator]


@pytest.mark.parametrize("name", ["tiny_clip", "tiny_hf"])
def test_deep_prompts_start_as_words_of_one_token(
    name: str, request: pytest.FixtureRequest
) -> None:
    backbone = request.getfixturevalue(name)
    two, rest = first_context(backbone, "a photo of a", 2, seed=1)
    assert torch.equal(two, init_words(backbone, "a photo"))
    assert rest == "of a"
    four, rest = first_context(backbone, "a photo of a", 4, seed=1)
    assert len(four) == 4
    assert rest == ""
    drawn, rest = first_context(backbone, "a photo of a", 5, seed=1)
    assert torch.equal(drawn, draw(5, backbone.text.width, 1))
    assert rest == ""
