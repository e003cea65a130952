"""An encoder as stem -> blocks -> head, which computes nothing twice and nothing that is never
read.

Run from what enters block `first`, it computes the same function as the backbone's own forward
pass, but
  1. the blocks below `first` are frozen: their output is an input here, as is block `first`'s own;
  2. text is cut at the end-of-text token, since causal attention never reads what follows;
  3. the words that all prompts begin with are computed once, for every class to attend to;
  4. norms, projections and MLPs run only on real text tokens, packed without padding;
  5. the top block runs only for the token that is read (class token, end-of-text), if just one is.
Under autocast the same blocks run on tokens in that number format, with weights that were cast
once, as are those of the head; norms keep theirs. Nothing in an encoder changes after it is made,
except what it has cast, so any number of methods can share it.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmadapter.encoders.blocks import Opaque, Projections, View, cast, view_of
from rmadapter.encoders.layouts import Grid, Packed, send
from rmadapter.errors import memory_ended

Layout = TypeVar("Layout", Grid, Packed)
Batch = TypeVar("Batch", Tensor, "States")
T = TypeVar("T")
EMPTY = torch.empty(0)
PARTS = 0  # in place of the number of a block, which counts from 1: the parts of all blocks


def weights_of(*parts: nn.Module | nn.Parameter | None) -> list[nn.Parameter]:
    """Return all parameters of the modules among the parts, and the parts that are parameters."""
    weights: list[nn.Parameter] = []
    for part in parts:
        if isinstance(part, nn.Module):
            weights += part.parameters()
        elif part is not None:
            weights.append(part)
    return weights


@dataclass(frozen=True)
class States:
    """What an encoder computes up to a block, which no training changes; what was not wanted is
    empty.

    Attributes:
        first: Block, counted from 1; PARTS for parts of all blocks of the image encoder; None if
            only the features were wanted.
        layout: Layout of the tokens.
        features: Features [B or C, e] of the untouched encoder.
        x: Tokens that enter the block, [B, L, d] of images, [T, d] of text; or parts [B, P, d], as
            `ImageEncoder.parts` gives them of each block.
        y: The untouched block's output for them, only for the token that is read if it is the top
            block.
        views: Features [B, V, e] of V further views of each image.
    """

    first: int | None
    layout: Any  # Grid of images, Packed of text
    features: Tensor = EMPTY
    x: Tensor = EMPTY
    y: Tensor = EMPTY
    views: Tensor = EMPTY

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.features, self.x, self.y, self.views

    def __len__(self) -> int:
        """Return the number of images; of text, the layout has that of prompts."""
        return max(len(self.features), len(self.x))

    def __getitem__(self, rows: Tensor | slice) -> States:
        """Return the states of some images."""
        parts = (part[rows] if len(part) else part for part in self.tensors)
        return States(self.first, self.layout, *parts)

    def to(self, device: torch.device) -> States:
        moved = (send(part, device) for part in self.tensors)
        return States(self.first, self.layout.to(device), *moved)


def joined(parts: Sequence[States]) -> States:
    """Return the states of all images of several batches."""
    if len(parts) == 1:
        return parts[0]
    tensors = map(torch.cat, zip(*(part.tensors for part in parts), strict=True))
    return States(parts[0].first, parts[0].layout, *tensors)


def in_halves(run: Callable[[Batch], T], batch: Batch, *, whole: bool = False) -> list[T]:
    """Return run(batch), or, where the memory of a GPU ends, the results of its halves, which are
    halved as often as needed.

    Args:
        run: Function without gradients.
        batch: Images or prompts.
        whole: Whether results depend on the other rows of a batch, which is then never halved.

    Raises:
        RuntimeError: There is no memory for a single row, or for a batch as a whole.
    """
    try:
        return [run(batch)]
    except RuntimeError as error:
        if whole or len(batch) < 2 or not memory_ended(error):
            raise
    # Not within the clause above, where the error holds what the attempt computed.
    torch.cuda.empty_cache()
    middle = len(batch) // 2
    return in_halves(run, batch[:middle]) + in_halves(run, batch[middle:])


class Encoder(ABC, Generic[Layout]):
    """One side of a backbone. One without known blocks only has its features.

    Attributes:
        blocks: Its own modules.
        views: The same by the roles of their parts.
        width: Width of a token.
        depth: Number of blocks.
    """

    side: ClassVar[str]

    def __init__(self, blocks: Sequence[nn.Module], width: int) -> None:
        self.blocks: list[nn.Module] = list(blocks)
        self.views: list[View | Opaque] = [view_of(block) for block in blocks]
        self._cast: dict[tuple[int, torch.dtype, torch.device], View | Opaque] = {}
        self._cast_weights: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}
        self.width, self.depth = width, len(self.blocks)

    @property
    def opaque(self) -> bool:
        """Return whether there are no known blocks, or some block runs only by its own forward, on
        tokens that its encoder made."""
        return not self.views or any(isinstance(view, Opaque) for view in self.views)

    @property
    def tail(self) -> list[nn.Parameter]:
        """Return the head's parameters: norms, pooling and projection after the top block."""
        return []

    @property
    def projection(self) -> tuple[Tensor, Tensor | None] | None:
        """Return weight [d, e] and bias [e] of the linear map from `pooled` to features, if any."""
        return None

    def head(self, x: Tensor, layout: Layout) -> Tensor:
        """Return features [B or C, e] of the tokens that leave the top block, or just of those
        that are read."""
        return self.project(self.pooled(x, layout))

    def pooled(self, x: Tensor, layout: Layout) -> Tensor:
        """Return what is projected, [B or C, d], from the tokens that leave the top block, or just
        from those that are read."""
        raise NotImplementedError

    def project(self, pooled: Tensor) -> Tensor:
        """Return features [B or C, e] of what `pooled` gives."""
        raise NotImplementedError

    def reads_some(self, layout: Layout) -> bool:
        """Return whether the top block is needed only for the tokens of `layout.read`."""
        return layout.read_index is not None and not isinstance(self.views[-1], Opaque)

    def norm(self, block: int, x: Tensor) -> Tensor:
        """Return what the attention of a block, counted from 1, reads of the tokens entering it."""
        return self.views[block - 1].norm(self._low(x))

    def _low(self, x: Tensor) -> Tensor:
        """Cast x to autocast's number format, if autocast is on and no block is opaque."""
        device = x.device.type
        if self.opaque or not torch.is_autocast_enabled(device):
            return x
        return x.to(torch.get_autocast_dtype(device))

    def _once(self, name: str, weight: Tensor) -> Tensor:
        """Return a weight of the head, by its name: a frozen one as autocast would cast it, but
        cast once."""
        device = weight.device
        plain = weight.dtype == torch.float32 and not weight.requires_grad
        if not plain or not torch.is_autocast_enabled(device.type):
            return weight
        key = (name, device, torch.get_autocast_dtype(device.type))
        if key not in self._cast_weights:
            self._cast_weights[key] = weight.detach().to(key[-1])
        return self._cast_weights[key]

    def _run(self, name: str, module: nn.Module, x: Tensor) -> Tensor:
        """Run a module of the head, by its name, with the weights of `_once` if it is linear, or a
        sequence with linear layers."""
        if not torch.is_autocast_enabled(x.device.type):
            return module(x)
        if type(module) is nn.Sequential:
            for part, layer in module.named_children():
                x = self._run(f"{name}.{part}", layer, x)
            return x
        if type(module) is not nn.Linear:
            return module(x)
        bias = None if module.bias is None else self._once(f"{name}.bias", module.bias)
        return F.linear(x, self._once(name, module.weight), bias)

    def view(self, block: int, kind: torch.dtype) -> View | Opaque:
        """Return the view of a block, counted from 1, for tokens of a number format, to which its
        weights are cast once."""
        view = self.views[block - 1]
        if isinstance(view, Opaque) or kind not in (torch.bfloat16, torch.float16):
            return view
        key = (block, kind, next(self.blocks[block - 1].parameters()).device)
        if key not in self._cast:
            self._cast[key] = view_of(cast(self.blocks[block - 1], kind))
        return self._cast[key]

    def step(
        self,
        block: int,
        x: Tensor,
        n: Tensor,
        layout: Layout,
        top: bool = False,
        views: Sequence[Projections | Opaque] = (),
    ) -> Tensor:
        """Run a block.

        Args:
            block: Number of the block, from 1.
            x: Tokens that enter it.
            n: Their norm.
            layout: Their layout.
            top: Whether to run it only for the tokens that are read.
            views: Views of all blocks to use instead of the encoder's.
        """
        x, n = self._low(x), self._low(n)
        view = views[block - 1] if views else self.view(block, x.dtype)
        if isinstance(view, Opaque):
            assert isinstance(layout, Grid)
            return view.run(x, layout.extras.get(block, {}))
        if top:
            k, v = view.key_value(n)
            q = view.query(layout.read(n))
            return view.close(layout.read(x), layout.attend_read(q, k, v, view.heads))
        q, k, v = view.qkv(n)
        return view.close(x, layout.attend(q, k, v, view.heads))

    def encode(
        self,
        x: Tensor,
        layout: Layout,
        first: int = 1,
        edit: Callable[[int, Tensor], Tensor] | None = None,
        views: Sequence[Projections | Opaque] = (),
    ) -> Tensor:
        """Return features [B or C, e] of tokens that enter block `first`; edit(i, x) changes what
        enters block i."""
        return self.head(self.through(x, layout, first, edit, views), layout)

    def through(
        self,
        x: Tensor,
        layout: Layout,
        first: int = 1,
        edit: Callable[[int, Tensor], Tensor] | None = None,
        views: Sequence[Projections | Opaque] = (),
    ) -> Tensor:
        """Return the tokens that leave the top block, or just those that are read; arguments as in
        `encode`."""
        for i in range(first, self.depth + 1):
            x = edit(i, x) if edit else x
            x = self.step(i, x, self.norm(i, x), layout, self._is_top(i, layout), views)
        return x

    def _is_top(self, block: int, layout: Layout) -> bool:
        return block == self.depth and self.reads_some(layout)


