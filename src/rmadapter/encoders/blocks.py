"""Views of the transformer blocks of open_clip, timm and BERT, by the roles of their parts.

A view runs the backbone's own modules, in the order of the block's own forward, but lets the caller
skip what is not read.
"""

from __future__ import annotations

import copy
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Edit = Callable[[Tensor], Tensor]
# (place, what a part of a block computed) -> what the block goes on with. The places: "norm" and
# "norm2", "attention" with its output projection, "mlp".
EditPart: TypeAlias = Callable[[str, Tensor], Tensor]

# Held while hooks hang on blocks, which threads and copies of a model share, and while they are
# copied.
HOOKS = threading.RLock()

Block: TypeAlias = Any  # of open_clip, timm or transformers, whose types have nothing in common


class Projections(ABC):
    """The parts of a block but its norm: projections, and what follows attention, which the caller
    does.

    Attributes:
        heads: Number of heads of attention.
    """

    heads: int

    def qkv(self, n: Tensor) -> tuple[Tensor, ...]:
        """Return queries, keys and values of what attention reads, [..., d] each."""
        return self.query(n), *self.key_value(n)

    @abstractmethod
    def query(self, n: Tensor) -> Tensor:
        """Return the queries alone."""

    @abstractmethod
    def key_value(self, n: Tensor) -> tuple[Tensor, ...]:
        """Return keys and values alone."""

    @abstractmethod
    def close(self, x: Tensor, attended: Tensor) -> Tensor:
        """Apply everything after attention: its output projection, the residuals and the MLP."""


class View(Projections):
    """All parts of a block.

    Attributes:
        hidden: Width inside the MLP; 0 for an MLP of another make, whose layers are not known.
        norm_first: Whether "norm" is in front of attention, not behind it.
        norm: Function from tokens [..., d] to what attention reads of them.
    """

    hidden: int
    norm_first: bool
    norm: Callable[[Tensor], Tensor]

    @abstractmethod
    def close(self, x: Tensor, attended: Tensor, edit: Edit | None = None) -> Tensor:
        """Do as `Projections.close`, and change what enters the MLP's activation, [..., hidden], by
        `edit`."""

    @abstractmethod
    def close_by_parts(self, x: Tensor, attended: Tensor, edit: EditPart) -> Tensor:
        """As `close`, changing the output of each part that follows attention."""


class Fused(Projections):
    """Query, key and value by one projection."""

    @abstractmethod
    def project(self, n: Tensor, start: int, stop: int) -> Tensor:
        """Return the outputs start..stop, in widths, of the query-key-value projection."""

    def qkv(self, n: Tensor) -> tuple[Tensor, ...]:
        return self.project(n, 0, 3).chunk(3, -1)

    def query(self, n: Tensor) -> Tensor:
        return self.project(n, 0, 1)

    def key_value(self, n: Tensor) -> tuple[Tensor, ...]:
        return self.project(n, 1, 3).chunk(2, -1)


class PreNorm(Fused, View):
    """A pre-norm block of open_clip or timm; same arithmetic as its own forward."""

    norm_first = True

    def __init__(self, block: Block, *, timm: bool) -> None:
        self.attn, self.mlp, self.heads = block.attn, block.mlp, block.attn.num_heads
        names = ("norm1", "norm2", "ls1", "ls2") if timm else ("ln_1", "ln_2", "ls_1", "ls_2")
        self.norm, self.norm2, self.ls1, self.ls2 = (getattr(block, name) for name in names)
        self.out = block.attn.proj if timm else block.attn.out_proj
        self.timm, self.layers = timm, _layers(block.mlp)
        first = self.layers[0] if self.layers else None
        self.hidden = first.out_features if isinstance(first, nn.Linear) else 0

    def project(self, n: Tensor, start: int, stop: int) -> Tensor:
        a = self.attn
        weight = a.qkv.weight if self.timm else a.in_proj_weight
        bias = a.qkv.bias if self.timm else a.in_proj_bias
        rows = slice(start * n.shape[-1], stop * n.shape[-1])
        return F.linear(n, weight[rows], None if bias is None else bias[rows])

    def close(self, x: Tensor, attended: Tensor, edit: Edit | None = None) -> Tensor:
        x = x + self.ls1(self.out(attended))
        n = self.norm2(x)
        return x + self.ls2(self.mlp(n) if edit is None else self._edited(n, edit))

    def close_by_parts(self, x: Tensor, attended: Tensor, edit: EditPart) -> Tensor:
        x = x + self.ls1(edit("attention", self.out(attended)))
        n = edit("norm2", self.norm2(x))
        return x + self.ls2(edit("mlp", self.mlp(n)))

    def _edited(self, n: Tensor, edit: Edit) -> Tensor:
        first, *rest = self.layers
        y = edit(first(n))
        for layer in rest:
            y = layer(y)
        return y


