"""AdaptedCLIP: attaching, detaching, copying, the alpha dial, class weights, and MMA as a special
case."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.errors import UserError
from rmadapter.methods import load_method
from rmadapter.model import AdaptedCLIP
from rmadapter.prompts import class_weights, tokenize
from rmadapter.settings import AdapterSettings
from tests.helpers.rounding import assert_same_float32, double

NAMES = ("cat", "small dog", "tree house")
PHOTO = ("a photo of a {}.",)
TWO = ("a photo of a {}.", "the {}.")
EXACT = {"rtol": 1e-9, "atol": 1e-10}  # in float64
BACKBONES = ["tiny_clip", "tiny_siglip", "tiny_eva", "tiny_hf"]


def adapted(
    backbone: Backbone, method: str = "rmadapter", seed: int = 1, **fields: Any
) -> AdaptedCLIP:
    """In the number format of the backbone."""
    found: Any = load_method(method, {"first_block": 2, "init": "kaiming", "rank": 8, **fields})
    return found.model(backbone, seed).to(next(backbone.model.parameters()).dtype)


def noise(backbone: Backbone) -> Tensor:
    images = torch.randn(
        4, 3, backbone.image_size, backbone.image_size, generator=torch.Generator().manual_seed(0)
    )
    return images.to(next(backbone.model.parameters()).dtype)


def prompts(backbone: Backbone, templates: tuple[str, ...] = PHOTO) -> Tensor:
    return tokenize(backbone, NAMES, templates)


def answers(clip: Any, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    return clip.encode_image(images), clip.encode_text(tokens)


@pytest.mark.parametrize("name", BACKBONES)
def test_detaching_restores_the_backbone(name: str, request: pytest.FixtureRequest) -> None:
    backbone = request.getfixturevalue(name)
    images = noise(backbone)
    tokens = prompts(backbone)
    weights = copy.deepcopy(backbone.model.state_dict())
    before = answers(backbone.model, images, tokens)
    with adapted(backbone).attached() as clip:
        during = answers(clip, images, tokens)
    after = answers(backbone.model, images, tokens)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not any(torch.allclose(a, b) for a, b in zip(before, during, strict=True))
    assert all(
        torch.equal(tensor, weights[key]) for key, tensor in backbone.model.state_dict().items()
    )
    assert not any(module._forward_hooks for module in backbone.model.modules())


def test_an_error_while_attached_detaches(tiny_clip: Backbone) -> None:
    with pytest.raises(RuntimeError, match="mine"), adapted(tiny_clip).attached():
        raise RuntimeError("mine")
    assert not any(module._forward_hooks for module in tiny_clip.model.modules())


@pytest.mark.parametrize("name", BACKBONES)
def test_alpha_zero_is_the_untouched_backbone_bit_for_bit(
    name: str, request: pytest.FixtureRequest
) -> None:
    backbone = request.getfixturevalue(name)
    model, images, tokens = adapted(backbone), noise(backbone), prompts(backbone)
    assert model.alpha == model.settings.alpha == 0.1
    model.alpha = 0
    mine = model.encode_image(images), model.encode_text(tokens)
    assert all(
        torch.equal(a, b)
        for a, b in zip(mine, answers(backbone.model, images, tokens), strict=True)
    )


def test_alpha_moves_from_untouched_to_adapted(tiny_clip: Backbone) -> None:
    model, images = adapted(tiny_clip, alpha=0.2), noise(tiny_clip)
    untouched = model.clip.encode_image(images)
    moved = []
    for alpha in (0.05, 0.1, 0.2):
        model.alpha = alpha
        with torch.no_grad():
            moved.append(float((model.encode_image(images) - untouched).norm()))
    assert 0 < moved[0] < moved[1] < moved[2]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1])
def test_an_invalid_alpha_is_refused(tiny_clip: Backbone, value: float) -> None:
    model = adapted(tiny_clip)
    with pytest.raises(UserError, match="alpha="):
        model.alpha = value
    assert model.alpha == model.settings.alpha


def test_zero_initialised_adapters_start_as_the_backbone(tiny_clip: Backbone) -> None:
    model, images = adapted(tiny_clip, init="zero"), noise(tiny_clip)
    # torch has other kernels where gradients are wanted
    assert_same_float32(model.encode_image(images), model.clip.encode_image(images))


def test_models_with_adapters_elsewhere_share_one_backbone(tiny_clip: Backbone) -> None:
    """By both passes: a backbone's encoders know nothing of the models that use them."""
    images = noise(tiny_clip)
    one, two = adapted(tiny_clip), adapted(tiny_clip, alpha=0.3, first_block=4)
    alone = one.encode_image(images), *one.features("image", one.frozen(images))[0]
    other = two.encode_image(images), *two.features("image", two.frozen(images))[0]
    again = one.encode_image(images), *one.features("image", one.frozen(images))[0]
    assert all(torch.equal(a, b) for a, b in zip(alone, again, strict=True))
    assert not torch.equal(alone[0], other[0])
    assert (one.first("image"), two.first("text")) == (2, 4)


