"""RMAdapter and MMA: a fit is a plain loop over the backbone's own forward pass, and leaves the
backbone as it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.data.read import ImageSet
from rmadapter.errors import UserError
from rmadapter.methods import load_method
from rmadapter.methods.rmadapter import MMA, PAPER, RMAdapter
from rmadapter.model import AdaptedCLIP
from rmadapter.prompts import class_weights, tokenize
from rmadapter.settings import configured
from rmadapter.training.contract import Shots
from rmadapter.training.loop import order
from tests.helpers.rounding import assert_rounds_like, double
from tests.helpers.shots import (
    gradients,
    logits_of,
    noisy_colors,
    pixels_of,
    shots_of,
    untrained,
)

QUICK = {"first_block": 3, "rank": 4, "epochs": 2}
SMALL = {
    "first_block": 2,
    "rank": 4,
    "epochs": 3,
    "batch_size": 4,
    "learning_rate": 0.01,
    "alpha": 1.0,
}
ADAPTERS = ("mma", "mma-adamw", "rmadapter", "rmadapter-paper", "rmadapter-plain")
TEMPLATES = ("a photo of a {}.", "the {}")


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return noisy_colors(2)


def plain_fit(method: Any, backbone: Backbone, shots: Shots) -> tuple[AdaptedCLIP, list[float]]:
    """No frozen prefix, no packed prompts, nothing held: pixels, hooks, autograd and torch's own
    optimiser."""
    model, clip = AdaptedCLIP(backbone, method.adapter, method.loss, shots.seed), backbone.model
    tokens = tokenize(backbone, shots.classes, shots.templates)
    pixels = pixels_of(backbone, shots.images)
    recipe, optimizer, losses = method.recipe, method.recipe.make(model.adapters.parameters()), []
    with torch.no_grad():
        frozen, text = clip.encode_image(pixels), clip.encode_text(tokens)  # type: ignore[operator]
    for epoch in range(recipe.epochs):
        orders = order(len(pixels), recipe.batch_size, shots.seed, epoch)
        for rows in orders:
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(len(losses), len(orders), recipe.epochs)
            terms = model.reference(
                shots.labels[rows], pixels[rows], tokens, (frozen[rows], text), len(shots.templates)
            )
            optimizer.zero_grad()
            terms["loss"].backward()
            optimizer.step()
            losses.append(float(terms["loss"].detach()))
    return model, losses


@torch.no_grad()
def plain_logits(
    model: AdaptedCLIP, pixels: Tensor, names: tuple[str, ...], templates: tuple[str, ...]
) -> Tensor:
    """By the backbone's own forward pass."""
    features = model.encode_image(pixels)
    weights = class_weights(
        model.encode_text(tokenize(model.backbone, names, templates)), len(templates)
    )
    return model.backbone.logit_scale * torch.nn.functional.normalize(features, dim=-1) @ weights.T


@pytest.mark.parametrize("name", ["mma", "rmadapter"])
def test_a_fit_is_a_plain_loop(tiny_clip: Backbone, images: ImageSet, name: str) -> None:
    method: Any = load_method(name, QUICK | {"batch_size": 3})
    shots = shots_of(tiny_clip, images, templates=TEMPLATES, seed=2)
    fitted = method.fit(tiny_clip, shots)
    model, losses = plain_fit(method, tiny_clip, shots)
    # Rounding makes 1e-6 of these few steps on any processor; another gradient makes 1e-1.
    assert [step["loss"] for step in fitted.trained.history] == pytest.approx(losses, rel=1e-3)
    for names in (shots.classes, ("cat", "a small red car")):
        expected = plain_logits(model, pixels_of(tiny_clip, images), names, TEMPLATES)
        torch.testing.assert_close(logits_of(fitted, shots, names), expected, rtol=1e-3, atol=1e-3)
    untouched = logits_of(load_method("zero-shot").fit(tiny_clip, shots), shots)
    assert (logits_of(fitted, shots) - untouched).abs().max() > 3e-3  # it did learn something


