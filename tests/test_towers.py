"""The lean forward pass against the backbone's own: features, loss terms and every adapter gradient."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch

from rmadapter.adapter import class_weights
from rmadapter.backbone import Backbone, load_backbone
from rmadapter.config import Config
from rmadapter.errors import UserError
from rmadapter.model import AdaptedCLIP
from rmadapter.towers import towers

BACKBONES = ["tiny_clip", "tiny_siglip", "tiny_eva", "tiny_hf"]
NAMES = ("cat", "a small red car. a blue bird", "dog", "tree house")  # of very different lengths
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-11}


def adapted(backbone: Backbone, dtype: torch.dtype = torch.float32, **fields: Any) -> AdaptedCLIP:
    """Adapters whose output matters: kaiming weights and a large alpha."""
    base = {"first_block": 2, "init": "kaiming", "alpha": 0.5, "rank": 8}
    model = AdaptedCLIP(backbone, Config.make({**base, **fields})).train()
    return copy.deepcopy(model).to(dtype) if dtype == torch.float64 else model


def pictures(backbone: Backbone, count: int = 5) -> torch.Tensor:
    return torch.randn(count, 3, backbone.image_size, backbone.image_size, generator=torch.Generator().manual_seed(0))


def same_as_reference(model: AdaptedCLIP, names: tuple[str, ...] = NAMES, count: int = 5) -> bool:
    return largest_difference(model, names, count) < TOLERANCE[next(model.clip.parameters()).dtype]


def gradients(model: AdaptedCLIP, terms: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    terms["loss"].backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.adapters.named_parameters()}


def largest_difference(model: AdaptedCLIP, names: tuple[str, ...] = NAMES, count: int = 5) -> float:
    """Between lean and reference, relative to the norm of each loss term and of each gradient tensor."""
    images, tokens = pictures(model.backbone, count).to(next(model.clip.parameters())), model.prompts(names)
    labels = torch.arange(count) % len(names)
    image, text = model.frozen("image", images), model.frozen("text", tokens)
    templates = len(model.config.templates)
    lean = model(labels, image, text, templates)
    lean_gradients = gradients(model, lean)
    features = (model.backbone.model.encode_image(images), model.backbone.model.encode_text(tokens))  # type: ignore[operator]
    plain = model.reference(labels, images, tokens, features, templates)
    plain_gradients = gradients(model, plain)
    assert lean.keys() == plain.keys()
    assert any(gradient.any() for gradient in plain_gradients.values())
    # Gradients ten thousand times smaller than the largest one are differences of large numbers: rounding decides them.
    floor = 1e-4 * max(float(gradient.norm()) for gradient in plain_gradients.values())
    pairs = [(lean[k].detach(), plain[k].detach(), 1e-12) for k in plain]
    pairs += [(lean_gradients[k], plain_gradients[k], floor) for k in plain_gradients]
    return max(float((a - b).norm() / b.norm().clamp(min=least)) for a, b, least in pairs)


@pytest.mark.parametrize("name", BACKBONES)
def test_frozen_features_are_the_backbones(name: str, request: pytest.FixtureRequest) -> None:
    backbone: Any = request.getfixturevalue(name)
    model, images = adapted(backbone), pictures(backbone)
    tokens = model.prompts(NAMES)
    torch.testing.assert_close(model.frozen("image", images).features, backbone.model.encode_image(images))
    expected = backbone.model.encode_text(tokens)
    torch.testing.assert_close(model.frozen("text", tokens).features, expected, rtol=1e-4, atol=1e-5)


ABLATIONS = [
    {},
    {"lambda_image_rec": 0, "lambda_text_rec": 0},
    {"lambda_image_con": 0, "lambda_text_con": 0},
    {"decouple_scale": True, "alpha": 0.01},
    {"objective": "cosine", "share": "up"},
    {"objective": "l1", "share": "none", "reconstruction_layers": 3},
]
PLACES = [
    {"first_block": 1},
    {"first_block": 3},
    {"first_block": 4},
    {"first_block": 2, "last_block": 2},
    {"first_block": 1, "last_block": 3},
]
TEMPLATES = [("a photo of a {}.",), ("{}",), ("a photo of a {}.", "the {}.")]


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("fields", ABLATIONS, ids=str)
def test_every_ablation_is_the_reference(name: str, fields: dict[str, Any], request: pytest.FixtureRequest) -> None:
    """In float64, where rounding cannot hide a difference."""
    for norm, cross_modal in itertools.product(("none", "block"), (False, True)):
        model = adapted(request.getfixturevalue(name), torch.float64, norm=norm, cross_modal=cross_modal, **fields)
        assert same_as_reference(model), (norm, cross_modal)


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("fields", PLACES, ids=str)
def test_every_place_is_the_reference(name: str, fields: dict[str, Any], request: pytest.FixtureRequest) -> None:
    for norm, templates in itertools.product(("none", "block"), TEMPLATES):
        model = adapted(request.getfixturevalue(name), torch.float64, norm=norm, templates=templates, **fields)
        assert same_as_reference(model), (norm, templates)


@pytest.mark.parametrize("name", BACKBONES)
def test_one_class_and_one_image_are_the_reference(name: str, request: pytest.FixtureRequest) -> None:
    assert same_as_reference(adapted(request.getfixturevalue(name), torch.float64), ("cat",), 1)


REAL = [
    {"first_block": 1},
    {"first_block": 5, "lambda_image_rec": 0, "lambda_text_rec": 0},
    {"first_block": 5, "lambda_image_con": 0, "lambda_text_con": 0},
    {"first_block": 5, "templates": ("{}", "a photo of a {}.")},
    {"first_block": 12},
    {"first_block": 6, "last_block": 6},
]


@pytest.mark.parametrize("fields", REAL, ids=str)
@pytest.mark.parametrize("norm", ["none", "block"])
@pytest.mark.parametrize("cross_modal", [False, True])
def test_pocket_is_the_reference(pocket: Backbone, fields: dict[str, Any], norm: str, cross_modal: bool) -> None:
    assert same_as_reference(adapted(pocket, norm=norm, cross_modal=cross_modal, alpha=0.1, **fields), NAMES, 2)


@pytest.mark.parametrize("fields", REAL, ids=str)
def test_vit_b16_is_the_reference(vit_b16: Backbone, fields: dict[str, Any]) -> None:
    model = adapted(vit_b16, norm="block", cross_modal=True, alpha=0.1, **fields)
    assert same_as_reference(model, ("cat", "a very long name for a dog", "tree house", "blue"), 4)


@pytest.fixture(scope="module")
def vit_b16() -> Backbone:
    return load_backbone("ViT-B-16/none")


def test_what_stands_after_the_end_of_text_changes_nothing(tiny_clip: Backbone) -> None:
    model = adapted(tiny_clip)
    tokens = model.prompts(NAMES)
    noisy = tokens.clone()
    for row, end in enumerate(tokens.argmax(-1)):
        noisy[row, end + 1 :] = torch.randint(1, 40000, (tokens.shape[1] - int(end) - 1,))
    labels, image = torch.tensor([0, 1, 2, 3, 0]), model.frozen("image", pictures(tiny_clip))
    quiet = model(labels, image, model.frozen("text", tokens))
    loud = model(labels, image, model.frozen("text", noisy))
    assert all(torch.equal(quiet[k], loud[k]) for k in quiet)
    before, after = gradients(model, quiet), gradients(model, loud)
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_reconstruction_is_computed_in_training_only(tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted(tiny_clip).eval()
    image = model.frozen("image", pictures(tiny_clip))
    expected, errors = model.features("image", image, reconstruct=True)
    assert len(errors) == 3
    monkeypatch.setattr(type(model.adapters), "reconstruction_error", None)
    features, errors = model.features("image", image)
    torch.testing.assert_close(features, expected)
    assert errors == []


def test_class_weights_average_templates(tiny_hf: Backbone) -> None:
    model = adapted(tiny_hf, templates=("a photo of a {}.", "the {}")).eval()
    features = model.encode_text(model.prompts(NAMES))
    torch.testing.assert_close(model.class_weights(NAMES), class_weights(features, 2), rtol=1e-4, atol=1e-5)


def test_a_text_encoder_of_an_unknown_make_is_refused(tiny_clip: Backbone) -> None:
    from types import SimpleNamespace

    strange = SimpleNamespace(visual=tiny_clip.model.visual, text=torch.nn.Linear(2, 2))
    with pytest.raises(UserError, match="Linear"):
        towers(strange)


@pytest.mark.parametrize("templates", [("a photo of a {}.",), ("a photo of a {}.", "the {}.")])
def test_text_in_chunks_is_text_at_once(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch, templates: tuple[str, ...]
) -> None:
    model = adapted(tiny_clip, torch.float64, templates=templates)
    image, tokens = model.frozen("image", pictures(tiny_clip).double()), model.prompts(NAMES)
    labels = torch.tensor([0, 1, 2, 3, 0])
    whole = model(labels, image, model.frozen("text", tokens), len(templates))
    expected = gradients(model, whole)
    monkeypatch.setattr("rmadapter.model.CHUNK", 3)
    chunks = model.frozen_text(tokens)
    assert len(chunks) == -(-len(tokens) // 3)
    parts = model(labels, image, chunks, len(templates))
    found = gradients(model, parts)
    assert all(torch.allclose(whole[k], parts[k], rtol=1e-12) for k in whole)
    assert all(torch.allclose(expected[k], found[k], rtol=1e-9, atol=1e-12) for k in expected)


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("share", [True, False])
def test_encode_is_the_backbones_own_forward_and_lets_tokens_be_changed(
    name: str, share: bool, request: pytest.FixtureRequest
) -> None:
    backbone = request.getfixturevalue(name)
    image, text = towers(backbone.model)
    tokens = backbone.tokenizer([f"a photo of a {name}." for name in NAMES])
    layout = text.layout(tokens, share)
    with torch.no_grad():
        expected = backbone.model.encode_text(tokens)
        words = text.words(layout)
        torch.testing.assert_close(text.encode(text.stem(layout), layout), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(text.encode(text.stem(layout, words), layout), expected, rtol=1e-4, atol=1e-5)
        changed = text.encode(text.stem(layout, 2 * words), layout)
        assert (changed - expected).abs().max() > 1e-3
        pixels = pictures(backbone)
        states = image.frozen(pixels)
        features = image.encode(states.x, states.layout)
        torch.testing.assert_close(features, backbone.model.encode_image(pixels), rtol=1e-4, atol=1e-5)
        seen: list[int] = []
        image.encode(states.x, states.layout, lambda i, x: (seen.append(i), x)[1])
    assert seen == list(range(1, image.depth + 1))
    assert share or layout.prefix == 0
