"""MAIL: "Multi-Modal Interactive Agent Layer for Few-Shot Universal Cross-Domain Retrieval and
Beyond", NeurIPS 2025 (https://openreview.net/forum?id=rHt6tt5RNF).

An agent layer A(x) = a x + b has a factor and a shift for each number of a token. One follows each
norm, attention and MLP of every block of both encoders, the norm above the top block, and the
projection W of either encoder, which is trained, too:

    x <- x + A_2(attention(A_1(norm(x))))
    x <- x + A_4(MLP(A_3(norm(x))))
    f = A_6(A_5(norm(x)) W)

In BERT, whose norms come after attention and MLP, A_1 and A_3 follow them there. An image's agent
layer also takes the text's factors at the same place, over a bridge of low rank: a + a_text D U,
with D [d_text, r], and U [r, d_image], which starts at zero. For answers, the agent layers of the
image encoder's blocks are merged into the weights in front of them, so that it runs as fast as the
untouched one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmadapter.backbones import Backbone
from rmadapter.encoders import (
    BlockView,
    EitherEncoder,
    ImageEncoder,
    Opaque,
    Packed,
    PreNorm,
    States,
    View,
    encoders_of,
    with_own,
)
from rmadapter.errors import UserError
from rmadapter.methods.parts.learners import TextLearner
from rmadapter.settings import Size
from rmadapter.support.machine import seeded
from rmadapter.training.contract import (
    PUBLISHED,
    About,
    Loss,
    ModuleMethod,
    Recipe,
    Shots,
    Traits,
    Uses,
)

Affine: TypeAlias = tuple[Tensor, Tensor]  # a [d] and b [d]
PLACES = ("norm", "attention", "norm2", "mlp")  # in a block, each followed by an agent layer
TOP = "top"  # above the blocks: "norm" and "projection"


class Agent(nn.Module):
    """The factors and shifts of an agent layer; at first it changes nothing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))


class Bridged(Agent):
    """An image's agent layer, with a bridge from the text's at the same place.

    Args:
        width: Width of an image's tokens.
        down: D [d_text, r] at first.
    """

    def __init__(self, width: int, down: Tensor) -> None:
        super().__init__(width)
        self.down = nn.Parameter(down.clone())
        self.up = nn.Parameter(torch.zeros(down.shape[1], width))

    def coupled(self, text: Agent) -> Affine:
        return self.scale + text.scale @ self.down @ self.up, self.shift


def stack(
    depth: int, in_block: Callable[[], Agent], norm: Agent, projection: Agent
) -> nn.ModuleDict:
    """Return the agent layers of an encoder by block, counted from 1, and place."""
    blocks = {
        str(block): nn.ModuleDict({place: in_block() for place in PLACES})
        for block in range(1, depth + 1)
    }
    return nn.ModuleDict({**blocks, TOP: nn.ModuleDict({"norm": norm, "projection": projection})})


def affine(x: Tensor, agent: Affine) -> Tensor:
    """Return a x + b in the number format of x [..., d]."""
    scale, shift = agent
    return (x * scale + shift).to(x.dtype)


class AgentBlock(BlockView):
    """A block with its agent layers by place."""

    def __init__(self, encoder: EitherEncoder, block: int, agents: Mapping[str, Affine]) -> None:
        super().__init__(encoder, block)
        self.agents = agents

    def _edit(self, place: str, x: Tensor) -> Tensor:
        return affine(x, self.agents[place])

    def read(self, n: Tensor) -> Tensor:
        return self._edit("norm", n) if self.plain(n.dtype).norm_first else n

    def close(self, x: Tensor, attended: Tensor) -> Tensor:
        return self.plain(x.dtype).close_by_parts(x, attended, self._edit)


def layers_before(view: View | Opaque) -> dict[str, nn.LayerNorm | nn.Linear]:
    """Return the layers of a pre-norm block that its agent layers follow, by place, as far as the
    agent layers can be merged into them."""
    if not isinstance(view, PreNorm):
        return {}
    linear = [layer for layer in view.layers if isinstance(layer, nn.Linear)]
    found = {"norm": view.norm, "attention": view.out, "norm2": view.norm2}
    found |= {"mlp": linear[-1]} if linear else {}
    return {
        place: layer
        for place, layer in found.items()
        if isinstance(layer, (nn.LayerNorm, nn.Linear)) and layer.bias is not None
    }


@torch.no_grad()
def merge(layer: nn.LayerNorm | nn.Linear, agent: Affine) -> None:
    """Change a layer so that its output is what the agent layer made of it."""
    scale, shift = agent
    layer.weight.mul_(scale if layer.weight.ndim == 1 else scale[:, None])
    layer.bias.mul_(scale).add_(shift)