@pytest.mark.parametrize("name", ["tiny_clip", "tiny_hf"])
@pytest.mark.parametrize("method", [RMAdapter(), MMA, PAPER], ids=lambda method: method.title)
def test_loss_and_gradients_are_those_of_the_reference(
    name: str, method: RMAdapter, images: ImageSet, request: pytest.FixtureRequest
) -> None:
    """Of what `minimise` is given, in float32, by its error against float64."""
    backbone, rows = request.getfixturevalue(name), [5, 0, 3]
    method = configured(method, {"first_block": 3, "rank": 4, "alpha": 0.5, "init": "kaiming"})
    shots = shots_of(backbone, images, templates=TEMPLATES)

    def plain(exact: Backbone, module: Any) -> dict[str, Tensor]:
        model, clip = AdaptedCLIP(exact, method.adapter, method.loss, shots.seed), exact.model
        pixels, tokens = pixels_of(exact, images, rows), tokenize(exact, shots.classes, TEMPLATES)
        pixels = pixels.to(exact.logit_scale.dtype)
        model.adapters = module
        frozen = clip.encode_image(pixels), clip.encode_text(tokens)  # type: ignore[operator]
        return dict(model.reference(shots.labels[rows], pixels, tokens, frozen, 2))

    start = untrained(method, backbone, shots)
    found, same = start.terms(rows), plain(backbone, start.module)
    exact = AdaptedCLIP(double(backbone), method.adapter, method.loss, shots.seed).adapters.double()
    truth = plain(double(backbone), exact)
    by_hand, mine, true = (
        gradients(module, terms["loss"])
        for module, terms in ((start.module, same), (start.module, found), (exact, truth))
    )
    assert all(gradient.norm() > 0 for gradient in true.values())
    assert_rounds_like(
        *({key: term.detach() for key, term in terms.items()} for terms in (same, found, truth))
    )
    assert_rounds_like(by_hand, mine, true, 1e-4)


def test_methods_share_a_backbone_that_none_changes(tiny_clip: Backbone, images: ImageSet) -> None:
    def fitted(name: str, shots: Shots) -> Tensor:
        return logits_of(load_method(name, QUICK).fit(tiny_clip, shots), shots)

    alone = {name: fitted(name, shots_of(tiny_clip, images)) for name in ADAPTERS}
    assert len({str(table) for table in alone.values()}) == len(ADAPTERS)
    shared = shots_of(tiny_clip, images)  # the activations of one are those of the next
    for name in (*ADAPTERS, *reversed(ADAPTERS)):
        assert torch.equal(fitted(name, shared), alone[name])
    again = replace(tiny_clip)  # a digest is kept once it is known: this one is computed anew
    assert again.digest == tiny_clip.digest
    assert not any(p.requires_grad for p in tiny_clip.model.parameters())


def test_an_alpha_of_zero_trains_nothing_and_is_refused(
    tiny_clip: Backbone, images: ImageSet
) -> None:
    with pytest.raises(UserError, match="alpha=0 trains nothing"):
        load_method("rmadapter", {**QUICK, "alpha": 0}).fit(tiny_clip, shots_of(tiny_clip, images))


def test_parameters_by_hand(tiny_clip: Backbone) -> None:
    """Two image blocks of width 64 and two text blocks of width 48, with biases; MMA has r x r + r
    for each level."""
    r = 4
    branch = sum(d * r + r + r * d + d for d in (64, 48, 64, 48))
    rebuilt = sum(r * r + r + r * d + d for d in (64, 48, 64, 48))
    assert load_method("mma", QUICK).parameters(tiny_clip) == (branch + 2 * (r * r + r), 0)
    assert load_method("rmadapter", QUICK).parameters(tiny_clip) == (branch + rebuilt, rebuilt)