def _layers(mlp: nn.Module) -> list[nn.Module]:
    """Return the layers of an MLP in order, a linear one first; none of an MLP of another make."""
    if isinstance(mlp, nn.Sequential):
        return [*mlp]
    if not _is_timms(mlp, "timm.layers.mlp", "Mlp"):
        return []
    return [getattr(mlp, name) for name in ("fc1", "act", "drop1", "norm", "fc2", "drop2")]


def _is_timms(module: nn.Module, where: str, name: str) -> bool:
    """Return whether a module is of exactly this class of timm, which is not imported for it."""
    return (type(module).__module__, type(module).__qualname__) == (where, name)


class PostNorm(View):
    """A post-norm block of a Hugging Face encoder of the BERT family."""

    norm_first = False

    def __init__(self, block: Block) -> None:
        self.block = block
        self.heads = block.attention.self.num_attention_heads
        self.hidden = block.intermediate.dense.out_features

    def norm(self, x: Tensor) -> Tensor:
        return x  # the block below ended with a LayerNorm

    def query(self, n: Tensor) -> Tensor:
        return self.block.attention.self.query(n)

    def key_value(self, n: Tensor) -> tuple[Tensor, ...]:
        a = self.block.attention.self
        return a.key(n), a.value(n)

    def close(self, x: Tensor, attended: Tensor, edit: Edit | None = None) -> Tensor:
        x, inner = self.block.attention.output(attended, x), self.block.intermediate
        y = inner(x) if edit is None else inner.intermediate_act_fn(edit(inner.dense(x)))
        return self.block.output(y, x)

    def close_by_parts(self, x: Tensor, attended: Tensor, edit: EditPart) -> Tensor:
        attention, output = self.block.attention.output, self.block.output
        added = edit("attention", attention.dropout(attention.dense(attended)))
        x = edit("norm", attention.LayerNorm(added + x))
        added = edit("mlp", output.dropout(output.dense(self.block.intermediate(x))))
        return edit("norm2", output.LayerNorm(added + x))


class Opaque:
    """A block of another make, run by its own forward on whole sequences."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.norm = getattr(block, "norm1", None) or getattr(block, "ln_1", None) or nn.Identity()

    def run(self, x: Tensor, extras: Mapping[str, object]) -> Tensor:
        """Run the block, with further arguments that its encoder passes besides the tokens."""
        return self.block(x, **extras)


def view_of(block: Block) -> View | Opaque:
    """Return the leanest view that computes exactly what the block's own forward computes."""
    from open_clip.transformer import ResidualAttentionBlock

    if type(block) is ResidualAttentionBlock and block.attn.batch_first:
        return PreNorm(block, timm=False)
    # By name, since there are others, such as DiffAttention.
    timms = _is_timms(block, "timm.models.vision_transformer", "Block")
    if timms and type(block.attn).__name__ == "Attention":
        parts = [getattr(block.attn, name, None) for name in ("q_norm", "k_norm", "norm", "gate")]
        plain = all(part is None or isinstance(part, nn.Identity) for part in parts)
        if plain and hasattr(block.attn, "qkv"):
            return PreNorm(block, timm=True)
    if hasattr(block, "intermediate") and hasattr(getattr(block, "attention", None), "self"):
        return PostNorm(block)
    return Opaque(block)


def cast(block: nn.Module, kind: torch.dtype) -> nn.Module:
    """Copy a block, with its weights in another number format except those of its norms, which it
    shares."""
    norms = [module for module in block.modules() if isinstance(module, nn.LayerNorm)]
    twin = copy.deepcopy(block, {id(norm): norm for norm in norms})
    for module in twin.modules():
        if not isinstance(module, nn.LayerNorm):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(kind)
    return twin


def with_own(model: nn.Module, own: Iterable[nn.Parameter]) -> nn.Module:
    """Return a copy of a model that shares all tensors but `own`, and all forward hooks: a hook on
    one model also sees the other."""
    apart = {id(parameter) for parameter in own}
    hooks = (module._forward_hooks for module in model.modules())
    every: Iterable[object] = chain(model.parameters(), model.buffers(), hooks)
    with HOOKS:
        return copy.deepcopy(model, {id(part): part for part in every if id(part) not in apart})
