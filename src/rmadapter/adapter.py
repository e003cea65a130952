"""RMAdapter: Reconstruction-based Multi-Modal Adapter for Vision-Language Models (AAAI-26, arXiv
2512.06811).

The whole method, in torch alone. Equation numbers are the paper's; r is the rank, d the width of
the encoder.

    x_down  = act(x W_down + b_down)                          Eq. 8   shared by both branches
    base(x) = x_down W_up + b_up                              Eq. 9   adaptation branch
    rec(x)  = act(x_down W_r1 + b_r1) W_r2 + b_r2             Eq. 10  reconstruction branch
    x_i     = block_i(x_{i-1}) + alpha * base_i(x_{i-1})      Eq. 14, 15
    loss    = cross-entropy + consistency + reconstruction    Eq. 18

Reconstruction is local: the gradient of adapter i's error does not leave the adapter. Eq. 11 and 12
can be read in two ways: the branch sees and rebuilds the adapter's own input (Figure 2,
target="input"), or, as printed, the tokens that leave the adapted block i. Three gradients fit the
print: none through these tokens, so that the error reaches the adaptation branch by W_down alone
(target="output"); one through the adapter's share of them, W_up included (target="adapted"); one
through all of them, into the blocks below, too (target="adapted", local=False).

MMA (CVPR 2024) has cross-entropy alone, a projection shared by both encoders, and gradients as if
alpha were 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDES = ("image", "text")
ROUNDING = 1e-6  # two ways of computing unit features in float32 differ by less than this


def quick_gelu(x: Tensor) -> Tensor:
    """Apply OpenAI CLIP's approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Activation] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "quick_gelu": quick_gelu,
    "silu": F.silu,
}


