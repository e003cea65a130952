"""Packed prompts against padded ones, and views of blocks against the blocks' own forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rmadapter.backbone import Backbone
from rmadapter.blocks import Dense, Packed, PostNorm, PreNorm, Whole, block_view, first_norm, pack

TOKENS = torch.tensor([[9, 1, 2, 3, 8, 0, 0], [9, 1, 4, 8, 0, 0, 0], [9, 1, 2, 5, 6, 7, 8]])
LENGTHS = torch.tensor([5, 4, 7])


def test_causal_prompts_share_their_common_beginning() -> None:
    packed = pack(TOKENS, LENGTHS, LENGTHS - 1, causal=True)
    assert packed.prefix == 2
    assert packed.ids.tolist() == [9, 1, 2, 3, 8, 4, 8, 2, 5, 6, 7, 8]
    assert packed.positions.tolist() == [0, 1, 2, 3, 4, 2, 3, 2, 3, 4, 5, 6]
    assert packed.weight.tolist() == [3, 3] + [1] * 10  # the prefix stands for three prompts
    assert packed.read_index is not None
    assert packed.ids[packed.read_index].tolist() == [8, 8, 8]
    assert packed.weight.sum() == LENGTHS.sum()


def test_prompts_that_look_ahead_share_nothing() -> None:
    packed = pack(TOKENS, LENGTHS, None, causal=False)
    assert packed.prefix == 0
    assert len(packed.ids) == LENGTHS.sum()
    assert packed.read_index is None
    assert packed.mask.squeeze((1, 2)).sum(-1).tolist() == LENGTHS.tolist()


def test_equal_prompts_and_a_single_one_keep_a_token_of_their_own() -> None:
    for tokens in (TOKENS[:1], TOKENS[:1].expand(3, -1)):
        packed = pack(tokens, LENGTHS[:1].expand(len(tokens)), LENGTHS[:1].expand(len(tokens)) - 1, causal=True)
        assert packed.prefix == 4
        assert packed.grid == (len(tokens), 1)


def test_padding_of_a_packed_layout_is_zero() -> None:
    packed = pack(TOKENS, LENGTHS, LENGTHS - 1, causal=True)
    grid = packed.pad(packed.ids[packed.prefix :, None].float())[..., 0]
    assert grid.tolist() == [[2, 3, 8, 0, 0], [4, 8, 0, 0, 0], [2, 5, 6, 7, 8]]


def spread(packed: Packed, x: torch.Tensor, length: int) -> torch.Tensor:
    """Packed [T, d] -> padded [C, L, d], the shared prefix repeated."""
    count = packed.grid[0]
    own = packed.pad(x[packed.prefix :])
    full = torch.cat([x[: packed.prefix].expand(count, -1, -1), own], 1)
    return torch.cat([full, full.new_zeros(count, length - full.shape[1], full.shape[2])], 1)


def lean_block(view: Any, x: torch.Tensor, layout: Any) -> torch.Tensor:
    return view.close(x, layout.attend(*view.qkv(view.norm(x)), view.heads))


def lean_top(view: Any, x: torch.Tensor, layout: Any) -> torch.Tensor:
    n = view.norm(x)
    attended = layout.attend_read(view.query(layout.read(n)), *view.key_value(n), view.heads)
    return view.close(layout.read(x), attended)


def test_causal_block_on_packed_tokens_equals_the_padded_block(tiny_clip: Backbone) -> None:
    block = tiny_clip.model.transformer.resblocks[1]  # type: ignore[union-attr,index]
    view = block_view(block)
    assert isinstance(view, PreNorm)
    packed = pack(TOKENS, LENGTHS, LENGTHS - 1, causal=True)
    x = torch.randn(len(packed.ids), 48)
    causal = torch.full((7, 7), float("-inf")).triu(1)
    padded = block(spread(packed, x, 7), attn_mask=causal)
    mine = spread(packed, lean_block(view, x, packed), 7)
    real = torch.arange(7) < LENGTHS[:, None]
    torch.testing.assert_close(mine[real], padded[real], rtol=1e-5, atol=1e-5)
    read = padded[range(3), LENGTHS - 1]
    torch.testing.assert_close(lean_top(view, x, packed), read, rtol=1e-5, atol=1e-5)


def test_bert_block_on_packed_tokens_equals_the_padded_block(tiny_hf: Backbone) -> None:
    block = tiny_hf.model.text.transformer.encoder.layer[1]  # type: ignore[union-attr,index]
    view = block_view(block)
    assert isinstance(view, PostNorm)
    packed = pack(TOKENS, LENGTHS, None, causal=False)
    x = torch.randn(len(packed.ids), 48)
    real = torch.arange(7) < LENGTHS[:, None]
    mask = torch.zeros(3, 1, 1, 7).masked_fill(~real[:, None, None], float("-inf")).expand(3, 1, 7, 7)
    output = block(spread(packed, x, 7), mask)
    padded = output[0] if isinstance(output, tuple) else output
    torch.testing.assert_close(spread(packed, lean_block(view, x, packed), 7)[real], padded[real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["tiny_clip", "tiny_siglip", "tiny_hf"])
def test_image_block_equals_its_own_forward(name: str, request: pytest.FixtureRequest) -> None:
    visual: Any = request.getfixturevalue(name).model.visual
    block = visual.trunk.blocks[2] if hasattr(visual, "trunk") else visual.transformer.resblocks[2]
    view = block_view(block)
    assert isinstance(view, PreNorm)
    x, layout = torch.randn(3, 17, 64), Dense(0)
    torch.testing.assert_close(lean_block(view, x, layout), block(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lean_top(view, x, layout), block(x)[:, 0], rtol=1e-5, atol=1e-5)


def test_a_block_of_another_make_is_run_whole(tiny_eva: Backbone) -> None:
    block: Any = tiny_eva.model.visual.trunk.blocks[0]  # type: ignore[union-attr,index]
    view = block_view(block)
    assert isinstance(view, Whole)
    x = torch.randn(1, 2, 64)
    torch.testing.assert_close(view.norm(x), block.norm1(x))


def test_first_norm_of_a_post_norm_block_is_the_identity(tiny_hf: Backbone) -> None:
    x = torch.randn(2, 48)
    block = tiny_hf.model.text.transformer.encoder.layer[0]  # type: ignore[union-attr,index]
    assert first_norm(block)(x) is x
