"""HiCroPL: Zheng et al., "Hierarchical Cross-modal Prompt Learning for Vision-Language Models",
ICCV 2025 (arXiv 2507.14976).

All blocks of both encoders have prompts. In the lower blocks, text prompts guide image prompts;
above, image prompts guide text prompts. The prompts of each guiding block are pooled into one
token, its proxy; the guided prompts of all blocks together attend to all proxies. Features of
either encoder are the normalised sum of the prompted and the untouched ones, each normalised
before. With these, f and w, and the untouched f_0 and w_0, the loss is

    CE(f, w) + lambda (1 - cos(f, f_0)) + lambda (1 - cos(w, w_0)).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmadapter.adapter import quick_gelu
from rmadapter.backbones import Backbone
from rmadapter.encoders import EitherEncoder, States
from rmadapter.errors import UserError
from rmadapter.methods.parts.learned_prompts import (
    Prompted,
    PromptedText,
    check_room,
    draw,
    encode_image,
    first_context,
)
from rmadapter.prompts import cosine_logits, zero_shot_weights
from rmadapter.settings import Size
from rmadapter.support.machine import seeded
from rmadapter.training.contract import (
    PUBLISHED,
    About,
    Batch,
    Known,
    Loss,
    ModuleMethod,
    Recipe,
    Shots,
    Traits,
    Uses,
    summed,
)

HEADS = 8


class Proxy(nn.Module):
    """Prompts [n, d] of a block -> their proxy, one token [1, d]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, width))
        self.attention = nn.MultiheadAttention(width, HEADS)
        self.norm, self.top_norm = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, prompts: Tensor) -> Tensor:
        n = self.norm(prompts)
        read: Tensor = self.attention(self.norm(self.token), n, n, need_weights=False)[0]
        return self.top_norm(self.token + read)


class Mapper(nn.Module):
    """Prompts [m, d] after attention to proxies [p, d'] of the other encoder."""

    def __init__(self, width: int, other: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (
            nn.Linear(size, width) for size in (width, other, other)
        )
        self.attention = nn.MultiheadAttention(width, HEADS)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm, self.top_norm = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, prompts: Tensor, proxies: Tensor) -> Tensor:
        q, k, v = self.query(prompts), self.norm(self.key(proxies)), self.norm(self.value(proxies))
        x: Tensor = q + self.attention(self.norm(q), k, v, need_weights=False)[0]
        return x + self.down(quick_gelu(self.up(self.top_norm(x))))


