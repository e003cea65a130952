"""ProGrad: Zhu et al., "Prompt-aligned Gradient for Prompt Tuning", ICCV 2023 (arXiv 2205.14865).

CoOp that does not unlearn what CLIP knows: where the gradient of the cross-entropy opposes that of
the divergence from zero-shot CLIP's answers, the opposing component is removed. With these
gradients a and b with respect to the context, a becomes a - strength (a b / |b|^2) b where a b < 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from rmadapter.backbones import Backbone
from rmadapter.methods.coop import Context, CoOp
from rmadapter.methods.parts.learned_prompts import encoder_of, limit_tokens
from rmadapter.prompts import cosine_logits, zero_shot_weights
from rmadapter.settings import Size
from rmadapter.support.distributed import add_up, several
from rmadapter.training.contract import (
    PUBLISHED,
    About,
    Batch,
    Loss,
    Recipe,
    Shots,
    Traits,
    Uses,
)


class Aligned(Function):
    """encode(context) twice: the gradient through the first output loses what opposes that through
    the second.

    The latter is then discarded. One forward and two backward passes; of several processes,
    gradients are summed first.
    """

    @staticmethod
    def forward(
        ctx: Any, context: Tensor, encode: Callable[[Tensor], Tensor], strength: float
    ) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            ctx.start = context.detach().requires_grad_()
            ctx.end, ctx.strength = encode(ctx.start), strength
        return ctx.end.detach().clone(), ctx.end.detach().clone()

    @staticmethod
    def backward(ctx: Any, *by: Tensor) -> tuple[Tensor, None, None]:
        [a], [b] = (torch.autograd.grad(ctx.end, ctx.start, part, retain_graph=True) for part in by)
        if several():
            add_up(a, b)
            a = a / dist.get_world_size()  # as the loop sums what all processes return
        # Of a prompt that is still zero-shot CLIP's own, b is nothing but rounding, 1e-7 of a's
        # length, and has no direction: what is removed along it fades out below 1e-4.
        unit = b / torch.maximum(b.norm(), 1e-4 * a.norm()).clamp(min=1e-12)
        return a - ctx.strength * (a * unit).sum().clamp(max=0) * unit, None, None


@dataclass(frozen=True)
class ProGrad(CoOp):
    """CoOp whose gradient never works against zero-shot CLIP's answers with the run's templates.

    The authors' README has 50 to 200 epochs depending on the number of shots, and a strength of 0.8
    with 8 and 16 shots on three data sets.

    Args:
        context: Initial words of the last vectors; the others start as zeros, as in the released
            code.
        tokens: Number of vectors, at most a quarter of the text encoder's length.
        strength: Share of the opposing component that is removed.
    """

    title = "ProGrad"
    source = (
        "Zhu et al., ICCV 2023 (arXiv 2205.14865); rn50_ep100 and "
        "scripts/base2new_train_prograd.sh of github.com/BeierZhu/Prompt-align"
    )
    traits = Traits(
        uses=Uses(
            constants="the words of the prompt, strength and epochs by shots",
            tuned=PUBLISHED,
        ),
        about=About("text", "CoOp's vectors, with no step against CLIP's answers"),
        reads="text",
    )
    tokens: Size = 16
    strength: float = 1.0
    recipe: Recipe = Recipe(epochs=100)

    def module(self, backbone: Backbone, seed: int = 1) -> Context:
        tokens = limit_tokens(backbone, self.tokens)
        module = Context(backbone, self.context, tokens, seed)
        more = max(0, tokens - len(module.ctx))
        module.ctx = nn.Parameter(F.pad(module.ctx.detach(), (0, 0, more, 0)))
        return module

    def objective(self, module: Context, shots: Shots) -> Loss:
        backbone = module.backbone
        encode = encoder_of(backbone, shots.classes, len(module.ctx))
        known = zero_shot_weights(backbone, shots.classes, shots.templates)

        def loss(batch: Batch) -> dict[str, Tensor]:
            f = batch.images.features
            both = Aligned.apply(module.ctx, encode, self.strength)
            ours, same = (
                cosine_logits(backbone, f, F.normalize(classes, dim=-1)) for classes in both
            )
            ce = F.cross_entropy(ours, batch.labels)
            # up to a constant
            divergence = F.cross_entropy(same, cosine_logits(backbone, f, known).softmax(-1))
            return {"loss": ce + divergence, "ce": ce, "divergence": divergence}

        return loss
