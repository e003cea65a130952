"""RMAdapter (Lin et al., AAAI-26, arXiv 2512.06811), and its parent MMA (Yang et al., CVPR 2024) as
a configuration.

Adapters and loss are in `adapter.py`; this file trains them. MMA is the same without reconstruction
and consistency, on the block's own LayerNorm, with a projection shared by both encoders and
gradients as if alpha were 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.backbones.known import kept_adapted
from rmadapter.errors import UserError
from rmadapter.model import AdaptedCLIP
from rmadapter.prompts import Cosines, prompts_each, tokenize
from rmadapter.settings import AdapterSettings, LossSettings
from rmadapter.training.contract import (
    PUBLISHED,
    About,
    Batch,
    Fitted,
    Known,
    Method,
    Parameters,
    Recipe,
    Shots,
    ToLogits,
    Traits,
    Uses,
    minimise,
)

ADAMW = Recipe(
    optimizer="adamw",
    learning_rate=6e-3,
    epochs=10,
    batch_size=16,
    schedule="step",
    warmup_epochs=0,
)


@dataclass(frozen=True)
class RMAdapter(Method):
    """RMAdapter (Lin et al., AAAI-26, arXiv 2512.06811) as a method.

    docs/studies/defaults.md explains what the paper leaves open.

    Args:
        title: Name in tables.
        source: Paper, and where the settings are from.
        adapter: Settings of the adapters.
        loss: Settings of the loss.
        recipe: Optimiser and its schedule.
        forward: "lean" computes nothing twice, "reference" uses the backbone's own forward pass;
            both give the same loss.
        traits: What it says about itself.

    Example:
        >>> from rmadapter import AdapterSettings, RMAdapter, load_backbone
        >>> method = RMAdapter(adapter=AdapterSettings(first_block=3, rank=4))
        >>> method.parameters(load_backbone("tiny"))
        Parameters(trained=3232, training_only=1200)
    """

    title: str = "RMAdapter"
    source: str = (
        "Lin et al., AAAI-26 (arXiv 2512.06811); open choices as in docs/studies/defaults.md"
    )
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    recipe: Recipe = ADAMW
    forward: Literal["lean", "reference"] = "lean"
    traits: Traits = Traits(
        uses=Uses(tuned="this project's choosing sets (docs/studies/defaults.md)"),
        about=About(
            "blocks",
            "adapters with reconstruction and a pull to CLIP",
            "trained and new classes, as in the paper",
        ),
        own_reading="from the paper, as no code was released, with settings of this project",
    )

    def model(self, backbone: Backbone, seed: int = 1) -> AdaptedCLIP:
        """Return a backbone with untrained adapters.

        Args:
            backbone: Frozen backbone.
            seed: Seed of the initialisation.
        """
        return AdaptedCLIP(backbone, self.adapter, self.loss, seed)

    def fit(self, backbone: Backbone, shots: Shots) -> Fitted:
        if self.adapter.alpha == 0:
            raise UserError(
                "alpha=0 trains nothing: the adapters' output would not count; give a number above "
                "0"
            )
        return self.train(self.model(backbone, shots.seed), shots)

    def train(self, model: AdaptedCLIP, shots: Shots) -> Fitted:
        """Train the adapters of a model on the shots.

        Args:
            model: Model that `model` returned.
            shots: Images to train on.

        Returns:
            The fitted method.
        """
        backbone, count = model.backbone, prompts_each(shots.classes, shots.templates)
        tokens, first = tokenize(backbone, shots.classes, shots.templates), model.first("image")
        text = model.frozen_text(tokens)
        features = torch.cat([chunk.features for chunk in text])

        def loss(batch: Batch) -> dict[str, Tensor]:
            if self.forward == "lean":
                return model(batch.labels, batch.images, text, count)
            pixels = shots.pixels(batch.rows, batch.epoch, first)
            return model.reference(
                batch.labels, pixels, tokens, (batch.images.features, features), count
            )

        trained = minimise(model.adapters, loss, self.recipe, shots, shots.source(first))
        return self._fitted(model, shots.known).after(trained)

    def restore(self, backbone: Backbone, known: Known, tensors: Mapping[str, Tensor]) -> Fitted:
        model = self.model(backbone)
        model.adapters.load_state_dict(dict(tensors))
        return self._fitted(model, known)

    def _fitted(self, model: AdaptedCLIP, known: Known) -> Fitted:
        def for_classes(names: Sequence[str]) -> ToLogits:
            weights = class_weights(model, names, known.templates, known.saved)
            return Cosines(
                model.backbone, lambda states: model.features("image", states)[0], weights
            )

        tensors, count = model.adapters.state_dict(), model.adapters.parameter_counts()[0]
        return Fitted(
            self, model.backbone, known, tensors, for_classes, model.first("image"), count
        )

    def parameters(self, backbone: Backbone, classes: int = 100, shots: int = 16) -> Parameters:
        return Parameters(*self.model(backbone).adapters.parameter_counts())

    def starts_at(self, backbone: Backbone) -> int:
        return self.model(backbone).first("image")


def class_weights(
    model: AdaptedCLIP, names: Sequence[str], templates: Sequence[str], saved: str
) -> Tensor:
    """Return normalised class features [C, e] of a fitted model, or those that were kept of a saved
    one, whose digest is `saved`."""
    make = partial(model.class_weights, names, templates)
    return kept_adapted(model.backbone, names, templates, saved, make)


MMA = RMAdapter(
    "MMA",
    "Yang et al., CVPR 2024; vit_b16_ep5.yaml of github.com/ZjjConan/Multi-Modal-Adapter",
    AdapterSettings(
        norm="block",
        cross_modal=True,
        activation="relu",
        init="kaiming",
        alpha=0.001,
        decouple_scale=True,
    ),
    LossSettings(
        lambda_image_rec=0.0, lambda_text_rec=0.0, lambda_image_con=0.0, lambda_text_con=0.0
    ),
    Recipe(
        optimizer="sgd",
        learning_rate=0.0015,
        epochs=5,
        batch_size=16,
        schedule="epoch",
        warmup_epochs=0,
    ),
    traits=Traits(
        uses=Uses(constants="batch, on ImageNet", tuned=PUBLISHED),
        about=About(
            "blocks",
            "adapters beside blocks, tied across encoders",
            "trained classes, with nothing to preserve",
        ),
    ),
)
# RMAdapter with the losses as printed: Eq. 11 and 12 rebuild the tokens that leave a block, and
# Eq. 17 sums over features that are not normalised. It follows MMA (optimisation) and PromptSRC
# (weights of consistency, which are of a mean over ViT-B/16's 512 components) as its paper says.
# MMA's norm is not in the equations, but without it MMA's optimisation does not move these adapters
# (research/studies/reconstruction.md).
PAPER = RMAdapter(
    "RMAdapter, trained as MMA",
    "Lin et al., AAAI-26, with its losses as printed; optimised as MMA, weights of consistency as "
    "PromptSRC",
    AdapterSettings(
        norm="block", init="kaiming", alpha=0.001, decouple_scale=True, target="adapted"
    ),
    LossSettings(
        1.0,
        1.0,
        lambda_image_con=10 / 512,
        lambda_text_con=25 / 512,
        consistency_unit="raw",
    ),
    MMA.recipe,
    traits=Traits(
        uses=Uses(constants="MMA's batch, on ImageNet", tuned="as MMA and PromptSRC published"),
        about=About(
            "blocks",
            "RMAdapter, with losses as printed and optimised as its paper suggests",
            "comparisons with the paper",
        ),
        own_reading="from the paper, as no code was released, with settings of MMA and PromptSRC",
    ),
)
# Controls: how much of a difference comes from the adapters rather than the losses, and how much
# from optimisation.
PLAIN = RMAdapter(
    "RMAdapter's adapters alone",
    "Lin et al., AAAI-26, without reconstruction and consistency; optimised with the defaults of "
    "this package",
    loss=MMA.loss,
    traits=Traits(
        uses=Uses(tuned="this project's choosing sets (docs/studies/defaults.md)"),
        about=About("blocks", "RMAdapter's adapters without its two losses", "studies: a control"),
    ),
)
MMA_ADAMW = RMAdapter(
    "MMA, trained as RMAdapter",
    "Yang et al., CVPR 2024; optimised with the defaults of this package",
    AdapterSettings(norm="block", cross_modal=True, activation="relu"),
    MMA.loss,
    ADAMW,
    traits=Traits(
        uses=Uses(tuned="this project's choosing sets (docs/studies/defaults.md)"),
        about=About("blocks", "MMA with RMAdapter's optimiser", "studies: a control"),
    ),
)
