"""AdaptedCLIP: attaching, detaching, copying, the alpha dial, cached class weights, and MMA as a special case."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rmadapter.backbone import Backbone
from rmadapter.config import Config
from rmadapter.errors import UserError
from rmadapter.model import AdaptedCLIP

NAMES = ("cat", "small dog", "tree house")
BACKBONES = ["tiny_clip", "tiny_siglip", "tiny_eva", "tiny_hf"]


def adapted(backbone: Backbone, preset: str = "rmadapter", **fields: Any) -> AdaptedCLIP:
    return AdaptedCLIP(backbone, Config.make({"first_block": 2, "init": "kaiming", "rank": 8, **fields}, preset))


def pictures(backbone: Backbone) -> Tensor:
    return torch.randn(4, 3, backbone.image_size, backbone.image_size, generator=torch.Generator().manual_seed(0))


def answers(clip: Any, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    return clip.encode_image(images), clip.encode_text(tokens)


@pytest.mark.parametrize("name", BACKBONES)
def test_attached_then_detached_the_backbone_is_what_it_was(name: str, request: pytest.FixtureRequest) -> None:
    backbone = request.getfixturevalue(name)
    images, weights = pictures(backbone), copy.deepcopy(backbone.model.state_dict())
    model = adapted(backbone)
    tokens = model.prompts(NAMES)
    before = answers(backbone.model, images, tokens)
    with model.attached() as clip:
        during = answers(clip, images, tokens)
    after = answers(backbone.model, images, tokens)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not any(torch.allclose(a, b) for a, b in zip(before, during, strict=True))
    assert all(torch.equal(tensor, weights[key]) for key, tensor in backbone.model.state_dict().items())
    assert not any(module._forward_hooks for module in backbone.model.modules())


def test_an_error_while_attached_detaches(tiny_clip: Backbone) -> None:
    with pytest.raises(RuntimeError, match="mine"), adapted(tiny_clip).attached():
        raise RuntimeError("mine")
    assert not any(module._forward_hooks for module in tiny_clip.model.modules())


@pytest.mark.parametrize("name", BACKBONES)
def test_alpha_zero_is_the_untouched_backbone_bit_for_bit(name: str, request: pytest.FixtureRequest) -> None:
    backbone = request.getfixturevalue(name)
    model, images = adapted(backbone), pictures(backbone)
    tokens = model.prompts(NAMES)
    with model.dial(0):
        mine = model.encode_image(images), model.encode_text(tokens)
    assert all(torch.equal(a, b) for a, b in zip(mine, answers(backbone.model, images, tokens), strict=True))
    assert model.alpha == model.config.alpha


def test_the_dial_goes_from_untouched_to_adapted(tiny_clip: Backbone) -> None:
    model, images = adapted(tiny_clip, alpha=0.2), pictures(tiny_clip)
    untouched = tiny_clip.model.encode_image(images)  # type: ignore[operator]
    moved = []
    for alpha in (0.05, 0.1, 0.2):
        with model.dial(alpha), torch.no_grad():
            moved.append(float((model.encode_image(images) - untouched).norm()))
    assert 0 < moved[0] < moved[1] < moved[2]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1])
def test_an_alpha_that_is_no_dial_setting_is_refused(tiny_clip: Backbone, value: float) -> None:
    model = adapted(tiny_clip)
    with pytest.raises(UserError, match="alpha="):
        model.alpha = value
    assert model.alpha == model.config.alpha


def test_zero_initialised_adapters_start_as_the_backbone(tiny_clip: Backbone) -> None:
    model, images = adapted(tiny_clip, init="zero"), pictures(tiny_clip)
    torch.testing.assert_close(model.encode_image(images), tiny_clip.model.encode_image(images))  # type: ignore[operator]


def test_two_models_share_one_backbone(tiny_clip: Backbone) -> None:
    images = pictures(tiny_clip)
    one, two = adapted(tiny_clip, alpha=0.1), adapted(tiny_clip, alpha=0.3)
    alone = one.encode_image(images)
    two.encode_image(images)
    assert torch.equal(one.encode_image(images), alone)


@pytest.mark.parametrize("while_attached", [False, True])
def test_a_deep_copy_is_independent(tiny_clip: Backbone, while_attached: bool) -> None:
    model, images = adapted(tiny_clip), pictures(tiny_clip)
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
    untouched = tiny_clip.model.encode_image(images)  # type: ignore[operator]
    torch.testing.assert_close(through(images), untouched, rtol=1e-4, atol=1e-5)
    assert twin.clip is twin.backbone.model
    assert twin.clip is not model.clip


def test_class_weights_are_cached_until_an_adapter_changes(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted(tiny_clip)
    first = model.class_weights(NAMES)
    torch.testing.assert_close(
        first, F.normalize(model.encode_text(model.prompts(NAMES)), dim=-1), rtol=1e-4, atol=1e-5
    )
    calls = []
    real = model.frozen
    monkeypatch.setattr(model, "frozen", lambda *a: calls.append(a) or real(*a))
    assert model.class_weights(list(NAMES)) is first
    assert not calls
    # Through `.data`, which leaves no trace in torch's own counters.
    model.adapters.text["4"].up.weight.data.add_(torch.randn(48, 8))
    assert not torch.allclose(model.class_weights(NAMES), first)
    with model.dial(0):
        untouched = tiny_clip.model.encode_text(model.prompts(NAMES))  # type: ignore[operator]
        torch.testing.assert_close(model.class_weights(NAMES), F.normalize(untouched, dim=-1), rtol=1e-4, atol=1e-5)
    assert len(calls) == 2


def test_novelty_is_the_summed_reconstruction_error(tiny_clip: Backbone) -> None:
    model, images = adapted(tiny_clip), pictures(tiny_clip)
    seen: list[Tensor] = []
    handles = [
        tower_block.register_forward_hook(lambda m, args, out: seen.append(args[0]))
        for tower_block in model.towers["image"].modules[1:]
    ]
    with torch.no_grad():
        model.encode_image(images)
    for handle in handles:
        handle.remove()
    expected = sum(
        (adapter.reconstruct(x) - x).square().mean((1, 2))
        for adapter, x in zip(model.adapters.image.values(), seen, strict=True)
    )
    torch.testing.assert_close(model.novelty(images), expected)


def test_the_backbone_never_goes_into_training_mode(tiny_hf: Backbone) -> None:
    model = adapted(tiny_hf).train()
    assert model.adapters.training
    assert not any(module.training for module in model.clip.modules())
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {"adapters"}


def test_blocks_that_do_not_exist_are_refused(tiny_clip: Backbone) -> None:
    with pytest.raises(UserError, match=r"first_block=7.* have 4 and 4 blocks"):
        adapted(tiny_clip, first_block=7)


def test_the_seed_alone_decides_the_initialisation(tiny_clip: Backbone) -> None:
    state = torch.random.get_rng_state()
    one, two, other = (adapted(tiny_clip, seed=seed).adapters.image["2"].down.weight for seed in (3, 3, 4))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), state)


# ---- MMA, written out plainly from its equations (METHOD: "MMA itself"), against MMA by configuration ----


def scaled_gradient(x: Tensor, scale: float) -> Tensor:
    return x * scale + x.detach() * (1 - scale)


def mma_stack(blocks: Any, x: Tensor, mask: Tensor | None, weights: dict[int, Any], alpha: float) -> Tensor:
    """x_i = block_i(x) + alpha up(relu(shared(relu(down(ln_1(x))))))"""
    for number, block in enumerate(blocks, 1):
        extra: Tensor | float = 0.0
        if number in weights:
            down, shared, up = weights[number]
            hidden = F.relu(down(block.ln_1(scaled_gradient(x, alpha))))
            extra = scaled_gradient(up(F.relu(shared(hidden))) * alpha, 1 / alpha)
        x = block(x, attn_mask=mask) + extra
    return x


def test_mma_by_configuration_is_mma(tiny_clip: Backbone) -> None:
    model = adapted(tiny_clip, "mma", alpha=0.05).train()
    adapters, clip, alpha = model.adapters, model.clip, model.alpha
    images, tokens, labels = pictures(tiny_clip), model.prompts(NAMES), torch.tensor([0, 1, 2, 1])

    def parts(side: str) -> dict[int, Any]:
        stack = getattr(adapters, side)
        return {int(b): (stack[b].down, adapters.cross[str(4 - int(b))], stack[b].up) for b in stack}

    def plain_logits() -> Tensor:
        visual = clip.visual
        x = mma_stack(visual.transformer.resblocks, visual._embeds(images), None, parts("image"), alpha)
        image = visual.ln_post(x[:, 0]) @ visual.proj
        t = clip.token_embedding(tokens) + clip.positional_embedding
        t = mma_stack(clip.transformer.resblocks, t, clip.attn_mask, parts("text"), alpha)
        text = clip.ln_final(t)[range(3), tokens.argmax(-1)] @ clip.text_projection
        return clip.logit_scale.exp() * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T

    logits = plain_logits()
    mine = model.logits(model.encode_image(images), F.normalize(model.encode_text(tokens), dim=-1))
    torch.testing.assert_close(mine, logits, rtol=1e-5, atol=1e-5)

    F.cross_entropy(logits, labels).backward()
    expected = {name: p.grad.clone() for name, p in adapters.named_parameters() if p.grad is not None}
    model.zero_grad()
    terms = model(labels, model.frozen("image", images), model.frozen("text", tokens))
    assert set(terms) == {"loss", "ce"}
    terms["loss"].backward()
    assert len(expected) == len(list(adapters.parameters()))
    for name, parameter in adapters.named_parameters():
        assert parameter.grad is not None
        difference = (parameter.grad - expected[name]).abs().max() / expected[name].abs().max()
        assert difference < 1e-4, name
