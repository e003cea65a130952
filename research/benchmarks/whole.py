"""The plain forward pass of any method: it computes what the lean one leaves out, and keeps nothing
from before.

Within `whole()` the encoders give every method whole prompts, including padding and shared
beginnings, and every token of the top block. The method's own code runs, and it is no straw man:
attention is torch's fused one, frozen weights need no gradient, and the operations are those of
open_clip's own forward (`tests/research/test_whole.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from fitting import Fit
from torch import Tensor

from rmadapter.encoders import Encoder, ImageEncoder, States, text
from rmadapter.encoders.text import ClipText
from rmadapter.methods import mmrl
from rmadapter.prompts import tokenize
from rmadapter.settings import configured, settings_of
from rmadapter.training.contract import Shots

REAL_TOKENS = ClipText.real_tokens


@dataclass(frozen=True)
class Whole:
    """C prompts of L tokens each, one after the other; read_index: [C] the row that is read. Causal
    attention."""

    ids: Tensor  # [C * L]
    positions: Tensor  # [C * L]
    grid: tuple[int, int]
    read_index: Tensor
    prefix: int = 0

    @classmethod
    def of(
        cls, tokens: Tensor, lengths: Tensor, read: Tensor, causal: bool, share: bool = True
    ) -> Whole:
        """Like `layouts.pack`; lengths and share are ignored."""
        assert causal, "only prompts under causal attention"
        count, width = tokens.shape
        positions = torch.arange(width).repeat(count)
        starts = width * torch.arange(count)
        return cls(tokens.flatten(), positions, (count, width), starts + read)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        q, k, v = (
            x.unflatten(0, self.grid).unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v)
        )
        return (
            F.scaled_dot_product_attention(q, k, v, is_causal=True)
            .transpose(1, 2)
            .flatten(2)
            .flatten(0, 1)
        )

    def read(self, x: Tensor) -> Tensor:
        """Select the tokens that are read: [C * L, d] -> [C, d]."""
        return x.index_select(0, self.read_index)


def _whole_tokens(self: ClipText, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Replace `real_tokens` by one in which padding counts, too."""
    return torch.full((len(tokens),), tokens.shape[1]), REAL_TOKENS(self, tokens)[1]


@contextmanager
def whole() -> Iterator[None]:
    with (
        patch.object(text, "pack", Whole.of),
        patch.object(mmrl, "pack", Whole.of),
        patch.object(ClipText, "real_tokens", _whole_tokens),
        patch.object(Encoder, "reads_some", lambda self, layout: False),
    ):
        yield


class _There(Exception):
    """Raised to stop a forward pass at the block that it should reach."""


@torch.no_grad()
def image_states(encoder: ImageEncoder, pixels: Tensor, known: States) -> States:
    """Compute what enters the block of the known states, computed from pixels, or the features if
    they are of no block."""
    if known.first is None:
        return replace(known, features=encoder.visual(pixels))
    seen: list[Tensor] = []

    def stop(module: Any, args: Any) -> None:
        seen.append(args[0])
        raise _There

    handle = encoder.blocks[known.first - 1].register_forward_pre_hook(stop)
    with suppress(_There):
        encoder.visual(pixels)
    handle.remove()
    return States(known.first, known.layout, known.features, seen[0])


class Plain:
    """A method before its first step, as in `Fit`, and steps that leave nothing out."""

    def __init__(self, method: Any, shots: Shots) -> None:
        self.hooked = "forward" in settings_of(method)  # has a plain pass of its own
        with nullcontext() if self.hooked else whole():
            self.fit = Fit(
                configured(method, {"forward": "reference"}) if self.hooked else method, shots
            )
            self.backbone, module = shots.cache.backbone, self.fit.module
            self.known = self.fit.source.batch(self.fit.rows)
            self.pixels = shots.pixels(self.fit.rows, 0, self.known.first)
            self.first = module.lowest["text"] if isinstance(module, mmrl.Representations) else 1
            self.prompts = self.backbone.text.layout(
                tokenize(self.backbone, shots.classes, shots.templates)
            )

    def loss(self) -> Tensor:
        if self.hooked:
            with patch.object(Shots, "pixels", lambda *_: self.pixels):
                return self.fit.loss()
        with whole():
            self._frozen_text()
            return self.fit.loss(image_states(self.backbone.image, self.pixels, self.known))

    @torch.no_grad()
    def _frozen_text(self) -> None:
        """Run the text blocks below MMRL's, whose result MMRL keeps."""
        encoder = self.backbone.text
        x = encoder.stem(self.prompts) if self.first > 1 else torch.empty(0)
        for i in range(1, self.first):
            x = encoder.step(i, x, encoder.norm(i, x), self.prompts)

    def step(self) -> None:
        self.fit.step(self.loss)

    def gradients(self) -> tuple[float, dict[str, Tensor]]:
        return self.fit.gradients(self.loss)
