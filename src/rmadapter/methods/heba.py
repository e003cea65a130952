"""HeBA: Islam, "HeBA: Heterogeneous Bottleneck Adapters for Robust Vision-Language Models", 2026
(arXiv 2603.16653).

LwEIB with other layers in every block of both encoders, on the input n of attention and on the
hidden units h of the MLP, before its activation:

n <- n + s a(n)        h <- h + s a'(h)
a(x) = LayerNorm(x + gelu(conv(x W_1)) W_2)

W_1 and W_2 lead through a quarter of the width. Images alone have conv, among 3 x 3 patches; their
class token is not changed. The labels of the loss are smoothed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from rmadapter.adapter import decoupled
from rmadapter.backbones import Backbone
from rmadapter.encoders import Packed
from rmadapter.methods.descriptions import packed
from rmadapter.methods.lweib import Convolutions, LwEIB, among_patches, on_patches
from rmadapter.settings import Count, Positive, Share
from rmadapter.training.contract import PUBLISHED, About, Recipe, Traits, Uses

REDUCTION = 4  # of the width


class Bottleneck(nn.Module):
    """a of tokens [..., d]; with conv, of the patches of square images [B, P, d]. In the tokens'
    number format."""

    def __init__(self, width: int, conv: bool) -> None:
        super().__init__()
        inner = width // REDUCTION
        self.down = nn.Linear(width, inner, bias=False)
        among = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.conv = among if conv else None
        self.up = nn.Linear(inner, width, bias=False)
        self.norm = nn.LayerNorm(width)
        nn.init.kaiming_normal_(self.up.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.down.weight.to(x.dtype))
        if self.conv is not None:
            y = among_patches(y, self.conv.weight)
        y = x + F.linear(F.gelu(y), self.up.weight.to(x.dtype))
        weight, bias = self.norm.weight.to(x.dtype), self.norm.bias.to(x.dtype)
        return F.layer_norm(y, y.shape[-1:], weight, bias, self.norm.eps)


class Bottlenecks(Convolutions):
    """The layers of all blocks of both encoders, which are not modified, and the model's texts, as
    bytes."""

    def layer(self, side: str, width: int) -> nn.Module:
        return Bottleneck(width, conv=side == "image")

    def on_image(self, x: Tensor, layer: nn.Module, scale: float) -> Tensor:
        return on_patches(x, layer, scale, self.backbone.image.front)

    def on_text(self, x: Tensor, layer: nn.Module, scale: float, layout: Packed) -> Tensor:
        return x + decoupled(layer, x, scale)

    def layout(self, tokens: Tensor) -> Packed:
        return self.backbone.text.layout(tokens)


@dataclass(frozen=True)
class HeBA(LwEIB):
    """LwEIB with bottlenecks instead of convolutions, and settings as there.

    The released configuration has a second, smaller scale for new classes, which its code never
    uses.

    Args:
        smoothing: Share of a label that is spread over all classes.
    """

    title = "HeBA"
    source = (
        "Islam, 2026 (arXiv 2603.16653); trainers/heba.py and configs/trainers/HeBA/base2new.yaml "
        "of github.com/Jahid12012021/VLM-HeBA"
    )
    traits = Traits(
        uses=Uses(
            extra="generated texts about each class, in a file; without it the run's prompts",
            files=("descriptions",),
            tuned=PUBLISHED,
        ),
        about=About(
            "encoders",
            "bottlenecks in all blocks, and texts about the classes",
            "classes that you have texts about",
        ),
    )
    fast: Positive = 2.25
    negatives: Count = 5
    smoothing: Share = 0.1
    recipe: Recipe = Recipe(learning_rate=0.0075, epochs=30, batch_size=16, warmup_epochs=0)

    def module(self, backbone: Backbone, seed: int = 1, texts: Tensor | None = None) -> Bottlenecks:
        return Bottlenecks(self, backbone, packed({}) if texts is None else texts, seed)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=self.smoothing)