class _ScaleGradient(torch.autograd.Function):
    """The identity, with its gradient multiplied by a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.scale, None


class _SquaredError(torch.autograd.Function):
    """Mean square of h W^T + b - target over the width: h [T, r], weight W [d, r], bias b [d],
    target [T, d] -> [T].

    Autograd would make six tensors [T, d], which cost more than the products; this makes one, and
    does not keep it.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(h, weight, bias, target)
        difference = F.linear(h, weight, bias).sub_(target)
        kind = at_least_float32(difference[:0]).dtype
        square = torch.linalg.vector_norm(difference, dim=-1, dtype=kind).square()
        return square / difference.shape[-1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        h, weight, bias, target = ctx.saved_tensors
        difference = F.linear(h, weight, bias).sub_(target)
        each = (grad * (2 / difference.shape[-1]))[:, None]
        of_weight = difference.T @ torch.cat([h * each, each], 1).to(difference)
        of_h = ((difference @ weight) * each).to(h)
        of_target = (difference * -each).to(target) if ctx.needs_input_grad[3] else None
        return of_h, of_weight[:, :-1], of_weight[:, -1], of_target


def decoupled(change: Callable[[Tensor], Tensor], x: Tensor, alpha: float) -> Tensor:
    """Return alpha * change(x), with gradients of its weights as if alpha were 1; the gradient of x
    keeps the factor (MMA)."""
    return _ScaleGradient.apply(alpha * change(_ScaleGradient.apply(x, alpha)), 1 / alpha)


def _kaiming(module: nn.Module) -> None:
    """Initialise every linear layer as MMA does."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)


class DualBranchAdapter(nn.Module):
    """The adapter beside one transformer block (Eq. 8-10).

    Args:
        width: d, the width of the encoder.
        rank: r, the width of the bottleneck.
        activation: "gelu", "relu", "quick_gelu" or "silu".
        share: "down", "up" or "none", the projection that both branches use (Table 5).
        reconstruction_layers: Linear layers of the reconstruction branch after its down-projection
            (Table 6), 0 for no branch.
        init: "zero" starts as the untouched backbone, "small" close to it, "kaiming" is MMA's.

    Example:
        >>> import torch
        >>> from rmadapter import DualBranchAdapter
        >>> adapter = DualBranchAdapter(width=8, rank=2)
        >>> tokens = torch.ones(3, 5, 8)
        >>> adapter.base(tokens).abs().max().item()  # zero-initialised
        0.0
        >>> adapter.reconstruction_error(tokens).shape
        torch.Size([3, 5])
    """

    def __init__(
        self,
        width: int,
        rank: int = 32,
        *,
        activation: str = "gelu",
        share: str = "down",
        reconstruction_layers: int = 2,
        init: str = "zero",
    ) -> None:
        super().__init__()
        self.activation, self.share = activation, share
        self.down = nn.Linear(width, rank)
        self.up = nn.Linear(rank, width)
        sizes = [rank] * reconstruction_layers + [width]
        layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        self.rec = nn.ModuleList(layers[:-1] if share == "up" else layers)  # self.up is the last
        own_down = reconstruction_layers > 0 and share != "down"
        self.rec_down = nn.Linear(width, rank) if own_down else None
        self.reconstructs = reconstruction_layers > 0
        if init == "kaiming":
            _kaiming(self)
            return
        nn.init.zeros_(self.up.bias)
        if init == "small":
            nn.init.normal_(self.up.weight, std=1e-3)
        else:
            nn.init.zeros_(self.up.weight)

    def base(self, x: Tensor, cross: nn.Linear | None = None) -> Tensor:
        """Apply the adaptation branch (Eq. 9).

        Args:
            x: Tokens [..., d].
            cross: MMA's r x r projection shared with the other encoder.

        Returns:
            [..., d].
        """
        act = ACTIVATIONS[self.activation]
        hidden = act(self.down(x))
        return self.up(hidden if cross is None else act(cross(hidden)))

    def scaled_base(
        self, x: Tensor, alpha: float, cross: nn.Linear | None = None, decouple: bool = False
    ) -> Tensor:
        """Return alpha * base(x) (Eq. 14, 15).

        Args:
            x: Tokens [..., d].
            alpha: Weight of the output.
            cross: MMA's r x r projection, as for `base`.
            decouple: Whether weights get gradients as if alpha were 1, as `decoupled` gives them.
        """
        base = partial(self.base, cross=cross)
        return decoupled(base, x, alpha) if decouple and alpha else alpha * base(x)

    def reconstruction_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that only the reconstruction branch uses."""
        down = () if self.rec_down is None else self.rec_down.parameters()
        return [*self.rec.parameters(), *down]

    def reconstruct(self, x: Tensor) -> Tensor:
        """Apply the reconstruction branch (Eq. 10).

        Args:
            x: Tokens [..., d].

        Returns:
            [..., d].
        """
        hidden, last = self._before_last(x)
        return last(hidden)

    def _before_last(self, x: Tensor) -> tuple[Tensor, nn.Linear]:
        """Return the input of the reconstruction branch's last layer, [..., d] -> [..., r], and
        that layer."""
        act = ACTIVATIONS[self.activation]
        hidden = act((self.down if self.rec_down is None else self.rec_down)(x))
        layers = [*self.rec, self.up] if self.share == "up" else list(self.rec)
        for layer in layers[:-1]:
            hidden = act(layer(hidden))
        last = layers[-1]
        assert isinstance(last, nn.Linear)
        return hidden, last

    def reconstruction_error(
        self,
        x: Tensor,
        objective: str = "l2",
        target: Tensor | None = None,
        local: bool = True,
        whole: bool = False,
    ) -> Tensor:
        """Return the distance of every token to its reconstruction, averaged over d (Eq. 11, 12).

        Args:
            x: Tokens [..., d].
            objective: "l2", "l1" or "cosine".
            target: [..., d], x itself if None; it gets no gradient.
            local: Whether x gets none either.
            whole: Whether both get one, whatever `local` says.

        Returns:
            [...].
        """
        target = x if target is None else target
        if not whole:
            x, target = x.detach() if local else x, target.detach()
        hidden, last = self._before_last(x)
        if objective == "l2":
            weight, bias = last.weight.to(hidden), last.bias.to(hidden)
            flat = hidden.flatten(0, -2), weight, bias, target.flatten(0, -2)
            return _SquaredError.apply(*flat).view(x.shape[:-1])
        guess = last(hidden)
        if objective == "cosine":
            return 1 - F.cosine_similarity(guess, target, dim=-1)
        return (guess - target).abs().mean(-1)


def adapted_blocks(first: int, last: int | None, depth: int, deepest: int) -> list[int]:
    """Return the 1-based blocks that get an adapter in an encoder of `depth` blocks.

    `first` and `last` count in the deeper of the two encoders (`deepest` blocks); in a shallower
    one they are moved to the same relative height. Equal depths, the paper's case, leave them as
    they are.
    """
    low, high = (math.ceil(block * depth / deepest) for block in (first, last or deepest))
    return list(range(low, min(high, depth) + 1))


class Adapters(nn.Module):
    """All adapters of one model: `image` and `text` by block number, `cross` by distance from the
    top block.

    The other arguments are the fields of `settings.AdapterSettings`.

    Args:
        widths, depths: (image, text) sizes of the two encoders.
        reconstruct: The sides with a reconstruction branch.
    """

    def __init__(  # noqa: PLR0913  # a constructor
        self,
        widths: tuple[int, int],
        depths: tuple[int, int],
        *,
        rank: int = 32,
        first_block: int = 5,
        last_block: int | None = None,
        alpha: float = 0.1,
        norm: str = "none",
        cross_modal: bool = False,
        activation: str = "gelu",
        share: str = "down",
        reconstruction_layers: int = 2,
        objective: str = "l2",
        target: str = "input",
        target_norm: bool = False,
        local: bool = True,
        init: str = "zero",
        decouple_scale: bool = False,
        reconstruct: Collection[str] = SIDES,
    ) -> None:
        super().__init__()
        self.alpha, self.norm, self.decouple = float(alpha), norm, decouple_scale
        self.objective, self.target, self.target_norm = objective, target, target_norm
        self.local = local

        def stack(side: str, width: int, depth: int) -> nn.ModuleDict:
            blocks = adapted_blocks(first_block, last_block, depth, max(depths))
            layers = reconstruction_layers if side in reconstruct else 0
            adapter = partial(
                DualBranchAdapter,
                width,
                rank,
                reconstruction_layers=layers,
                activation=activation,
                share=share,
                init=init,
            )
            return nn.ModuleDict({str(block): adapter() for block in blocks})

        self.image, self.text = map(stack, SIDES, widths, depths)
        self._top = {"image": max(map(int, self.image)), "text": max(map(int, self.text))}
        pairs = max(len(self.image), len(self.text)) if cross_modal else 0
        self.cross = nn.ModuleDict({str(i): nn.Linear(rank, rank) for i in range(pairs)})
        if init == "kaiming":
            _kaiming(self.cross)

    @property
    def of_output(self) -> bool:
        """Whether a branch reads and rebuilds what leaves its block (Eq. 11, 12, as printed)."""
        return self.target in ("output", "adapted")

    def blocks(self, side: str) -> list[int]:
        """Return the 1-based numbers of the adapted blocks of `side`, "image" or "text"."""
        return [int(block) for block in getattr(self, side)]

    def at(self, side: str, block: int) -> DualBranchAdapter | None:
        """Return the adapter beside a block, if any."""
        stack = getattr(self, side)
        return stack[str(block)] if str(block) in stack else None

    def delta(self, side: str, block: int, x: Tensor) -> Tensor:
        """Return what is added to the block's output (Eq. 14, 15) for the adapter's input x,
        [..., d] -> [..., d]."""
        height = str(self._top[side] - block)
        cross = self.cross[height] if height in self.cross else None
        return getattr(self, side)[str(block)].scaled_base(x, self.alpha, cross, self.decouple)

    def leaving(self, side: str, block: int, x: Tensor, plain: Tensor, adapted: Tensor) -> Tensor:
        """Return what leaves an adapted block as its reconstruction branch reads it, [..., d]: with
        target="adapted" and local, its gradient reaches the adapter, but nothing below.

        Args:
            side: "image" or "text".
            block: 1-based number of the block.
            x: The adapter's input, [..., d].
            plain, adapted: Output of the block without the adapter's, and with it, [..., d].
        """
        if self.target != "adapted" or not self.local:
            return adapted
        return plain.detach() + self.delta(side, block, x.detach())

    def reconstruction_error(
        self, side: str, block: int, x: Tensor, target: Tensor | None = None
    ) -> Tensor:
        """Return the error of every token, [..., d] -> [...] (Eq. 11, 12).

        Args:
            side: "image" or "text".
            block: 1-based number of the block.
            x: What the branch reads, the adapter's input or what `leaving` returns.
            target: [..., d], None for x.
        """
        if self.target_norm:
            target = F.layer_norm(x if target is None else target, x.shape[-1:])
        adapter = getattr(self, side)[str(block)]
        whole = self.target == "adapted"
        return adapter.reconstruction_error(x, self.objective, target, self.local, whole)

    def parameter_counts(self) -> tuple[int, int]:
        """Count all parameters, and those of reconstruction alone, which the adapted features do
        not need."""
        reconstruction = 0
        for module in self.modules():
            if isinstance(module, DualBranchAdapter):
                reconstruction += sum(p.numel() for p in module.reconstruction_parameters())
        return sum(p.numel() for p in self.parameters()), reconstruction


def at_least_float32(x: Tensor) -> Tensor:
    """Return x in float32, since half precision is too coarse for losses; float64 stays."""
    return x if x.dtype == torch.float64 else x.float()


def token_mean(error: Tensor, weight: Tensor | None = None) -> Tensor:
    """Average over tokens to a scalar.

    Args:
        error: Error of each token.
        weight: How often each token counts, 0 for padding; None for once each.
    """
    return error.mean() if weight is None else (error * weight).sum() / weight.sum()


def consistency(adapted: Tensor, frozen: Tensor, raw: bool = False) -> Tensor:
    """Return how far features are from the untouched encoder's (Eq. 17), a scalar: the mean
    absolute difference of L2-normalised ones.

    Where both agree up to rounding, as in the first step from a zero-initialised adapter, the sign
    of the difference means nothing, and the gradient is zero. Features that are computed in 16 bits
    differ by more than that in any case.

    Args:
        adapted: Features [n, d].
        frozen: Those of the untouched encoder, [n, d].
        raw: Whether to compute it as printed: the sum over d of the absolute differences of
            features that are not normalised, averaged over n.
    """
    rounding: Tensor | float = ROUNDING
    if raw:
        rounding = ROUNDING * frozen.norm(dim=-1, keepdim=True)
    else:
        adapted, frozen = F.normalize(adapted, dim=-1), F.normalize(frozen, dim=-1)
    difference = (adapted - frozen).abs()
    difference = torch.where(difference > rounding, difference, 0.0)
    return difference.sum(-1).mean() if raw else difference.mean()


class Side(NamedTuple):
    """The loss's inputs from one encoder, and the weights of its two terms.

    Attributes:
        adapted, frozen: Features [B, d] of images, or of classes or their prompts [C, d].
        errors: Reconstruction error of each adapter.
        lambda_rec, lambda_con: Weights lambda of the two terms; 0 turns a term off.
    """

    adapted: Tensor
    frozen: Tensor
    errors: Sequence[Tensor]
    lambda_rec: float
    lambda_con: float


def loss_terms(
    logit_scale: Tensor,
    labels: Tensor,
    image: Side,
    text: Side,
    consistency_unit: str = "feature",
    weights: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return the loss and its terms (Eq. 11-13, 16-18), scalars that include their weight lambda.

    A term that is turned off is absent.

    Args:
        logit_scale: Factor of the cosines, a scalar.
        labels: [B].
        image, text: Inputs from the two encoders.
        consistency_unit: "raw" is Eq. 17 as printed, which needs features that are not normalised
            on both sides; "feature" is its mean over normalised features; "logit" multiplies that
            by the logit scale, with which the gradient of the cross-entropy grows too.
        weights: Class features [C, d] of the cross-entropy, if not those of `text`.
    """
    classes = text.adapted if weights is None else weights
    x, w = (F.normalize(at_least_float32(part), dim=-1) for part in (image.adapted, classes))
    # Without autocast, since bfloat16 would round a logit of 100 to halves.
    with torch.autocast(x.device.type, enabled=False):
        terms = {"ce": F.cross_entropy(logit_scale * x @ w.T, labels)}
    for name, side in zip(SIDES, (image, text), strict=True):
        if side.errors and side.lambda_rec:
            terms[f"{name}_rec"] = side.lambda_rec * torch.stack(list(side.errors)).sum()
        if side.lambda_con:
            unit = logit_scale if consistency_unit == "logit" else 1.0
            adapted, frozen = map(at_least_float32, (side.adapted, side.frozen))
            difference = consistency(adapted, frozen, raw=consistency_unit == "raw")
            terms[f"{name}_con"] = unit * side.lambda_con * difference
    return {"loss": torch.stack(list(terms.values())).sum(), **terms}