@pytest.mark.parametrize("templates", [PHOTO, TWO])
def test_the_printed_constraint_compares_features_as_the_encoders_give_them(
    tiny_clip: Backbone, templates: tuple[str, ...]
) -> None:
    """Eq. 17: sums over the width of |x^a - x| and |w^a - w|, of which none is normalised."""
    backbone = double(tiny_clip)
    model = adapted(backbone, consistency_unit="raw", alpha=0.5)
    images, tokens = noise(backbone), prompts(backbone, templates)
    terms = model(
        torch.tensor([0, 1, 2, 0]), model.frozen(images), model.frozen_text(tokens), len(templates)
    )
    plain = answers(backbone.model, images, tokens)
    for side, now, before in zip(
        ("image", "text"), answers(model, images, tokens), plain, strict=True
    ):
        weight = getattr(model.loss, f"lambda_{side}_con")
        expected = weight * (now - before).abs().sum(-1).mean()
        torch.testing.assert_close(terms[f"{side}_con"], expected, **EXACT)
        assert abs(now.norm(dim=-1) - 1).min() > 0.01


@pytest.mark.parametrize("target", ["output", "adapted"])
@pytest.mark.parametrize("side", ["image", "text"])
def test_the_printed_equations_rebuild_what_leaves_the_blocks(
    tiny_clip: Backbone, side: str, target: str
) -> None:
    """Eq. 11 and 12: the sum of |y_i - rec(y_i)|^2 for the outputs y_i of the adapted blocks (Eq.
    14, 15), written out here and recorded without the model's own hooks."""
    backbone = double(tiny_clip)
    model = adapted(backbone, target=target, alpha=0.5)
    tokens = prompts(backbone)
    inputs = noise(backbone) if side == "image" else tokens
    encoder, outputs, total = model.encoders[side], [], torch.zeros((), dtype=torch.float64)
    with model.attached() as clip:  # hooks of later blocks run on what these return
        handles = [
            block.register_forward_hook(lambda module, args, output: outputs.append(output))
            for block in encoder.blocks
        ]
        getattr(clip, f"encode_{side}")(inputs)
    for handle in handles:
        handle.remove()
    real = backbone.text.real_tokens(tokens)[0]
    for block in model.adapters.blocks(side):
        adapter, y = getattr(model.adapters, side)[str(block)], outputs[block - 1]
        down = F.gelu(y @ adapter.down.weight.T + adapter.down.bias)
        hidden = F.gelu(down @ adapter.rec[0].weight.T + adapter.rec[0].bias)
        errors = (hidden @ adapter.rec[1].weight.T + adapter.rec[1].bias - y).square().mean(-1)
        if side == "text":
            errors = torch.cat([row[:count] for row, count in zip(errors, real, strict=True)])
        total = total + errors.mean()
    images, text = model.frozen(noise(backbone)), model.frozen_text(tokens)
    terms = model(torch.tensor([0, 1, 2, 0]), images, text)
    weight = getattr(model.loss, f"lambda_{side}_rec")
    torch.testing.assert_close(terms[f"{side}_rec"], weight * total, **EXACT)


@pytest.mark.parametrize("while_attached", [False, True])
def test_a_deep_copy_is_independent(tiny_clip: Backbone, while_attached: bool) -> None:
    model, images = adapted(tiny_clip), noise(tiny_clip)
    expected = model.encode_image(images)
    if while_attached:
        with model.attached():
            twin = copy.deepcopy(model)
        through = twin.clip.encode_image  # its hooks came along
    else:
        twin = copy.deepcopy(model)
        through = twin.encode_image
    with torch.no_grad():
        for parameter in model.adapters.parameters():
            parameter.add_(1)
    assert torch.equal(through(images), expected)
    with torch.no_grad():
        for parameter in twin.adapters.parameters():
            parameter.zero_()
    assert_same_float32(through(images), model.clip.encode_image(images))
    assert twin.clip is twin.backbone.model
    assert twin.encoders["image"] is twin.backbone.image
    assert twin.clip is not model.clip