class HierarchicalPrompts(Prompted):
    """Prompts of both encoders that guide each other, in opposite directions below and above block
    `turn`.

    An encoder with fewer than `depth` blocks has prompts in all of them, and its turn at the same
    relative height.
    """

    def __init__(self, method: HiCroPL, backbone: Backbone, seed: int) -> None:
        super().__init__(backbone)
        check_room(backbone, method.title)
        if method.turn >= method.depth:
            raise UserError(f"hicropl.turn={method.turn}: give a number below depth={method.depth}")
        n = method.n_ctx
        sides: dict[str, EitherEncoder] = {"text": backbone.text, "image": backbone.image}
        if odd := next(
            (encoder.width for encoder in sides.values() if encoder.width % HEADS), None
        ):
            raise UserError(
                f"HiCroPL's {HEADS} heads of attention do not divide {backbone.name}'s width, {odd}"
            )
        depths = {side: min(method.depth, encoder.depth) for side, encoder in sides.items()}
        self.turn = {
            side: max(1, method.turn * depth // method.depth) for side, depth in depths.items()
        }
        first, self.rest = first_context(backbone, method.init, n, seed)
        deeper = draw((depths["text"] - 1) * n, backbone.text.width, seed + 1).split(n)
        # in all blocks, as in the released code; so with proxies
        alike = draw(n, backbone.image.width, seed + 2)
        prompts = {"text": [first, *deeper], "image": [alike] * depths["image"]}
        self.prompts = nn.ModuleDict(
            {s: nn.ParameterList(p.clone() for p in prompts[s]) for s in sides}
        )
        guiding = {"text": self.turn["text"], "image": depths["image"] - self.turn["image"]}
        with seeded(seed):
            one = {side: Proxy(encoder.width) for side, encoder in sides.items()}
            self.mappers = nn.ModuleDict(
                {
                    to: Mapper(sides[to].width, sides[by].width)
                    for to, by in (("image", "text"), ("text", "image"))
                }
            )
        self.proxies = nn.ModuleDict(
            {
                s: nn.ModuleList(deepcopy(proxy) for _ in range(guiding[s]))
                for s, proxy in one.items()
            }
        )
        self.to(backbone.device)

    def _parts(self, side: str) -> tuple[list[Tensor], list[Tensor]]:
        """Return the prompts of the blocks below the turn and of those above it."""
        prompts, turn = [*self.prompts[side]], self.turn[side]  # type: ignore[misc]
        return prompts[:turn], prompts[turn:]

    def _guided(
        self, side: str, prompts: list[Tensor], by: str, guides: list[Tensor]
    ) -> list[Tensor]:
        pools = self.proxies[by].children()
        proxies = torch.cat([pool(guide) for pool, guide in zip(pools, guides, strict=True)])
        return [*self.mappers[side](torch.cat(prompts), proxies).split(len(prompts[0]))]

    def into_text(self) -> list[Tensor]:
        low, high = self._parts("text")
        return [*low, *self._guided("text", high, "image", self._parts("image")[1])]

    def into_image(self) -> list[Tensor]:
        low, high = self._parts("image")
        return [*self._guided("image", low, "text", self._parts("text")[0]), *high]

    def joint_image(self, states: States, prompts: Sequence[Tensor]) -> Tensor:
        """Return f [B, e], not normalised, with the prompts of `into_image`."""
        return _sum(
            encode_image(self.backbone, states, prompts), self.backbone.image.untouched(states)
        )

    def joint_classes(self, text: PromptedText, known: Tensor) -> Tensor:
        """Return w [C, e], normalised.

        Args:
            text: Prompts of the C classes.
            known: Untouched class features [C, e].
        """
        return F.normalize(_sum(self.class_features(text), known), dim=-1)

    def encode_classes(self, names: Sequence[str], known: Known) -> Tensor:
        w_0 = zero_shot_weights(self.backbone, names, known.templates)
        return self.joint_classes(self.text(names), w_0)

    def image_encoder(self) -> Callable[[States], Tensor]:
        return partial(self.joint_image, prompts=self.into_image())


def _sum(prompted: Tensor, untouched: Tensor) -> Tensor:
    return F.normalize(prompted, dim=-1) + F.normalize(untouched, dim=-1)


@dataclass(frozen=True)
class HiCroPL(ModuleMethod[HierarchicalPrompts]):
    """Prompts of all blocks of both encoders that guide each other.

    For w_0 the authors average sentences that a language model wrote about each class, new classes
    included; here it is the average of the class's descriptions, or of the run's prompts if it has
    none. Their released code copies the mapped values into the prompts without a gradient, so
    proxies and mappers stay random, and maps again for every batch it answers, so answers drift;
    here they are trained, and answers do not change (research/results/parity.md).

    Args:
        n_ctx: Prompts per block.
        depth: Prompted blocks.
        turn: Number of blocks in which text guides.
        init: Words that the first text prompts start from.
        consistency: Weight lambda of the consistency.
    """

    title = "HiCroPL"
    source = (
        "Zheng et al., ICCV 2025 (arXiv 2507.14976); vit_b16_c2_ep50_batch32_16ctx.yaml of "
        "github.com/zzeoZheng/HiCroPL"
    )
    traits = Traits(
        uses=Uses(
            extra="descriptions of all classes, where they have some; without them the "
            "run's prompts",
            constants="epochs and batch on ImageNet",
            tuned=PUBLISHED,
        ),
        about=About("encoders", "prompts of both encoders that guide each other"),
    )
    n_ctx: Size = 16
    depth: Size = 12
    turn: Size = 6
    init: str = "a photo of a"
    consistency: float = 12.0
    recipe: Recipe = Recipe(optimizer="adam", learning_rate=0.0025, eps=1e-3)

    def module(self, backbone: Backbone, seed: int = 1) -> HierarchicalPrompts:
        return HierarchicalPrompts(self, backbone, seed)

    def objective(self, module: HierarchicalPrompts, shots: Shots) -> Loss:
        text = module.text(shots.classes)
        w_0 = zero_shot_weights(module.backbone, shots.classes, shots.templates)

        def loss(batch: Batch) -> dict[str, Tensor]:
            f = module.joint_image(batch.images, module.into_image())
            w, f_0 = module.joint_classes(text, w_0), module.backbone.image.untouched(batch.images)
            terms = {
                "ce": F.cross_entropy(cosine_logits(module.backbone, f, w), batch.labels),
                "image": self.consistency * (1 - F.cosine_similarity(f, f_0).mean()),
                "text": self.consistency * (1 - F.cosine_similarity(w, w_0).mean()),
            }
            return summed(terms)

        return loss
