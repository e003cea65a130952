"""Layouts of tokens without padding, and attention over them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from rmadapter.encoders import Grid, Packed, layouts
from rmadapter.encoders.layouts import pack

TOKENS = torch.tensor([[9, 1, 2, 3, 8, 0, 0], [9, 1, 4, 8, 0, 0, 0], [9, 1, 2, 5, 6, 7, 8]])
LENGTHS = torch.tensor([5, 4, 7])
REAL = torch.arange(7) < LENGTHS[:, None]
EXACT = {"rtol": 1e-9, "atol": 1e-10}  # in float64


def test_causal_prompts_share_their_common_beginning() -> None:
    packed = pack(TOKENS, LENGTHS, LENGTHS - 1, causal=True)
    assert packed.prefix == 2
    assert packed.ids.tolist() == [9, 1, 2, 3, 8, 4, 8, 2, 5, 6, 7, 8]
    assert packed.positions.tolist() == [0, 1, 2, 3, 4, 2, 3, 2, 3, 4, 5, 6]
    assert packed.weight.tolist() == [3, 3] + [1] * 10  # the prefix stands for three prompts
    assert packed.ids[packed.read_index].tolist() == [8, 8, 8]
    assert packed.weight.sum() == LENGTHS.sum()


def test_without_sharing_every_prompt_keeps_its_beginning() -> None:
    packed = pack(TOKENS, LENGTHS, LENGTHS - 1, causal=True, share=False)
    assert packed.prefix == 0
    assert packed.ids.tolist() == TOKENS[REAL].tolist()
    assert packed.weight.tolist() == [1] * 16
    assert packed.read_index.tolist() == [4, 8, 15]


def test_prompts_without_causal_attention_share_nothing() -> None:
    packed = pack(TOKENS, LENGTHS, None, causal=False)
    assert packed.prefix == 0
    assert len(packed.ids) == LENGTHS.sum()
    assert packed.read_index is None
    assert packed.mask.squeeze((1, 2)).sum(-1).tolist() == LENGTHS.tolist()


@pytest.mark.parametrize("count", [1, 3])
def test_equal_prompts_and_a_single_one_keep_one_unshared_token(count: int) -> None:
    lengths = LENGTHS[:1].expand(count)
    packed = pack(TOKENS[:1].expand(count, -1), lengths, lengths - 1, causal=True)
    assert packed.prefix == 4
    assert packed.grid == (count, 1)


def test_padding_of_a_packed_layout_is_zero() -> None:
    packed = pack(TOKENS, LENGTHS, LENGTHS - 1, causal=True)
    grid = packed.pad(packed.ids[packed.prefix :, None].float())[..., 0]
    assert grid.tolist() == [[2, 3, 8, 0, 0], [4, 8, 0, 0, 0], [2, 5, 6, 7, 8]]


def spread(packed: Packed, x: Tensor) -> Tensor:
    """Packed [T, d] -> padded [C, 7, d], the shared prefix repeated."""
    full = torch.cat(
        [x[: packed.prefix].expand(len(TOKENS), -1, -1), packed.pad(x[packed.prefix :])], 1
    )
    return torch.cat([full, full.new_zeros(len(TOKENS), 7 - full.shape[1], full.shape[2])], 1)


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None
) -> Tensor:
    """Of padded [C, L, d], by torch; mask [C, L, L] is True where a query may look."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return (
        scaled_dot_product_attention(q, k, v, None if mask is None else mask[:, None])
        .transpose(1, 2)
        .flatten(2)
    )


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_packed_attention_equals_masked_padded_attention(causal: bool, share: bool) -> None:
    """A token that looks at padding, ahead, or into another prompt breaks it."""
    place = LENGTHS - 1 if causal else LENGTHS - 3  # a token that looks ahead need not be the last
    packed = pack(TOKENS, LENGTHS, place, causal, share)
    qkv = torch.randn(3, len(packed.ids), 12, dtype=torch.float64)
    mask = REAL[:, None] & (torch.ones(7, 7).tril().bool() if causal else torch.ones(7, 7).bool())
    expected = plain_attention(*(spread(packed, x) for x in qkv), 2, mask)
    found = packed.attend(*qkv, 2)
    torch.testing.assert_close(spread(packed, found)[REAL], expected[REAL], **EXACT)
    read = packed.attend_read(packed.read(qkv[0]), qkv[1], qkv[2], 2)
    torch.testing.assert_close(read, expected[range(3), place], **EXACT)
    torch.testing.assert_close(read, packed.read(found), **EXACT)


