"""2SFS: Farina et al., "Rethinking Few-Shot Adaptation of Vision-Language Models in Two Stages",
CVPR 2025 (https://arxiv.org/abs/2503.11609).

Stage 1, 60 percent of the steps: the LayerNorms in the blocks of both encoders learn, by
cross-entropy. Stage 2: only class features are trained, as free weights that start as the text
encoder's features after stage 1. Answers use these weights for trained classes, and the text
encoder after stage 1 for others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmadapter.backbones import Backbone
from rmadapter.encoders import EitherEncoder, Opaque, Packed, States, View, encoders_of, with_own
from rmadapter.methods.parts.features import FixedFeatures, Places
from rmadapter.methods.parts.learners import TextLearner
from rmadapter.prompts import cosine_logits, prompts_each
from rmadapter.training.contract import (
    PUBLISHED,
    About,
    Batch,
    Fitted,
    Known,
    ModuleMethod,
    Parameters,
    Recipe,
    Shots,
    Traits,
    Uses,
    count,
)

FIRST = 1  # block of the image encoder whose input is read; nothing before it is trained


class Norms(TextLearner):
    """Both encoders with their own LayerNorms in the blocks, which start as the backbone's, and
    weights [C, e] of C classes.

    All else is shared with the backbone. Raises UserError for encoders without blocks.
    """

    def __init__(self, backbone: Backbone, classes: int) -> None:
        super().__init__(backbone)
        norms = _norms(backbone.image, backbone.text)
        model = with_own(backbone.model, (p for norm in norms for p in norm.parameters()))
        self.image, self.text = encoders_of(model)
        self.norms = nn.ModuleList(_norms(self.image, self.text)).requires_grad_()
        self.classes = nn.Parameter(
            torch.zeros(classes, backbone.embedding_size, device=backbone.device)
        )

    def image_features(self, states: States) -> Tensor:
        return self.image.encode(states.x, states.layout, FIRST, views=_own_views(self.image))

    def encode_text(self, x: Tensor, layout: Packed) -> Tensor:
        return self.text.encode(x, layout, views=_own_views(self.text))

    def encode_classes(self, names: Sequence[str], known: Known) -> Tensor:
        """Return normalised class weights [C, e]: trained for known classes, from the text encoder
        for others."""
        weights = F.normalize(self.classes, dim=-1)

        others = partial(super().encode_classes, known=known)
        places = Places.of("2SFS", self.backbone, known.classes, names)
        return places.weights(lambda _, rows: weights[rows], others)


def _own_views(encoder: EitherEncoder) -> Sequence[View | Opaque]:
    """Return the blocks' own views where copies that were cast would round elsewhere than autocast
    does: with LayerScale, whose products autocast leaves in float32. Else none."""
    parts = [getattr(view, "ls1", nn.Identity()) for view in encoder.views]
    return () if all(isinstance(part, nn.Identity) for part in parts) else encoder.views


def _norms(*encoders: EitherEncoder) -> list[nn.Module]:
    """Return the LayerNorms in their blocks."""
    blocks = (block for encoder in encoders for block in encoder.blocks)
    return [
        module for block in blocks for module in block.modules() if isinstance(module, nn.LayerNorm)
    ]


@dataclass(frozen=True)
class TwoStages(ModuleMethod[Norms]):
    """One setting for all data sets, as published; stages end with whole epochs. Several templates
    are averaged, where the released code trains with the first.

    The paper speaks of LayerNorms. The released code meets those outside the blocks twice, and
    freezes them again at the second time, so it trains those in the blocks, as here.
    """

    title = "2SFS"
    source = (
        "Farina et al., CVPR 2025 (arXiv 2503.11609); defaults of "
        "github.com/FarinaMatteo/rethinking_fewshot_vlms"
    )
    traits = Traits(
        uses=Uses(tuned=PUBLISHED),
        about=About("encoders", "LayerNorms, and then the class features"),
    )
    recipe: Recipe = Recipe(
        optimizer="adamw",
        learning_rate=2e-4,
        weight_decay=0.01,
        iterations=300,
        batch_size=32,
        schedule="twice",
        warmup_epochs=0,
        final_rate=1e-6,
    )

    def module(self, backbone: Backbone, seed: int = 1, classes: int = 100) -> Norms:
        return Norms(backbone, classes)

    def blank(self, backbone: Backbone, known: Known, tensors: Mapping[str, Tensor]) -> Norms:
        return Norms(backbone, len(known.classes))

    def fit(self, backbone: Backbone, shots: Shots) -> Fitted:
        module = Norms(backbone, len(shots.classes))
        each = prompts_each(shots.classes, shots.templates)
        prompts = module.prompts(shots.classes, shots.templates)
        source, epochs = shots.source(FIRST), self.recipe.length(shots.images.labels)[0]
        turn = self.recipe.restart(epochs)
        fixed = FixedFeatures(source, module.image_features, epochs - turn)

        def loss(batch: Batch) -> Tensor:
            if batch.epoch < turn:
                features = module.image_features(batch.images)
                weights = module.class_features(prompts, each)
            else:
                features = fixed.features(batch, source)
                weights = F.normalize(module.classes, dim=-1)
            return F.cross_entropy(cosine_logits(backbone, features, weights), batch.labels)

        @torch.no_grad()
        def start(epoch: int) -> None:
            if epoch + 1 == turn:
                module.classes.copy_(module.class_features(prompts, each))

        return self.train(module, loss, shots, source, after_epoch=start)

    def parameters(self, backbone: Backbone, classes: int = 100, shots: int = 16) -> Parameters:
        return Parameters(count(Norms(backbone, classes)))
