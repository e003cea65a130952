"""How the tokens of a batch are laid out in memory, and attention over them without padding.

Shapes: B images, C prompts, L tokens, T packed tokens, P prefix tokens, S own tokens of the longest
prompt, d width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor


def _heads(x: Tensor, heads: int) -> Tensor:
    """[..., L, d] -> [..., h, L, d/h]"""
    return torch.unflatten(x, -1, (heads, -1)).transpose(-3, -2)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """Apply multi-head attention of [N, L, d] on [N, M, d]; mask is True where a query may look."""
    q, k, v = _heads(q, heads), _heads(k, heads), _heads(v, heads)
    slow = q.dtype == torch.bfloat16 and q.device.type == "cpu"
    attend = _products if slow else F.scaled_dot_product_attention
    return attend(q, k, v, mask, is_causal=causal).transpose(1, 2).flatten(2)


def _products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
    """Compute attention by its definition. In bfloat16 on a CPU torch's fused one takes longer,
    mainly backward; softmax sums in float32 in both."""
    if is_causal:
        mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return (scores if mask is None else scores.masked_fill(~mask, -math.inf)).softmax(-1) @ v


def send(x: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device, which has it at the start of whatever it does next. The processor
    waits for no GPU, since that copies from pinned memory."""
    if x.device.type != "cpu" or device.type != "cuda":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)  # pragma: no cover: needs a GPU