class BlockView(Projections):
    """A view of a block in the number format of its tokens, of which methods change parts.

    Args:
        encoder: Encoder of the block.
        block: Number of the block, from 1, which is not opaque.
    """

    def __init__(self, encoder: Encoder[Grid] | Encoder[Packed], block: int) -> None:
        self.encoder, self.block = encoder, block

    @cached_property
    def heads(self) -> int:  # type: ignore[override]
        # read only when needed, as it loads an encoder of which features alone are known
        return self.plain(torch.float32).heads

    def plain(self, kind: torch.dtype) -> View:
        """Return the view of the untouched block for tokens of a number format."""
        view = self.encoder.view(self.block, kind)
        assert not isinstance(view, Opaque)
        return view

    def read(self, n: Tensor) -> Tensor:
        """Change what attention reads, [..., d]; by default not at all."""
        return n

    def qkv(self, n: Tensor) -> tuple[Tensor, ...]:
        return self.plain(n.dtype).qkv(self.read(n))

    def query(self, n: Tensor) -> Tensor:
        return self.plain(n.dtype).query(self.read(n))

    def key_value(self, n: Tensor) -> tuple[Tensor, ...]:
        return self.plain(n.dtype).key_value(self.read(n))

    def close(self, x: Tensor, attended: Tensor) -> Tensor:
        return self.plain(x.dtype).close(x, attended)