@pytest.mark.parametrize("last", [0, 2])
def test_a_grid_attends_for_the_tokens_that_it_reads(last: int) -> None:
    """The class token, or with it the tokens that a method put at the end."""
    grid = Grid(0, last)
    q, k, v = torch.randn(3, 4, 6, 12, dtype=torch.float64)
    whole = plain_attention(q, k, v, 3)
    torch.testing.assert_close(grid.attend(q, k, v, 3), whole, **EXACT)
    rows = [0, -2, -1] if last else 0
    torch.testing.assert_close(grid.read(whole), whole[:, rows], **EXACT)
    torch.testing.assert_close(grid.attend_read(grid.read(q), k, v, 3), whole[:, rows], **EXACT)


def test_layouts_moved_to_a_device_keep_everything() -> None:
    """To the meta device, which every machine has: each tensor goes along, and what is no tensor
    stays."""
    packed, meta = pack(TOKENS, LENGTHS, None, causal=False), torch.device("meta")
    moved = packed.to(meta)
    tensors = {name for name, value in vars(packed).items() if isinstance(value, Tensor)}
    assert tensors == {"ids", "positions", "slots", "mask", "weight"}
    assert all(getattr(moved, name).device == meta for name in tensors)
    assert (moved.prefix, moved.grid, moved.read_index) == (packed.prefix, packed.grid, None)
    grid = Grid(0, 1, {2: {"rope": torch.zeros(2), "mask": None}}).to(meta)
    assert (grid.read_index, grid.last, grid.extras[2]["mask"]) == (0, 1, None)
    assert grid.extras[2]["rope"].device == meta


@pytest.mark.parametrize("kind", ["none", "mask", "causal"])
def test_attention_in_bfloat16_equals_torchs(kind: str) -> None:
    """On a CPU it is two products; float64 tells how far each of the two is off."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 9, 32, generator=generator, dtype=torch.float64) for _ in range(3))
    mask = torch.rand(9, 9, generator=generator) < 0.7
    mask.fill_diagonal_(True)
    given = {"mask": mask if kind == "mask" else None, "causal": kind == "causal"}
    exact = layouts._attend(q, k, v, 4, **given)
    found = layouts._attend(*(x.bfloat16() for x in (q, k, v)), 4, **given)
    heads = [layouts._heads(x.bfloat16(), 4) for x in (q, k, v)]
    own = (
        scaled_dot_product_attention(*heads, given["mask"], is_causal=given["causal"])
        .transpose(1, 2)
        .flatten(2)
    )
    errors = [float((x.double() - exact).norm() / exact.norm()) for x in (found, own)]
    assert found.dtype == torch.bfloat16
    assert errors[0] < 4 * errors[1] < 0.1


def test_looks_are_the_attention_of_the_token_that_is_read() -> None:
    """torch's own attention module says the same, mean of its heads."""
    torch.manual_seed(0)
    attention = torch.nn.MultiheadAttention(
        12, 3, bias=False, batch_first=True, dtype=torch.float64
    )
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    q, k, _ = (x @ attention.in_proj_weight.T).chunk(3, -1)
    expected = attention(x, x, x, need_weights=True)[1][:, 0]
    torch.testing.assert_close(Grid(0).looks(q[:, 0], k, 3), expected, **EXACT)


@pytest.mark.parametrize("causal", [True, False])
def test_apart_gives_each_prompt_the_shared_beginning(causal: bool) -> None:
    packed = pack(TOKENS, LENGTHS, LENGTHS - 1, causal)
    apart = packed.apart(packed.ids[:, None].double())[..., 0]
    assert torch.equal(apart[REAL], TOKENS[REAL].double())
    assert not apart[~REAL].any()
