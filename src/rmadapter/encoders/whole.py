"""Encoders of any other make: they give only their features and have no blocks to reach into."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rmadapter.encoders.encoder import States
from rmadapter.encoders.image import ImageEncoder
from rmadapter.encoders.layouts import Grid, Packed
from rmadapter.encoders.text import TextEncoder


class WholeImage(ImageEncoder):
    """For example a convolutional network. kind: its name. encode: images [B, 3, H, W] -> features
    [B, e]."""

    opaque = True
    tail: list[nn.Parameter] = []  # noqa: RUF012
    pre_norm = nn.Identity()
    projection = None

    def __init__(self, visual: nn.Module, kind: str, encode: Callable[[Tensor], Tensor]) -> None:
        super().__init__(visual, (), 0, None)
        self.kind, self._encode = kind, encode

    @torch.no_grad()
    def frozen_at(
        self, images: Tensor, firsts: Sequence[int | None], *, features: bool = True
    ) -> list[States]:
        assert not any(firsts), "it has no blocks"
        return [States(None, Grid(None), self._encode(images))] * len(firsts)

    def head(self, x: Tensor, layout: Grid) -> Tensor:
        raise NotImplementedError("it has no blocks")

    def pooled(self, x: Tensor) -> Tensor:
        raise NotImplementedError("it has no blocks")

    def top_norm(self, x: Tensor) -> Tensor:
        raise NotImplementedError("it has no blocks")


class WholeText(TextEncoder):
    """For example T5. encode: tokens [C, L] -> features [C, e]."""

    opaque = True
    tail: list[nn.Parameter] = []  # noqa: RUF012

    def __init__(self, kind: str, encode: Callable[[Tensor], Tensor]) -> None:
        super().__init__((), 0)
        self.kind, self._encode = kind, encode

    @torch.no_grad()
    def frozen(self, tokens: Tensor, first: int | None = None) -> States:
        assert first is None, "it has no blocks"
        return States(None, self.layout(tokens), self._encode(tokens))

    def real_tokens(self, tokens: Tensor) -> tuple[Tensor, None]:
        return torch.full((len(tokens),), tokens.shape[1], device=tokens.device), None

    def words(self, layout: Packed) -> Tensor:
        raise NotImplementedError("it has no blocks")

    def stem(self, layout: Packed, words: Tensor | None = None) -> Tensor:
        raise NotImplementedError("it has no blocks")

    def head(self, x: Tensor, layout: Packed) -> Tensor:
        raise NotImplementedError("it has no blocks")


def first_of(output: Any) -> Tensor:
    """The features, even of an encoder that also gives its tokens, as CoCa's do."""
    return output[0] if isinstance(output, tuple) else output
