"""Transformer blocks by the roles of their parts, on tokens laid out without padding.

A view runs the backbone's own modules, in the order of the block's own forward, but lets the caller leave out what is
not read. Shapes: B images, C prompts, L tokens, T packed tokens, P prefix tokens, S own tokens of the longest prompt,
d width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _heads(x: Tensor, heads: int) -> Tensor:
    """[..., L, d] -> [..., h, L, d/h]"""
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """Multi-head attention of [N, L, d] on [N, M, d]; mask is True where a query may look."""
    q, k, v = _heads(q, heads), _heads(k, heads), _heads(v, heads)
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal).transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class Dense:
    """Images: every sequence has the same L tokens, all of them real. read: index of the one token that is read."""

    read_index: int | None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        return _attend(q, k, v, heads)

    def attend_read(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        return _attend(q[:, None], k, v, heads)[:, 0]

    def read(self, x: Tensor) -> Tensor:
        """[B, L, d] -> [B, d]"""
        return x[:, self.read_index]

    @property
    def weight(self) -> None:
        return None


@dataclass(frozen=True)
class Packed:
    """Prompts without padding: a shared prefix of P tokens once, then each prompt's own tokens, one after the other.

    ids, positions: [T] token and place of each packed token. slots: [T - P] its place in the padded grid [C, S].
    mask: what a grid token may look at, among prefix and own tokens. read_index: [C] packed index of the token read,
    and read_mask what that one may look at; None when all are read. weight: [T] how many prompts hold the token.
    """

    ids: Tensor
    positions: Tensor
    prefix: int
    slots: Tensor
    grid: tuple[int, int]
    mask: Tensor
    read_index: Tensor | None
    read_mask: Tensor | None
    weight: Tensor

    def pad(self, x: Tensor) -> Tensor:
        """Own tokens [T - P, d] -> grid [C, S, d], zero where there is no token."""
        rows, columns = self.grid
        flat = x.new_zeros(rows * columns, x.shape[-1]).index_copy(0, self.slots, x)
        return flat.unflatten(0, self.grid)

    def _keys(self, x: Tensor) -> Tensor:
        """[T, d] -> [C, P + S, d]: the prefix before every prompt's own tokens."""
        own = self.pad(x[self.prefix :])
        return torch.cat([x[: self.prefix].expand(self.grid[0], -1, -1), own], 1) if self.prefix else own

    def attend(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        p = self.prefix
        own = _attend(self.pad(q[p:]), self._keys(k), self._keys(v), heads, self.mask)
        own = own.flatten(0, 1).index_select(0, self.slots)
        if not p:
            return own
        shared = _attend(q[None, :p], k[None, :p], v[None, :p], heads, causal=True)[0]
        return torch.cat([shared, own])

    def attend_read(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        return _attend(q[:, None], self._keys(k), self._keys(v), heads, self.read_mask)[:, 0]

    def read(self, x: Tensor) -> Tensor:
        """[T, d] -> [C, d]"""
        return x.index_select(0, self.read_index)  # type: ignore[arg-type]

    def to(self, device: torch.device) -> Packed:
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)


def pack(tokens: Tensor, lengths: Tensor, read: Tensor | None, causal: bool, share: bool = True) -> Packed:
    """Lay out prompts [C, L] of which the first `lengths` [C] tokens are real; read: [C] position of the one read.

    share: keep a common beginning once, which is exact under causal attention alone.
    """
    count, device = len(tokens), tokens.device
    prefix = 0
    if causal and share:  # only then are the states of equal beginnings equal
        same = (tokens == tokens[:1]).all(0).long().cumprod(0).sum()
        prefix = int(min(same, lengths.min() - 1))
    own = lengths - prefix
    width = int(own.max())
    column = torch.arange(width, device=device)
    real = column < own[:, None]  # [C, S]
    slots = real.flatten().nonzero()[:, 0]
    ids = torch.cat([tokens[0, :prefix], tokens[:, prefix : prefix + width][real]])
    positions = torch.cat([torch.arange(prefix, device=device), (column + prefix).expand(count, -1)[real]])
    keys = torch.arange(prefix + width, device=device)
    # [S, P + S], the same for every prompt, or [C, 1, 1, S]
    mask = keys <= column[:, None] + prefix if causal else real[:, None, None, :]
    read_index = read_mask = None
    if read is not None:
        start = torch.cat([own.new_zeros(1), own.cumsum(0)[:-1]])
        read_index = prefix + start + read - prefix
        limit = read if causal else lengths - 1
        read_mask = (keys <= limit[:, None])[:, None, None, :]
    weight = torch.ones(len(ids), device=device)
    weight[:prefix] = count
    return Packed(ids, positions, prefix, slots, (count, width), mask, read_index, read_mask, weight)


class PreNorm:
    """A pre-norm block of open_clip or timm by the roles of its parts; same arithmetic as its own forward."""

    def __init__(self, b: Any) -> None:
        self.fused = hasattr(b, "ln_1")  # open_clip's names, else timm's
        self.attn, self.mlp = b.attn, b.mlp
        if self.fused:
            self.norm, self.norm2, self.ls1, self.ls2 = b.ln_1, b.ln_2, b.ls_1, b.ls_2
            self.out = b.attn.out_proj
        else:
            self.norm, self.norm2, self.ls1, self.ls2 = b.norm1, b.norm2, b.ls1, b.ls2
            self.out = b.attn.proj
        self.heads = b.attn.num_heads

    def _project(self, n: Tensor, start: int, stop: int) -> Tensor:
        """Rows start..stop, in widths, of the fused query-key-value projection."""
        a, d = self.attn, n.shape[-1]
        weight, bias = (a.in_proj_weight, a.in_proj_bias) if self.fused else (a.qkv.weight, a.qkv.bias)
        return F.linear(n, weight[start * d : stop * d], None if bias is None else bias[start * d : stop * d])

    def qkv(self, n: Tensor) -> tuple[Tensor, ...]:
        return self._project(n, 0, 3).chunk(3, -1)

    def query(self, n: Tensor) -> Tensor:
        return self._project(n, 0, 1)

    def key_value(self, n: Tensor) -> tuple[Tensor, ...]:
        return self._project(n, 1, 3).chunk(2, -1)

    def close(self, x: Tensor, attended: Tensor) -> Tensor:
        """Everything after attention: its output projection, the residuals and the MLP."""
        x = x + self.ls1(self.out(attended))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PostNorm:
    """A post-norm block of a Hugging Face encoder of the BERT family."""

    def __init__(self, block: Any) -> None:
        self.block = block
        self.heads = self.block.attention.self.num_attention_heads

    def norm(self, x: Tensor) -> Tensor:
        return x  # the block below ended with a LayerNorm

    def qkv(self, n: Tensor) -> tuple[Tensor, ...]:
        return self.query(n), *self.key_value(n)

    def query(self, n: Tensor) -> Tensor:
        return self.block.attention.self.query(n)

    def key_value(self, n: Tensor) -> tuple[Tensor, ...]:
        a = self.block.attention.self
        return a.key(n), a.value(n)

    def close(self, x: Tensor, attended: Tensor) -> Tensor:
        x = self.block.attention.output(attended, x)
        return self.block.output(self.block.intermediate(x), x)


class Whole:
    """A block of another make, run by its own forward on whole sequences; `kwargs` is what its encoder passes to it."""

    def __init__(self, block: Any) -> None:
        self.block = block
        self.kwargs: dict[str, Any] = {}

    def norm(self, x: Tensor) -> Tensor:
        return first_norm(self.block)(x)


def first_norm(block: Any) -> Any:
    """The block's own LayerNorm in front of attention, the identity for a post-norm block."""
    for name in ("ln_1", "norm1"):
        if hasattr(block, name):
            return getattr(block, name)
    return nn.Identity()


def block_view(b: Any) -> PreNorm | PostNorm | Whole:
    """The leanest view that computes exactly what the block's own forward computes."""
    from open_clip.transformer import ResidualAttentionBlock
    from timm.models.vision_transformer import Block

    if type(b) is ResidualAttentionBlock and b.attn.batch_first:
        return PreNorm(b)
    if type(b) is Block:
        plain = [getattr(b.attn, name, None) for name in ("q_norm", "k_norm", "norm", "gate")]
        if all(part is None or isinstance(part, nn.Identity) for part in plain) and hasattr(b.attn, "qkv"):
            return PreNorm(b)
    if hasattr(b, "intermediate") and hasattr(b, "attention") and hasattr(b.attention, "self"):
        return PostNorm(b)
    return Whole(b)
