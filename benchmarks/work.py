"""The floating-point work that a training step cannot do without, counted from shapes: matrix
products alone.

One product of [m, k] and [k, n] is 2 m k n operations. A product counts once however often a
program computes it, and only for tokens that the loss depends on: no padding, no masked pair of
tokens, nothing computed a second time in the backward pass. Norms, activations, softmax, residuals
and the optimizer are no products and do not count, so that the share of the machine's
matrix-product rate that a step reaches is a lower bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from rmadapter.adapter import Adapters, DualBranchAdapter
from rmadapter.encoders import Encoder, Grid, States
from rmadapter.model import AdaptedCLIP


@dataclass(frozen=True)
class Tokens:
    """What the loss depends on: `all` tokens and `read` ones, and the (query, key) pairs of
    attention for each."""

    all: int
    read: int
    pairs: int
    read_pairs: int


def tokens_of(states: States) -> Tokens:
    layout = states.layout
    if isinstance(layout, Grid):
        images, length = states.x.shape[:2]
        read = images if layout.read_index is not None else images * length
        # Every token attends to every token of its image.
        return Tokens(images * length, read, images * length**2, read * length)
    # Real tokens of each prompt, without the prefix.
    own = layout.slots.div(layout.grid[1], rounding_mode="floor").bincount(minlength=layout.grid[0])
    causal = layout.mask.ndim == 2
    # Causal: a token attends to those up to its own position. Else: to all real tokens of its
    # prompt.
    seen = layout.positions + 1 if causal else own.repeat_interleave(own)
    index = layout.read_index
    if index is None:
        return Tokens(len(seen), len(seen), int(seen.sum()), int(seen.sum()))
    return Tokens(len(seen), len(index), int(seen.sum()), int(seen[index].sum()))


def matrices(module: nn.Module) -> int:
    """Count the entries of all weight matrices: a token that goes through the module once costs 2
    operations each."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.ndim == 2)


def step_work(model: AdaptedCLIP, image: States, text: States) -> dict[str, int]:
    """Count the operations of one training step from frozen states, by part."""
    parts = {"linear layers": 0, "attention": 0, "adapters": 0, "heads": 0, "logits": 0}
    for side, states in (("image", image), ("text", text)):
        encoder = model.encoders[side]
        tokens = tokens_of(states)
        first = model.first(side)
        for block in range(first, encoder.depth + 1):
            one = block == encoder.depth and encoder.reads_some(states.layout)
            if (
                block > first
            ):  # the first adapted block itself is frozen and computed before training
                parts["linear layers"] += block_linear(encoder, block, tokens, one)
                parts["attention"] += attention(
                    encoder.width, tokens.read_pairs if one else tokens.pairs
                )
            if adapter := model.adapters.at(side, block):
                rows = tokens.read if one else tokens.all
                parts["adapters"] += adapter_work(adapter, rows, tokens.all, goes_on=block > first)
                parts["adapters"] += cross_work(model.adapters, side, block, rows)
        # The projection into the joint space is frozen: forward and input gradient, for each
        # feature.
        parts["heads"] += 2 * 2 * len(states.features) * head_matrix(encoder, states)
    # Image features times class features: forward, and the gradient of either.
    parts["logits"] = 3 * 2 * len(image.features) * image.features.shape[1] * len(text.features)
    return parts


def block_linear(encoder: Encoder[Any], block: int, tokens: Tokens, one: bool) -> int:
    """Count a block's linear layers, which are frozen: forward and input gradient, no weight
    gradient.

    one: only one token leaves the block, so that keys and values alone (2 d^2) are needed of all
    tokens.
    """
    entries = matrices(encoder.blocks[block - 1])
    if not one:
        return 2 * 2 * tokens.all * entries
    key_value = 2 * encoder.width**2
    return 2 * 2 * (tokens.all * key_value + tokens.read * (entries - key_value))


def attention(width: int, pairs: int) -> int:
    """Count attention. Forward: Q K^T and P V. Backward: gradients of V, P, Q and K. Each is 2 d
    per pair, over all heads.

    Kernels that do not keep P compute Q K^T once more in the backward pass; that does not count.
    """
    return (2 + 4) * 2 * width * pairs


def adapter_work(adapter: DualBranchAdapter, rows: int, all_rows: int, goes_on: bool) -> int:
    """Count both branches of one adapter; adaptation is needed of `rows` tokens, reconstruction of
    all.

    goes_on: there are trainable weights below, so that a gradient must reach the adapter's input.
    That of the reconstruction never does (Eq. 11, 12: its input is detached).
    """
    rank, width = adapter.down.weight.shape
    shared = adapter.reconstructs and adapter.rec_down is None
    # Down: forward and weight gradient, once for both branches where they share it; input gradient
    # of adaptation alone.
    work = 2 * rank * width * (2 * (all_rows if shared else rows) + goes_on * rows)
    # Up: forward, input gradient, weight gradient.
    work += 3 * 2 * rank * width * rows
    if adapter.reconstructs:
        if adapter.rec_down is not None:
            work += 2 * 2 * rank * width * all_rows  # forward and weight gradient
        after = matrices(adapter.rec) + (rank * width if adapter.share == "up" else 0)
        work += 3 * 2 * after * all_rows  # forward, input gradient, weight gradient
    return work


def cross_work(adapters: Adapters, side: str, block: int, rows: int) -> int:
    """Count MMA's r x r projection between down and up: forward, input gradient, weight
    gradient."""
    height = str(max(adapters.blocks(side)) - block)
    return 3 * 2 * rows * adapters.cross[height].weight.numel() if height in adapters.cross else 0  # type: ignore


def head_matrix(encoder: Encoder[Any], states: States) -> int:
    """Count the entries of the projection into the joint space. Attention pooling has more work,
    which is left out."""
    return encoder.width * states.features.shape[1]
