"""Compute losses and gradients by the lean and by the reference forward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.methods import load_method
from rmadapter.model import AdaptedCLIP
from rmadapter.prompts import tokenize
from tests.helpers.rounding import relative_errors

# loss terms, and gradients of the adapters
TermsAndGradients = tuple[dict[str, Tensor], dict[str, Tensor]]
NAMES = ("cat", "a small red car. a blue bird", "dog", "tree house")  # of very different lengths
PHOTO = ("a photo of a {}.",)


def adapted(backbone: Backbone, **fields: Any) -> AdaptedCLIP:
    """Add adapters whose output matters, with kaiming weights and a large alpha, in the number
    format of the backbone."""
    settings = {"first_block": 2, "init": "kaiming", "alpha": 0.5, "rank": 8, **fields}
    method: Any = load_method("rmadapter", settings)
    return method.model(backbone).train().to(next(backbone.model.parameters()).dtype)


def noise(backbone: Backbone, count: int = 5) -> Tensor:
    shape = (count, 3, backbone.image_size, backbone.image_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return images.to(next(backbone.model.parameters()).dtype)


def gradients(model: AdaptedCLIP, terms: dict[str, Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    terms["loss"].backward()
    return {
        n: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for n, p in model.adapters.named_parameters()
    }


def lean_pass(
    model: AdaptedCLIP, names: tuple[str, ...], templates: tuple[str, ...], count: int
) -> TermsAndGradients:
    images, tokens = noise(model.backbone, count), tokenize(model.backbone, names, templates)
    labels = torch.arange(count) % len(names)
    terms = model(labels, model.frozen(images), model.frozen_text(tokens), len(templates))
    return {name: term.detach() for name, term in terms.items()}, gradients(model, terms)


def plain_pass(
    model: AdaptedCLIP, names: tuple[str, ...], templates: tuple[str, ...], count: int
) -> TermsAndGradients:
    """Compute terms and gradients by the backbone's own forward pass."""
    images, tokens = noise(model.backbone, count), tokenize(model.backbone, names, templates)
    features = (model.clip.encode_image(images), model.clip.encode_text(tokens))
    labels = torch.arange(count) % len(names)
    terms = model.reference(labels, images, tokens, features, len(templates))
    by_name = gradients(model, terms)
    assert any(gradient.any() for gradient in by_name.values())
    return {name: term.detach() for name, term in terms.items()}, by_name


def same_as_reference(
    model: AdaptedCLIP, names: tuple[str, ...] = NAMES, templates: tuple[str, ...] = PHOTO,
    count: int = 5,
) -> bool:  # fmt: skip
    """Return whether both passes agree in float64, where rounding stays below 1e-13; a single step
    in float32 would cost 1e-8."""
    assert next(model.clip.parameters()).dtype == torch.float64
    lean = lean_pass(model, names, templates, count)
    plain = plain_pass(model, names, templates, count)
    of_terms = relative_errors(lean[0], plain[0])
    of_gradients = relative_errors(lean[1], plain[1], 1e-4)
    return max(*of_terms.values(), *of_gradients.values()) < 1e-11
