"""Measure what batching the adapters' products over blocks could save of a training step.

    python research/benchmarks/batching.py --classes 200 --json

A step of MMA, and beside it the six products of each of its adapters alone, forward and backward,
with as many tokens: block by block, as training does them, and all blocks of an encoder in one
batched product. Only the two gradients of weights could be batched in a step, since each block
needs the output of the one below; they are also measured alone. To stack tensors is not counted, so
`saves` is the most that batching could bring, in shares of the step; below 0 it costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from common import arguments, interleaved, set_up, setting, show
from fitting import Fit, shots_for
from torch import Tensor
from work import tokens_of

from rmadapter.backbones import Backbone, load_backbone
from rmadapter.methods import load_method
from rmadapter.methods.rmadapter import RMAdapter
from rmadapter.prompts import tokenize
from rmadapter.training.cache import DTYPES

WHAT = ("all six products", "gradients of weights")
COLUMNS = ("format", "products", "step_seconds", "one_by_one", "batched", "saves", "difference")


@dataclass(frozen=True)
class Side:
    """Inputs x [n, T, d], hidden h [n, T, r], gradients g [n, T, d] and weights [n, r, d], [n, d,
    r] of n adapters."""

    x: Tensor
    h: Tensor
    g: Tensor
    down: Tensor
    up: Tensor

    @classmethod
    def drawn(cls, blocks: int, tokens: int, width: int, rank: int, kind: torch.dtype) -> Side:
        sizes = [(tokens, width), (tokens, rank), (tokens, width), (rank, width), (width, rank)]
        return cls(*(torch.randn(blocks, *size).to(kind) for size in sizes))

    def products(self, weights_only: bool) -> list[Tensor]:
        """Compute the products, of all blocks together."""
        of_weights = [self.g.mT @ self.h, self.h.mT @ self.x]
        if weights_only:
            return of_weights
        inner = self.g @ self.up
        return [self.x @ self.down.mT, self.h @ self.up.mT, inner, inner @ self.down, *of_weights]

    @property
    def blocks(self) -> list[Side]:
        """Return the inputs of each block."""
        tensors = (self.x, self.h, self.g, self.down, self.up)
        return [Side(*own) for own in zip(*tensors, strict=True)]


def one_by_one(sides: Sequence[Sequence[Side]], weights_only: bool) -> list[list[Tensor]]:
    """Return the products of each block of each encoder."""
    return [block.products(weights_only) for side in sides for block in side]


def at_once(sides: Sequence[Side], weights_only: bool) -> list[list[Tensor]]:
    """Return those of each encoder, of its blocks together."""
    return [side.products(weights_only) for side in sides]


def main() -> None:
    parser = arguments(__doc__, "classes", "batch", repeat=5)
    options = parser.parse_args()
    set_up(options)
    backbone = load_backbone(options.backbone)
    rows = [row for kind in ("fp32", "bf16") for row in measure(options, backbone, kind)]
    show(options, {"rows": rows, **setting(options, "classes", "batch")}, COLUMNS, rows)


def measure(options: Any, backbone: Backbone, kind: str) -> list[dict[str, Any]]:
    """Return the rows of a number format."""
    shots = shots_for(backbone, options.classes, options.batch, options.seed, kind)
    method = load_method("mma")
    assert isinstance(method, RMAdapter)
    fit, model = Fit(method, shots), method.model(backbone)
    image = fit.source.batch(fit.rows)
    text = model.frozen_text(tokenize(backbone, shots.classes, shots.templates))
    tokens = {"image": tokens_of(image).all, "text": sum(tokens_of(one).all for one in text)}
    sides = []
    for side, count in tokens.items():
        adapters, width = len(model.adapters.blocks(side)), model.encoders[side].width
        sides.append(Side.drawn(adapters, count, width, method.adapter.rank, DTYPES[kind]))
    blocks = [side.blocks for side in sides]
    runs: dict[str, Callable[[], Any]] = {"step": fit.step}
    for what in WHAT:
        runs[f"{what}, one by one"] = partial(one_by_one, blocks, what == WHAT[1])
        runs[f"{what}, batched"] = partial(at_once, sides, what == WHAT[1])
    seconds = {
        name: median(spent)
        for name, spent in interleaved(runs, options.repeat, text=f"batching, {kind}").items()
    }
    rows = []
    for what in WHAT:
        single, batched = (seconds[f"{what}, {how}"] for how in ("one by one", "batched"))
        alone = iter(runs[f"{what}, one by one"]())
        together = runs[f"{what}, batched"]()
        stacked = [[next(alone) for _ in side] for side in blocks]
        rows.append(
            {
                "format": kind,
                "products": what,
                "step_seconds": seconds["step"],
                "one_by_one": single,
                "batched": batched,
                "saves": (single - batched) / seconds["step"],
                "difference": max(map(apart, stacked, together)),
            }
        )
    return rows


def apart(alone: Sequence[Sequence[Tensor]], together: Sequence[Tensor]) -> float:
    """Return the largest difference of products of one encoder, relative to the largest entry."""
    stacked = [torch.stack(tensors) for tensors in zip(*alone, strict=True)]
    pairs = zip(stacked, together, strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


if __name__ == "__main__":
    main()
