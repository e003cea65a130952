"""Views of blocks against the blocks' own forward, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from rmadapter.backbones import Backbone
from rmadapter.encoders import Grid
from rmadapter.encoders.blocks import Opaque, PostNorm, PreNorm, cast, view_of, with_own
from tests.helpers.rounding import double

EXACT = {"rtol": 1e-9, "atol": 1e-10}
KINDS = {"tiny_clip": PreNorm, "tiny_siglip": PreNorm, "tiny_hf": PreNorm, "tiny_eva": Opaque}


def image_blocks(backbone: Backbone) -> Any:
    visual: Any = backbone.model.visual
    return visual.trunk.blocks if hasattr(visual, "trunk") else visual.transformer.resblocks


def run(view: Any, x: torch.Tensor, layout: Grid) -> torch.Tensor:
    return view.close(x, layout.attend(*view.qkv(view.norm(x)), view.heads))


def run_for_read(view: Any, x: torch.Tensor, layout: Grid) -> torch.Tensor:
    n = view.norm(x)
    return view.close(
        layout.read(x),
        layout.attend_read(view.query(layout.read(n)), *view.key_value(n), view.heads),
    )


@pytest.mark.parametrize("name", KINDS)
def test_a_block_gets_the_leanest_view_that_computes_the_same(
    name: str, request: pytest.FixtureRequest
) -> None:
    assert all(
        type(view_of(block)) is KINDS[name] for block in image_blocks(request.getfixturevalue(name))
    )


@pytest.mark.parametrize("name", ["tiny_clip", "tiny_siglip", "tiny_hf"])
def test_a_pre_norm_view_equals_the_blocks_forward(
    name: str, request: pytest.FixtureRequest
) -> None:
    block = image_blocks(double(request.getfixturevalue(name)))[2]
    view = view_of(block)
    x, layout = torch.randn(3, 17, 64, dtype=torch.float64), Grid(0)
    torch.testing.assert_close(run(view, x, layout), block(x), **EXACT)
    torch.testing.assert_close(run_for_read(view, x, layout), block(x)[:, 0], **EXACT)


def test_a_post_norm_view_equals_the_blocks_forward(tiny_hf: Backbone) -> None:
    model: Any = double(tiny_hf).model
    block = model.text.transformer.encoder.layer[1]
    view = view_of(block)
    assert isinstance(view, PostNorm)
    x, layout = torch.randn(3, 7, 48, dtype=torch.float64), Grid(0)
    output = block(x)
    expected = output[0] if isinstance(output, tuple) else output
    assert view.norm(x) is x  # the block below ended with a LayerNorm
    torch.testing.assert_close(run(view, x, layout), expected, **EXACT)
    torch.testing.assert_close(run_for_read(view, x, layout), expected[:, 0], **EXACT)


def test_an_opaque_block_runs_by_its_forward_with_its_encoders_arguments(
    tiny_eva: Backbone,
) -> None:
    block = image_blocks(tiny_eva)[0]
    view = view_of(block)
    assert isinstance(view, Opaque)
    x, rope = torch.randn(1, 17, 64), torch.randn(16, 32)
    torch.testing.assert_close(view.norm(x), block.norm1(x))
    assert torch.equal(view.run(x, {"rope": rope}), block(x, rope=rope))
    assert not torch.allclose(view.run(x, {}), block(x, rope=rope))


@pytest.mark.parametrize("part", ["q_norm", "k_norm", "norm"])
def test_a_block_with_an_unknown_part_is_opaque(part: str, tiny_hf: Backbone) -> None:
    block = image_blocks(double(tiny_hf))[0]  # a copy, which may be changed
    setattr(block.attn, part, nn.LayerNorm(16))
    assert isinstance(view_of(block), Opaque)


def test_another_kind_of_attention_is_opaque(tiny_hf: Backbone) -> None:
    block = image_blocks(double(tiny_hf))[0]
    block.attn.__class__ = type("DiffAttention", (type(block.attn),), {})
    assert isinstance(view_of(block), Opaque)


def test_a_subclass_of_a_known_block_is_opaque(tiny_clip: Backbone) -> None:
    """It may compute something else."""
    block = image_blocks(double(tiny_clip))[0]
    block.__class__ = type("Another", (type(block),), {})
    assert isinstance(view_of(block), Opaque)


@pytest.mark.parametrize("name", KINDS)
def test_a_cast_copy_keeps_its_norms_and_leaves_the_block_unchanged(
    name: str, request: pytest.FixtureRequest
) -> None:
    block = image_blocks(request.getfixturevalue(name))[0]
    before = {key: tensor.clone() for key, tensor in block.state_dict().items()}
    twin = cast(block, torch.bfloat16)
    norms = {n for n, module in twin.named_modules() if isinstance(module, nn.LayerNorm)}
    for key, parameter in twin.named_parameters():
        kind = torch.float32 if key.rpartition(".")[0] in norms else torch.bfloat16
        assert parameter.dtype == kind, key
        torch.testing.assert_close(parameter.float(), before[key], rtol=2**-8, atol=0)
    assert all(torch.equal(tensor, before[key]) for key, tensor in block.state_dict().items())


def test_own_weights_change_the_copy_alone_and_others_are_shared(tiny_clip: Backbone) -> None:
    model: Any = tiny_clip.model
    pixels, own = torch.randn(2, 3, 32, 32), model.visual.ln_post.weight
    twin: Any = with_own(model, [own])
    pairs = zip(model.named_parameters(), twin.parameters(), strict=True)
    assert [name for (name, mine), its in pairs if mine is not its] == ["visual.ln_post.weight"]
    assert all(mine is its for mine, its in zip(model.buffers(), twin.buffers(), strict=True))
    with torch.no_grad():
        before = model.encode_image(pixels)
        assert torch.equal(twin.encode_image(pixels), before)
        twin.visual.ln_post.weight.data += 1
        assert torch.equal(model.encode_image(pixels), before)
        assert not torch.allclose(twin.encode_image(pixels), before)


def test_hooks_of_a_model_and_its_copy_are_shared(tiny_clip: Backbone) -> None:
    model, seen = tiny_clip.model, list[Any]()
    block: Any = tiny_clip.image.blocks[0]
    twin: Any = with_own(model, block.parameters())
    handle = block.register_forward_hook(lambda module, args, output: seen.append(module))
    twin.encode_image(torch.randn(1, 3, 32, 32))
    handle.remove()
    assert seen == [twin.visual.transformer.resblocks[0]]
