"""The lean forward pass against the backbone's own with hooks: features, loss terms and every
adapter gradient."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.encoders import encoders_of, features_of
from rmadapter.encoders.image import WholeImage
from rmadapter.prompts import tokenize
from tests.helpers.passes import (
    NAMES,
    PHOTO,
    adapted,
    gradients,
    lean_pass,
    noise,
    plain_pass,
    same_as_reference,
)
from tests.helpers.rounding import FACTOR, assert_rounds_like, double, relative_errors
from tests.helpers.slow import ci_except

BACKBONES = ["tiny_clip", "tiny_siglip", "tiny_eva", "tiny_hf"]


def rounds_like_reference(
    backbone: Backbone, exact: Backbone, templates: tuple[str, ...] = PHOTO, **fields: Any
) -> None:
    """In float32, on two images: both passes lose what this processor's kernels lose, and the lean
    one hardly more."""
    model, rest = adapted(backbone, **fields), (NAMES, templates, 2)
    passes = (
        plain_pass(model, *rest),
        lean_pass(model, *rest),
        plain_pass(adapted(exact, **fields), *rest),
    )
    for plain, lean, truth, share in zip(*passes, (0, 1e-4), strict=True):
        assert_rounds_like(plain, lean, truth, share)


ABLATIONS = [
    {},
    {"lambda_image_rec": 0, "lambda_text_rec": 0},
    {"lambda_image_con": 0, "lambda_text_con": 0},
    {"decouple_scale": True, "alpha": 0.01},
    {"objective": "cosine", "share": "up"},
    {"objective": "l1", "share": "none", "reconstruction_layers": 3},
    {"target": "frozen", "local": False},
    {"target": "below", "target_norm": True},
    {"target": "output", "consistency_unit": "raw"},
    {"target": "output", "local": False, "first_block": 4},
    {"target": "adapted", "target_norm": True},
    {"target": "adapted", "local": False, "decouple_scale": True},
]
PLACES = [
    {"first_block": 1},
    {"first_block": 3},
    {"first_block": 4},
    {"first_block": 2, "last_block": 2},
    {"first_block": 1, "last_block": 3},
]
TEMPLATES = [PHOTO, ("{}",), ("a photo of a {}.", "the {}.")]


@pytest.mark.parametrize("name", ci_except(BACKBONES, BACKBONES[0]))
@pytest.mark.parametrize("fields", ABLATIONS, ids=str)
def test_every_ablation_equals_the_reference(
    name: str, fields: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    backbone = double(request.getfixturevalue(name))
    every = [*itertools.product(("none", "block"), (False, True))]
    for norm, cross_modal in every if not fields else every[1:3]:
        model = adapted(backbone, norm=norm, cross_modal=cross_modal, **fields)
        assert same_as_reference(model), (norm, cross_modal)


@pytest.mark.parametrize("name", ci_except(BACKBONES, BACKBONES[0]))
@pytest.mark.parametrize("fields", PLACES, ids=str)
def test_every_adapted_block_range_equals_the_reference(
    name: str, fields: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    backbone = double(request.getfixturevalue(name))
    for norm, templates in [("none", PHOTO), *itertools.product(("block",), TEMPLATES)]:
        model = adapted(backbone, norm=norm, **fields)
        assert same_as_reference(model, templates=templates), (norm, templates)


@pytest.mark.parametrize("name", BACKBONES)
def test_one_class_and_one_image_equal_the_reference(
    name: str, request: pytest.FixtureRequest
) -> None:
    assert same_as_reference(adapted(double(request.getfixturevalue(name))), ("cat",), count=1)


REAL = [
    ({"first_block": 1}, PHOTO),
    ({"first_block": 5, "lambda_image_rec": 0, "lambda_text_rec": 0}, PHOTO),
    ({"first_block": 5, "lambda_image_con": 0, "lambda_text_con": 0}, PHOTO),
    ({"first_block": 5}, ("{}", "a photo of a {}.")),
    ({"first_block": 12}, PHOTO),
    ({"first_block": 6, "last_block": 6}, PHOTO),
]
Fields, Templates = dict[str, Any], tuple[str, ...]


@pytest.mark.ci
@pytest.mark.parametrize(("fields", "templates"), REAL, ids=str)
def test_pocket_equals_the_reference(
    pocket64: Backbone, fields: Fields, templates: Templates
) -> None:
    other = REAL.index((fields, templates)) % 2 == 1
    model = adapted(
        pocket64, norm="block" if other else "none", cross_modal=other, alpha=0.1, **fields
    )
    assert same_as_reference(model, NAMES, templates, 2)


@pytest.mark.slow
@pytest.mark.parametrize(("fields", "templates"), [REAL[0], REAL[3]], ids=str)
def test_vit_b16_equals_the_reference(
    vit_b16_64: Backbone, fields: Fields, templates: Templates
) -> None:
    model = adapted(vit_b16_64, norm="block", cross_modal=True, alpha=0.1, **fields)
    assert same_as_reference(model, ("cat", "a very long name for a dog"), templates, 2)


@pytest.mark.slow
@pytest.mark.parametrize(("fields", "templates"), REAL, ids=str)
def test_pocket_rounds_like_the_reference(
    pocket: Backbone, pocket64: Backbone, fields: Fields, templates: Templates
) -> None:
    rounds_like_reference(
        pocket, pocket64, templates, norm="block", cross_modal=True, alpha=0.1, **fields
    )


@pytest.mark.slow
def test_vit_b16_rounds_like_the_reference(vit_b16: Backbone, vit_b16_64: Backbone) -> None:
    rounds_like_reference(vit_b16, vit_b16_64, first_block=9, alpha=0.1)


@pytest.fixture(scope="module")
def pocket64(pocket: Backbone) -> Backbone:
    return double(pocket)


@pytest.fixture(scope="module")
def vit_b16_64(vit_b16: Backbone) -> Backbone:
    return double(vit_b16)


@pytest.mark.parametrize("name", ci_except(BACKBONES, BACKBONES[0]))
def test_autocast_is_close_to_float32(name: str, request: pytest.FixtureRequest) -> None:
    """The tokens between blocks are bfloat16, gradients as near to those of float32 as the
    backbone's own forward has them under autocast, and no weight of the backbone is cast in a
    second step."""
    backbone = request.getfixturevalue(name)
    model, seen = adapted(backbone), []
    images = noise(backbone)
    tokens = tokenize(backbone, NAMES, PHOTO)
    labels = torch.tensor([0, 1, 2, 3, 0])
    image, text = model.frozen(images), model.frozen_text(tokens)
    plain = gradients(model, model(labels, image, text))
    close = type(model.encoders["text"].views[-1]).close

    def step() -> dict[str, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            terms = model(labels, image, text)
        return gradients(model, terms)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model.encoders["text"].views[-1]), "close",
                      lambda view, x, y: (seen.append(x.dtype), close(view, x, y))[1])  # fmt: skip
        mixed = step()
    assert set(seen) == {torch.bfloat16}
    kept = dict(model.encoders["text"]._cast)
    assert kept
    again = step()
    assert all(model.encoders["text"]._cast[key] is view for key, view in kept.items())
    assert all(torch.equal(mixed[key], again[key]) for key in mixed)
    with torch.autocast("cpu", torch.bfloat16):
        terms = model.reference(labels, images, tokens, (image.features, text[0].features))
    own, errors = (
        relative_errors(found, plain, share=1e-2) for found in (gradients(model, terms), mixed)
    )
    assert 0 < max(errors.values()) < FACTOR * max(own.values()), (errors, own)


def test_tokens_after_the_end_of_text_change_nothing(tiny_clip: Backbone) -> None:
    """Neither a loss term nor a gradient, bit for bit."""
    model = adapted(tiny_clip)
    tokens = tokenize(tiny_clip, NAMES, PHOTO)
    noisy = tokens.clone()
    for row, end in enumerate(tokens.argmax(-1)):
        noisy[row, end + 1 :] = torch.randint(1, 40000, (tokens.shape[1] - int(end) - 1,))
    labels, image = torch.tensor([0, 1, 2, 3, 0]), model.frozen(noise(tiny_clip))
    quiet, loud = (model(labels, image, model.frozen_text(some)) for some in (tokens, noisy))
    assert all(torch.equal(quiet[k], loud[k]) for k in quiet)
    before, after = gradients(model, quiet), gradients(model, loud)
    assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize("name", BACKBONES)
def test_encoders_hold_the_backbones_own_blocks(name: str, request: pytest.FixtureRequest) -> None:
    """Hooks on them are hooks on the backbone; what is taken apart are views of them."""
    backbone = request.getfixturevalue(name)
    modules = set(backbone.model.modules())
    for encoder, width in ((backbone.image, 64), (backbone.text, 48)):
        assert (encoder.width, encoder.depth) == (width, 4)
        assert len(encoder.views) == 4
        assert set(encoder.blocks) <= modules


@pytest.mark.parametrize("name", BACKBONES)
def test_the_tail_holds_the_parameters_that_the_head_reads(
    name: str, request: pytest.FixtureRequest
) -> None:
    """By the gradient of features by every weight of the model, from tokens that leave the top
    block."""
    backbone = double(request.getfixturevalue(name))
    model: Any = backbone.model.requires_grad_()
    tokens = tokenize(backbone, NAMES, PHOTO)
    grid, packed = backbone.image.frozen(noise(backbone), 4), backbone.text.frozen(tokens, 4)
    for encoder, states in ((backbone.image, grid), (backbone.text, packed)):
        model.zero_grad(set_to_none=True)
        encoder.head(states.y, states.layout).sin().sum().backward()
        read = [parameter for parameter in model.parameters() if parameter.grad is not None]
        assert {*map(id, read)} == {*map(id, encoder.tail)}
        assert read


def test_an_image_encoder_that_also_returns_tokens_works(tiny_clip: Backbone) -> None:
    """As CoCa's does; a cache asks for the states of several blocks at once."""
    visual: Any = double(tiny_clip).model.visual
    whole = WholeImage(visual, "CoCa", lambda images: features_of((visual(images), "tokens")))
    pixels = noise(double(tiny_clip))
    [one, other] = whole.frozen_at(pixels, [None, None], features=False)
    for states in (one, other, whole.frozen(pixels)):
        assert torch.equal(states.features, visual(pixels))


def test_text_blocks_of_an_unknown_make_are_not_adapted(tiny_clip: Backbone) -> None:
    """Packed tokens are for views alone, so that a block run whole could not read them."""
    model: Any = double(tiny_clip).model
    block = model.transformer.resblocks[1]
    block.__class__ = type("Another", (type(block),), {})
    text = encoders_of(model)[1]
    assert (type(text).__name__, text.depth, text.opaque) == ("WholeText", 0, True)
    tokens = tiny_clip.tokenizer(["a cat", "dog"])
    assert torch.equal(text.frozen(tokens).features, model.encode_text(tokens))
