"""MaPLe: Khattak et al., "MaPLe: Multi-modal Prompt Learning", CVPR 2023 (arXiv 2210.03117).

Prompts P_i [n, d_t] enter the first J blocks of the text encoder, and F_i(P_i) [n, d_v], with
linear F_i, those of the image encoder (Eq. 5-8 of the paper). The class prompt is "P_1 of a NAME.",
where P_1 starts as the words "a photo".
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from rmadapter.backbones import Backbone
from rmadapter.methods.parts.learned_prompts import Prompted, check_room, draw, first_context
from rmadapter.settings import Size
from rmadapter.support.machine import seeded
from rmadapter.training.contract import (
    PUBLISHED,
    About,
    Batch,
    Loss,
    ModuleMethod,
    Recipe,
    Shots,
    Traits,
    Uses,
)


class CoupledPrompts(Prompted):
    """Text prompts, and the linear maps from them to image prompts.

    Blocks are coupled from the bottom, block i with block i, up to `depth` or the top of the
    shallower encoder.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_ctx: int,
        depth: int,
        init: str,
        seed: int,
        method: str = "MaPLe",
    ) -> None:
        super().__init__(backbone)
        check_room(backbone, method)
        image, text = backbone.image, backbone.text
        depth = min(depth, image.depth, text.depth)
        first, self.rest = first_context(backbone, init, n_ctx, seed)
        deeper = draw((depth - 1) * n_ctx, text.width, seed + 1).split(n_ctx) if depth > 1 else ()
        self.prompts = nn.ParameterList([first, *(prompt.clone() for prompt in deeper)])
        with seeded(seed):
            first_map, deeper_map = (nn.Linear(text.width, image.width) for _ in range(2))
        # The deeper ones start alike, as in the released code.
        self.maps = nn.ModuleList([first_map, *(deepcopy(deeper_map) for _ in range(depth - 1))])
        self.to(backbone.device)

    def into_text(self) -> list[Tensor]:
        return list(self.prompts)

    def into_image(self) -> list[Tensor]:
        return [layer(prompt) for layer, prompt in zip(self.maps, self.prompts, strict=True)]


@dataclass(frozen=True)
class MaPLe(ModuleMethod[CoupledPrompts]):
    """Prompt tokens in the blocks of both encoders, those of images made from those of text.

    Args:
        n_ctx: Prompts per block.
        depth: Prompted blocks J, at most the blocks that an encoder has.
        init: Words that the first text prompts start from.
    """

    title = "MaPLe"
    source = (
        "Khattak et al., CVPR 2023 (arXiv 2210.03117); vit_b16_c2_ep5_batch4_2ctx.yaml of "
        "github.com/muzairkhattak/multimodal-prompt-learning"
    )
    traits = Traits(
        uses=Uses(tuned=PUBLISHED),
        about=About(
            "encoders",
            "prompt tokens, the image's made from the text's",
            "studies: the reference for prompts in blocks",
        ),
    )
    n_ctx: Size = 2
    depth: Size = 9
    init: str = "a photo of a"
    recipe: Recipe = Recipe(learning_rate=0.0035, epochs=5, batch_size=4)

    def module(self, backbone: Backbone, seed: int = 1) -> CoupledPrompts:
        return CoupledPrompts(backbone, self.n_ctx, self.depth, self.init, seed)

    def objective(self, module: CoupledPrompts, shots: Shots) -> Loss:
        text = module.text(shots.classes)

        def loss(batch: Batch) -> Tensor:
            image, classes = module.image_features(batch.images), module.class_features(text)
            return F.cross_entropy(module.logits(image, classes), batch.labels)

        return loss
