"""How much each patch of an image counted for an answer: candidates, for every method by one
differentiable pass.

docs/explain.md says which of them is worth showing. B images, L tokens, h heads, C classes, S
patches per side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rmadapter.encoders import States
from rmadapter.training.contract import Fitted, NotApplicable

WINDOW = 2  # side, in patches, of what occlusion covers at once


@dataclass(frozen=True)
class Watched:
    """A `Grid` of images that keeps the attention of every block that runs over it, [B, h, L or 1,
    L], in order."""

    read_index: int | None
    last: int = 0
    extras: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    seen: list[Tensor] = field(default_factory=list)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(-3, -2) for x in (q, k, v))
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        self.seen.append(weights)
        return (weights @ v).transpose(1, 2).flatten(2)

    def attend_read(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        return (
            self.attend(q, k, v, heads) if self.last else self.attend(q[:, None], k, v, heads)[:, 0]
        )

    def read(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :1], x[:, -self.last :]], 1) if self.last else x[:, self.read_index]


class Trace(NamedTuple):
    """A pass that gradients flow through.

    logits: [B, C]. attention: of the blocks, from the first. tokens: [B, L, d], normed, as the top
    block's attention reads them. side: S. stop: end of the S * S patch tokens, after which methods
    may append tokens of their own. read: the token that the head reads.
    """

    logits: Tensor
    attention: Sequence[Tensor]
    tokens: Tensor
    side: int
    stop: int
    read: int | None

    def patches(self, values: Tensor) -> Tensor:
        """[B, L, ...] -> [B, S * S, ...]"""
        return values[:, self.stop - self.side**2 : self.stop]

    def grid(self, values: Tensor) -> Tensor:
        """[B, L] -> [B, S, S]"""
        return self.patches(values).unflatten(1, (self.side, self.side)).detach()


def trace(fitted: Fitted, pixels: Tensor, names: Sequence[str] | None = None) -> Trace:
    """One pass of pixels [B, 3, H, W] from block 1 on, whichever block the method starts at.

    Raises NotApplicable for an encoder whose blocks cannot be taken apart, for a method that
    remembers images, and as `Fitted.for_classes` does.
    """
    encoder = fitted.backbone.image
    entered: list[Tensor] = []
    if fitted.remembers:
        raise NotApplicable(f"the answers of {fitted.method.title} depend on other images, too")
    if encoder.opaque:
        raise NotApplicable(f"the blocks of {fitted.backbone.name} do not show what they attend to")
    with torch.no_grad():
        score = fitted.for_classes(fitted.classes if names is None else tuple(names))
    states = encoder.frozen(pixels.to(fitted.backbone.device), 1)
    watched: Any = Watched(states.layout.read_index)
    norm: Any = encoder.views[-1].norm
    handle = norm.register_forward_hook(lambda module, args, output: entered.append(output))
    try:
        with torch.enable_grad():
            x, first = states.x.detach().requires_grad_(), fitted.first
            if first is None:
                logits = score(States(None, watched, encoder.encode(x, watched)))
            else:
                for i in range(1, first):
                    x = encoder.step(i, x, encoder.norm(i, x), watched)
                top = first == encoder.depth and encoder.reads_some(watched)
                features = encoder.encode(x, states.layout, first)
                y = encoder.step(first, x, encoder.norm(first, x), watched, top)
                logits = score(States(first, watched, features, x, y))
                [used] = torch.autograd.grad(
                    logits.sum(), [watched.seen[first - 1]], retain_graph=True, allow_unused=True
                )
                if used is None:  # it reads only the tokens, and ran the block itself
                    del watched.seen[first - 1]
    finally:
        handle.remove()
    count = states.x.shape[1]
    return Trace(logits, watched.seen, entered[-1], math.isqrt(count), count, watched.read_index)


def _gradients(found: Trace, targets: Tensor, of: Sequence[Tensor]) -> Sequence[Tensor]:
    wanted = found.logits.gather(1, targets[:, None]).sum()
    return torch.autograd.grad(wanted, list(of), retain_graph=True)


def _rolled(found: Trace, layers: Sequence[Tensor], residual: float) -> Tensor:
    """Relevance [B, S, S] for the token that is read: the product of the layers [B, Q, L], each
    plus `residual` times the identity. Q is L, or less in a top block that runs only for what is
    read."""
    read = found.read or 0
    total = torch.eye(layers[0].shape[-1], device=layers[0].device).expand(len(layers[0]), -1, -1)
    for layer in layers:
        rows, length = layer.shape[1:]
        total = F.pad(
            total[:, :length], (0, 0, 0, max(length - total.shape[1], 0))
        )  # appended tokens show nothing
        if rows < length:  # its first row is the token that is read
            layer, same = layer[:, :1], total[:, read : read + 1]
        else:
            same = total
        total = layer @ total + residual * same
    row = (
        total[:, 0]
        if total.shape[1] == 1
        else total.mean(1)
        if found.read is None
        else total[:, read]
    )
    return found.grid(row)


def rollout(found: Trace, targets: Tensor) -> Tensor:
    """Attention rollout (Abnar and Zuidema, ACL 2020): heads averaged, each block half residual.
    The same for every class."""
    return _rolled(found, [layer.mean(1) / 2 for layer in found.attention], 0.5)


def relevance(found: Trace, targets: Tensor) -> Tensor:
    """Attention times its gradient, positive part, through all blocks (Chefer et al., ICCV 2021,
    equations 5, 6)."""
    gradients = _gradients(found, targets, found.attention)
    pairs = zip(found.attention, gradients, strict=True)
    return _rolled(found, [(layer * slope).clamp(min=0).mean(1) for layer, slope in pairs], 1.0)


def grad_cam(found: Trace, targets: Tensor) -> Tensor:
    """What the top block's attention reads, weighted by its mean gradient over patches (Selvaraju
    et al., ICCV 2017)."""
    [slope] = _gradients(found, targets, [found.tokens])
    return found.grid((found.tokens * found.patches(slope).mean(1, keepdim=True)).sum(-1)).clamp(
        min=0
    )


CANDIDATES: Mapping[str, Callable[[Trace, Tensor], Tensor]] = {
    "attention rollout": rollout, "attention x gradient": relevance, "Grad-CAM": grad_cam,
}  # fmt: skip


def occlusion(fitted: Fitted, pixels: Tensor, target: int, side: int) -> Tensor:
    """[S, S]: by how much the log-probability of a class falls when windows of WINDOW x WINDOW
    patches of one image [3, H, W] are covered with the mean colour (Zeiler and Fergus, ECCV 2014).
    """
    windows = [(i, j) for i in range(0, side, WINDOW) for j in range(0, side, WINDOW)]
    shown = torch.ones(len(windows) + 1, side, side, dtype=torch.bool)
    for n, (i, j) in enumerate(windows):
        shown[n, i : i + WINDOW, j : j + WINDOW] = False
    logs = probabilities(fitted, covered(pixels, shown))[:, target].clamp(min=1e-12).log()
    return ((logs[-1] - logs[:-1])[:, None, None] * ~shown[:-1]).sum(0)


def covered(pixels: Tensor, shown: Tensor) -> Tensor:
    """Copies [M, 3, H, W] of an image [3, H, W], with the mean colour, which is 0, where shown [M,
    S, S] is False."""
    size = pixels.shape[-1]
    wide = shown[:, None].float()
    return pixels * F.interpolate(wide, (size, size), mode="nearest")


def probabilities(fitted: Fitted, pixels: Tensor) -> Tensor:
    """[B, C] on the CPU."""
    return fitted.answers({"it": fitted.score()}, pixels)["it"]