class AgentCLIP(TextLearner):
    """The agent layers of both encoders, which are not modified, and their projections, if these
    are linear and trained.

    Raises UserError for blocks that cannot be taken apart.
    """

    def __init__(self, backbone: Backbone, rank: int, projections: bool, seed: int) -> None:
        super().__init__(backbone)
        self.encoders: dict[str, EitherEncoder] = {"image": backbone.image, "text": backbone.text}
        mergeable = all(len(layers_before(view)) == len(PLACES) for view in backbone.image.views)
        if not mergeable or backbone.text.opaque:
            raise UserError(
                f"MAIL changes the norms, attention and MLPs of each block, but the blocks of "
                f"{backbone.name} cannot be taken apart; choose another method or a plain ViT"
            )
        image, text, size = backbone.image, backbone.text, backbone.embedding_size
        with seeded(seed):  # the bridges of all blocks start alike, as in the released code
            alike, norm, projection = (
                torch.randn(width, rank) / math.sqrt(width)
                for width in (text.width, text.width, size)
            )
        self.agents = nn.ModuleDict(
            {
                "image": stack(
                    image.depth,
                    partial(Bridged, image.width, alike),
                    Bridged(image.width, norm),
                    Bridged(size, projection),
                ),
                "text": stack(
                    text.depth, partial(Agent, text.width), Agent(text.width), Agent(size)
                ),
            }
        )
        self.projections = nn.ParameterDict()
        for side, encoder in self.encoders.items():
            if projections and encoder.projection is not None:
                start = encoder.projection[0].detach()
                own = nn.Parameter(start.clone(memory_format=torch.contiguous_format))
                self.projections[side] = own
        self.to(backbone.device)

    def _agent(self, side: str, block: str, place: str) -> Agent:
        agent = self.agents.get_submodule(f"{side}.{block}.{place}")
        assert isinstance(agent, Agent)
        return agent

    def affine(self, side: str, block: str, place: str) -> Affine:
        """Return factors and shifts of an agent layer, with what comes over its bridge."""
        agent = self._agent(side, block, place)
        if not isinstance(agent, Bridged):
            return agent.scale, agent.shift
        return agent.coupled(self._agent("text", self._beside(block), place))

    def _beside(self, block: str) -> str:
        """Return the text encoder's block at the relative height of an image encoder's."""
        if block == TOP:
            return TOP
        image, text = self.encoders["image"].depth, self.encoders["text"].depth
        return str(math.ceil(int(block) * text / image))

    def _of_block(self, side: str, block: int) -> dict[str, Affine]:
        """Return factors and shifts of a block's agent layers, by place."""
        return {place: self.affine(side, str(block), place) for place in PLACES}

    def _views(self, side: str) -> list[AgentBlock]:
        encoder = self.encoders[side]
        blocks = range(1, encoder.depth + 1)
        return [AgentBlock(encoder, block, self._of_block(side, block)) for block in blocks]

    def _features(self, side: str, pooled: Tensor) -> Tensor:
        """Return features [B or C, e] of what is projected, [B or C, d]."""
        encoder, x = self.encoders[side], affine(pooled, self.affine(side, TOP, "norm"))
        if side in self.projections:
            assert encoder.projection is not None
            x = F.linear(x, self.projections[side].T, encoder.projection[1])
        else:
            x = encoder.project(x)
        return affine(x, self.affine(side, TOP, "projection"))

    def image_features(self, states: States, merged: ImageEncoder | None = None) -> Tensor:
        """Return features [B, e], not normalised, from the input of the image encoder's first
        block, by the encoder that `merged` returned, if it is given."""
        image = merged or self.backbone.image
        views = () if merged else self._views("image")
        x = image.through(states.x, states.layout, views=views)
        return self._features("image", image.pooled(x, states.layout))

    @torch.no_grad()
    def merged(self) -> ImageEncoder:
        """Return the image encoder with the agent layers of its blocks in its weights. It shares
        with the backbone what they do not change."""
        own = [
            parameter
            for view in self.backbone.image.views
            for layer in layers_before(view).values()
            for parameter in layer.parameters()
        ]
        image, _ = encoders_of(with_own(self.backbone.model, own))
        for block, view in enumerate(image.views, 1):
            agents = self._of_block("image", block)
            for place, layer in layers_before(view).items():
                merge(layer, agents[place])
        return image

    def encode_text(self, x: Tensor, layout: Packed) -> Tensor:
        text = self.backbone.text
        x = text.through(x, layout, views=self._views("text"))
        return self._features("text", text.pooled(x, layout))

    def image_encoder(self) -> Callable[[States], Tensor]:
        return partial(self.image_features, merged=self.merged())


@dataclass(frozen=True)
class MAIL(ModuleMethod[AgentCLIP]):
    """Agent layers behind each part of both encoders, tied together.

    The released code has other words of the prompt for each data set, and on some another rate,
    rank, batch or optimiser; here all use those of its general file. Several templates are
    averaged, where it has one.

    Args:
        rank: Rank r of the bridges.
        projections: Whether both projections are trained.
    """

    title = "MAIL"
    source = (
        "NeurIPS 2025 (openreview.net/forum?id=rHt6tt5RNF); configs/trainers/MAILSRC_Trainer/"
        "base2new.yaml of github.com/pSGAme/MAIL-for-Classification"
    )
    traits = Traits(
        uses=Uses(
            constants="the words of the prompt; on eight sets rate, rank, batch, epochs, "
            "optimiser, crops or which projections learn",
            tuned=PUBLISHED,
        ),
        about=About(
            "encoders", "factors and shifts behind each part of both encoders, tied together"
        ),
    )
    rank: Size = 32
    projections: bool = True
    recipe: Recipe = Recipe(
        optimizer="adamw", learning_rate=1.5e-5, epochs=10, batch_size=4, warmup_epochs=0
    )

    def module(self, backbone: Backbone, seed: int = 1) -> AgentCLIP:
        return AgentCLIP(backbone, self.rank, self.projections, seed)

    def objective(self, module: AgentCLIP, shots: Shots) -> Loss:
        return module.cross_entropy(module.prompts(shots.classes, shots.templates), shots)
