"""Deep prompts: in the first blocks of an encoder, learned tokens take the place of those that left the block below.

Introduced for images by Jia et al., "Visual Prompt Tuning", ECCV 2022. `prompts` are the tokens [n, d] that enter
blocks 1, 2, ..., one tensor a block; above the last of them, what left the block below goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmadapter.backbone import Backbone
from rmadapter.bench.methods.prompts import PromptedText, init_words
from rmadapter.blocks import Whole
from rmadapter.errors import UserError
from rmadapter.towers import ImageTower, States, TextTower, towers


def prompted_towers(backbone: Backbone, method: str) -> tuple[ImageTower, TextTower]:
    """Both encoders. Raises UserError when there is no room for further tokens among those of an image."""
    image, text = towers(backbone.model)
    if any(isinstance(block, Whole) for block in image.blocks):
        raise UserError(
            f"{method} adds tokens to an image's own, and the blocks of {backbone.name} take no more than those of the "
            f"patches; choose another method or a plain ViT"
        )
    return image, text


def draw(count: int, width: int, seed: int) -> Tensor:
    """Random tokens [count, width] of CoOp's size, standard deviation 0.02."""
    return 0.02 * torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def first_context(backbone: Backbone, init: str, n_ctx: int, seed: int) -> tuple[Tensor, str]:
    """Where the context starts: the first n_ctx words of `init`, and the words left over, which stay as they are.

    Random, and no words left over, when `init` has fewer words.
    """
    words = init.split()
    if len(words) >= n_ctx:
        found = init_words(backbone, " ".join(words[:n_ctx]))
        if len(found) == n_ctx:
            return found, " ".join(words[n_ctx:])
    return draw(n_ctx, towers(backbone.model)[1].width, seed), ""


def prompted_text(backbone: Backbone, names: Sequence[str], n_ctx: int, rest: str = "") -> PromptedText:
    """The text encoder on "X ... X rest name.", whose X are the prompts."""
    return PromptedText(backbone, [f"{rest} {name}".strip() for name in names], n_ctx)


def encode_text(text: PromptedText, prompts: Sequence[Tensor]) -> Tensor:
    """Class features [C, e], not normalised."""

    def edit(i: int, x: Tensor) -> Tensor:
        return text.put(x, prompts[i - 1]) if 1 < i <= len(prompts) else x

    return text.encode(prompts[0], edit)


def encode_image(tower: ImageTower, x: Tensor, prompts: Sequence[Tensor]) -> Tensor:
    """Features [B, e], not normalised, of tokens [B, L, d] that enter block 1, with prompts [n, d] behind them.

    The first prompts pass the encoder's norm in front of block 1, as the image's tokens have. An encoder that pools
    over all tokens pools over the prompts too.
    """
    count = x.shape[1]

    def append(x: Tensor, prompt: Tensor) -> Tensor:
        return torch.cat([x[:, :count], prompt.expand(len(x), -1, -1)], 1)

    def edit(i: int, x: Tensor) -> Tensor:
        return append(x, prompts[i - 1]) if 1 < i <= len(prompts) else x

    return tower.encode(append(x, pre_norm(tower)(prompts[0])), tower.layout, edit)


def pre_norm(tower: ImageTower) -> nn.Module:
    """The norm between the embeddings and block 1."""
    return tower.visual.trunk.norm_pre if tower.timm else tower.visual.ln_pre


def cosine(backbone: Backbone, image: Tensor, text: Tensor) -> Tensor:
    """Features [B, e] and [C, e], normalised here, -> logits [B, C] over CLIP's temperature."""
    scale: Tensor = backbone.model.logit_scale.exp()  # type: ignore[operator]
    return scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T


def by_name(
    backbone: Backbone, module: Any, prompted: Callable[[Sequence[str]], PromptedText]
) -> Callable[[Sequence[str]], Callable[[States], Tensor]]:
    """`Classifier.for_classes` of a trained module with `class_features` and `image_features`."""

    @torch.no_grad()
    def for_classes(names: Sequence[str]) -> Callable[[States], Tensor]:
        classes = module.class_features(prompted(names))
        return torch.no_grad()(lambda states: cosine(backbone, module.image_features(states), classes))

    return for_classes


def count(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())