@pytest.mark.parametrize("templates", [PHOTO, TWO])
def test_class_weights_equal_those_of_the_backbones_forward(
    tiny_hf: Backbone, templates: tuple[str, ...]
) -> None:
    model = adapted(double(tiny_hf), alpha=0.5)
    features = model.encode_text(prompts(model.backbone, templates))
    expected = class_weights(features, len(templates))
    torch.testing.assert_close(model.class_weights(NAMES, templates), expected, **EXACT)
    model.alpha = 0
    untouched = class_weights(
        model.clip.encode_text(prompts(model.backbone, templates)), len(templates)
    )
    torch.testing.assert_close(model.class_weights(NAMES, templates), untouched, **EXACT)
    assert (expected - untouched).abs().max() > 1e-3


def test_class_weights_have_a_gradient_for_every_text_adapter(tiny_clip: Backbone) -> None:
    """Of which they are the function, so that they follow a change of the weights; reconstruction
    is none of it."""
    model = adapted(double(tiny_clip), cross_modal=True)
    before = model.class_weights(NAMES)
    (before * torch.randn_like(before)).sum().backward()
    reached = {
        name for name, parameter in model.adapters.named_parameters() if parameter.grad is not None
    }
    assert all(model.adapters.get_parameter(name).grad.any() for name in reached)  # type: ignore[union-attr]
    text = {
        f"text.{block}.{layer}.{part}"
        for block in "234"
        for layer in ("down", "up")
        for part in ("weight", "bias")
    }
    assert reached == text | {
        f"cross.{height}.{part}" for height in "012" for part in ("weight", "bias")
    }
    with torch.no_grad():
        model.adapters.text["4"].up.weight.mul_(2)
    assert not torch.allclose(model.class_weights(NAMES), before)