@dataclass(frozen=True)
class Grid:
    """The layout of images: every sequence has the same L tokens, all of them real.

    Args:
        read_index: Token that the head reads; None for all.
        last: Number of tokens at the end that are read as well.
        extras: What the encoder passes to blocks of an unknown make besides the tokens, by block
            number.
    """

    read_index: int | None
    last: int = 0
    extras: Mapping[int, Mapping[str, object]] = field(default_factory=dict)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        return _attend(q, k, v, heads)

    def attend_read(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        """Apply attention of the tokens of `read`."""
        return _attend(q, k, v, heads) if self.last else _attend(q[:, None], k, v, heads)[:, 0]

    def looks(self, q: Tensor, k: Tensor, heads: int) -> Tensor:
        """Return how much the token that is read, with query [B, d], attends to each token: [B, L]
        with sum 1, mean over heads."""
        q, k = _heads(q[:, None], heads), _heads(k, heads)
        return (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1).mean(1)[:, 0]

    def read(self, x: Tensor) -> Tensor:
        """[B, L, d] -> [B, d], or [B, 1 + last, d]"""
        return torch.cat([x[:, :1], x[:, -self.last :]], 1) if self.last else x[:, self.read_index]

    def to(self, device: torch.device) -> Grid:
        extras: dict[int, dict[str, object]] = {}
        for block, values in self.extras.items():
            extras[block] = dict(values)
            for name, value in values.items():
                if isinstance(value, Tensor):
                    extras[block][name] = send(value, device)
        return replace(self, extras=extras)


@dataclass(frozen=True)
class Packed:
    """The layout of prompts, without padding.

    A shared prefix of P tokens comes once, then each prompt's own tokens, one after the other.

    Args:
        ids: Id [T] of each token.
        positions: Position [T] of each token.
        prefix: P.
        slots: Place [T - P] of each own token in the padded grid [C, S].
        grid: C and S.
        mask: What a grid token may look at, among prefix and own tokens.
        read_index: Packed index [C] of the token that is read; None if all are.
        read_mask: What that token may look at; None if all are read.
        weight: How many prompts hold the token, [T].
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
        return torch.unflatten(flat, 0, self.grid)

    def apart(self, x: Tensor) -> Tensor:
        """[T, d] -> [C, P + S, d]: the prefix before every prompt's own tokens."""
        grid = self.pad(x[self.prefix :])
        if not self.prefix:
            return grid
        return torch.cat([x[: self.prefix].expand(self.grid[0], -1, -1), grid], 1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        p = self.prefix
        grid = _attend(self.pad(q[p:]), self.apart(k), self.apart(v), heads, self.mask)
        attended = grid.flatten(0, 1).index_select(0, self.slots)
        if not p:
            return attended
        shared = _attend(q[None, :p], k[None, :p], v[None, :p], heads, causal=True)[0]
        return torch.cat([shared, attended])

    def attend_read(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        return _attend(q[:, None], self.apart(k), self.apart(v), heads, self.read_mask)[:, 0]

    def read(self, x: Tensor) -> Tensor:
        """[T, d] -> [C, d]"""
        assert self.read_index is not None
        return x.index_select(0, self.read_index)

    def to(self, device: torch.device) -> Packed:
        parts = vars(self)
        tensors = {name: part for name, part in parts.items() if isinstance(part, Tensor)}
        return Packed(**{**parts, **{name: send(part, device) for name, part in tensors.items()}})


def pack(
    tokens: Tensor, lengths: Tensor, read: Tensor | None, causal: bool, share: bool = True
) -> Packed:
    """Lay out prompts.

    In a graph that is traced for any tokens, padding is laid out too, since the number of tokens
    must not depend on their values.

    Args:
        tokens: Tokens [C, L].
        lengths: Number [C] of real tokens of each prompt.
        read: Position [C] of the token that is read; None if all are.
        causal: Whether a token attends only to itself and those before it.
        share: Whether to keep a common beginning once, which is exact only under causal attention.
    """
    if torch.compiler.is_compiling():
        return _whole(tokens, lengths, read, causal)
    count, device = len(tokens), tokens.device
    prefix = 0
    if causal and share:  # only then are the states of equal beginnings equal
        same = (tokens == tokens[:1]).all(0).long().cumprod(0).sum()
        prefix = int(min(same, lengths.min() - 1))
    counts = lengths - prefix  # of each prompt's own tokens
    width = int(counts.max())
    column = torch.arange(width, device=device)
    real = column < counts[:, None]  # [C, S]
    slots = real.flatten().nonzero()[:, 0]
    ids = torch.cat([tokens[0, :prefix], tokens[:, prefix : prefix + width][real]])
    positions = torch.cat(
        [torch.arange(prefix, device=device), (column + prefix).expand(count, -1)[real]]
    )
    keys = torch.arange(prefix + width, device=device)
    # [S, P + S], the same for every prompt, or [C, 1, 1, S]
    mask = keys <= column[:, None] + prefix if causal else real[:, None, None, :]
    read_index = read_mask = None
    if read is not None:
        start = torch.cat([counts.new_zeros(1), counts.cumsum(0)[:-1]])
        read_index = prefix + start + read - prefix
        limit = read if causal else lengths - 1
        read_mask = (keys <= limit[:, None])[:, None, None, :]
    weight = torch.ones(len(ids), device=device)
    weight[:prefix] = count
    return Packed(
        ids, positions, prefix, slots, (count, width), mask, read_index, read_mask, weight
    )


def _whole(tokens: Tensor, lengths: Tensor, read: Tensor | None, causal: bool) -> Packed:
    """Lay out prompts with nothing cut and nothing shared; a weight of 0 marks padding."""
    count, width = tokens.shape
    column = torch.arange(width, device=tokens.device)
    rows = torch.arange(count, device=tokens.device)
    real = column < lengths[:, None]
    mask = column <= column[:, None] if causal else real[:, None, None, :]
    read_index = read_mask = None
    if read is not None:
        read_index = rows * width + read
        read_mask = (column <= (read if causal else lengths - 1)[:, None])[:, None, None, :]
    slots = torch.arange(count * width, device=tokens.device)
    weight = real.flatten().float()
    grid = (count, width)
    return Packed(
        tokens.flatten(), column.repeat(count), 0, slots, grid, mask, read_index, read_mask, weight
    )