@pytest.mark.parametrize("limit", ["CHUNK_PROMPTS", "MAX_TOKENS"])
@pytest.mark.parametrize("templates", [PHOTO, TWO])
def test_text_in_chunks_equals_text_at_once(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch, templates: tuple[str, ...], limit: str
) -> None:
    """Of 2 prompts, or of as many tokens as 2 have."""
    backbone = double(tiny_clip)
    model = adapted(backbone, alpha=0.5).train()
    image = model.frozen(noise(backbone))
    tokens = prompts(backbone, templates)
    labels = torch.tensor([0, 1, 2, 0])

    def found() -> tuple[int, dict[str, Tensor], dict[str, Tensor], Tensor]:
        chunks = model.frozen_text(tokens)
        terms = model(labels, image, chunks, len(templates))
        weights = model.class_weights(NAMES, templates)
        model.zero_grad()
        (terms["loss"] + weights[:, 0].sum()).backward()
        gradients = {
            name: parameter.grad.clone() for name, parameter in model.adapters.named_parameters()
        }
        return len(chunks), terms, gradients, weights

    count, whole, gradients, weights = found()
    read = int(backbone.text.real_tokens(tokens)[0].sum())
    value = 2 if limit == "CHUNK_PROMPTS" else -(-read * 2 // len(tokens))
    monkeypatch.setattr(f"rmadapter.prompts.{limit}", value)
    sizes, frozen = [], backbone.text.frozen
    monkeypatch.setattr(
        type(backbone.text), "frozen", lambda _, t, first: sizes.append(len(t)) or frozen(t, first)
    )
    chunks, parts, others, again = found()
    assert max(sizes) == 2
    assert (count, chunks) == (1, -(-len(tokens) // 2))
    assert all(torch.allclose(whole[k], parts[k], rtol=1e-12) for k in whole)
    assert all(torch.allclose(gradients[k], others[k], rtol=1e-9, atol=1e-12) for k in gradients)
    torch.testing.assert_close(again, weights, **EXACT)


def test_reconstruction_is_computed_in_training_only(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted(tiny_clip)
    image = model.frozen(noise(tiny_clip))
    expected, errors = model.features("image", image, reconstruct=True)
    assert [error.shape for error in errors] == [(4, 17)] * 3
    monkeypatch.setattr(type(model.adapters), "reconstruction_error", None)
    features, errors = model.features("image", image)
    torch.testing.assert_close(features, expected)
    assert errors == []


def test_states_without_features_give_the_same_answers(tiny_clip: Backbone) -> None:
    """As `predict` makes them, which needs no untouched features; the untouched model is then
    computed from tokens."""
    model, images = adapted(tiny_clip), noise(tiny_clip)
    whole = model.frozen(images)
    bare = tiny_clip.image.frozen(images, model.first("image"), features=False)
    assert len(bare.features) == 0
    assert torch.equal(model.features("image", bare)[0], model.features("image", whole)[0])
    model.alpha = 0
    assert torch.equal(model.features("image", whole)[0], whole.features)
    assert_same_float32(model.features("image", bare)[0].detach(), whole.features)


def test_the_backbone_never_goes_into_training_mode(tiny_hf: Backbone) -> None:
    model = adapted(tiny_hf).train()
    assert model.adapters.training
    assert not any(module.training for module in model.clip.modules())
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {
        "adapters"
    }


def test_blocks_that_do_not_exist_are_refused(tiny_clip: Backbone) -> None:
    with pytest.raises(UserError, match=r"first_block=7, last_block=None: .* have 4 and 4 blocks"):
        AdaptedCLIP(tiny_clip, AdapterSettings(first_block=7))
    with pytest.raises(UserError, match=r"first_block=2, last_block=5: .* have 4 and 4 blocks"):
        AdaptedCLIP(tiny_clip, AdapterSettings(first_block=2, last_block=5))


def test_the_seed_alone_decides_the_initialisation(tiny_clip: Backbone) -> None:
    state = torch.random.get_rng_state()
    one, two, other = (
        adapted(tiny_clip, seed=seed).adapters.image["2"].down.weight for seed in (3, 3, 4)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), state)


# ---- MMA, written out plainly from its equations, against MMA by configuration ----


def scaled_gradient(x: Tensor, scale: float) -> Tensor:
    return x * scale + x.detach() * (1 - scale)


def mma_stack(
    blocks: Any, x: Tensor, mask: Tensor | None, weights: dict[int, Any], alpha: float
) -> Tensor:
    """x_i = block_i(x) + alpha up(relu(shared(relu(down(ln_1(x))))))"""
    for number, block in enumerate(blocks, 1):
        extra: Tensor | float = 0.0
        if number in weights:
            down, shared, up = weights[number]
            hidden = F.relu(down(block.ln_1(scaled_gradient(x, alpha))))
            extra = scaled_gradient(up(F.relu(shared(hidden))) * alpha, 1 / alpha)
        x = block(x, attn_mask=mask) + extra
    return x


def test_mma_by_configuration_equals_mma(tiny_clip: Backbone) -> None:
    backbone = double(tiny_clip)
    model = adapted(backbone, "mma", alpha=0.05).train()
    adapters, clip, alpha = model.adapters, model.clip, model.alpha
    images, tokens, labels = noise(backbone), prompts(backbone), torch.tensor([0, 1, 2, 1])

    def parts(side: str) -> dict[int, Any]:
        stack = getattr(adapters, side)
        return {
            int(b): (stack[b].down, adapters.cross[str(4 - int(b))], stack[b].up) for b in stack
        }

    def plain_logits() -> Tensor:
        visual = clip.visual
        x = mma_stack(
            visual.transformer.resblocks, visual._embeds(images), None, parts("image"), alpha
        )
        image = visual.ln_post(x[:, 0]) @ visual.proj
        t = clip.token_embedding(tokens) + clip.positional_embedding
        t = mma_stack(clip.transformer.resblocks, t, clip.attn_mask, parts("text"), alpha)
        text = clip.ln_final(t)[range(3), tokens.argmax(-1)] @ clip.text_projection
        return clip.logit_scale.exp() * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T

    logits = plain_logits()
    mine = clip.logit_scale.exp() * F.normalize(model.encode_image(images), dim=-1)
    torch.testing.assert_close(
        mine @ F.normalize(model.encode_text(tokens), dim=-1).T, logits, **EXACT
    )

    F.cross_entropy(logits, labels).backward()
    expected = {
        name: p.grad.clone() for name, p in adapters.named_parameters() if p.grad is not None
    }
    model.zero_grad()
    terms = model(labels, model.frozen(images), model.frozen_text(tokens))
    assert set(terms) == {"loss", "ce"}
    torch.testing.assert_close(terms["ce"], F.cross_entropy(logits, labels), **EXACT)
    terms["loss"].backward()
    assert len(expected) == len(list(adapters.parameters()))
    for name, parameter in adapters.named_parameters():
        assert parameter.grad is not None
        difference = (parameter.grad - expected[name]).abs().max() / expected[name].abs().max()
        assert difference < 1e-9, name


def test_the_consistency_in_16_bits_starts_above_zero(tiny_clip: Backbone) -> None:
    """By rounding alone: the features to keep are in float32."""
    model, found = adapted(tiny_clip, init="zero"), []
    image, text = model.frozen(noise(tiny_clip)), model.frozen_text(prompts(tiny_clip))
    labels = torch.zeros(len(image.features), dtype=torch.long)
    for half in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            terms = model(labels, image, text)
        found.append((terms["image_con"].item(), terms["text_con"].item()))
    assert found[0] == (0, 0)
    assert min(found[1]) > 0
