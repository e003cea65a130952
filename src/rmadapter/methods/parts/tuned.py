"""Fine-tuning of the encoders themselves."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from rmadapter.adapter import SIDES
from rmadapter.backbones import Backbone
from rmadapter.encoders import EitherEncoder, Packed, States, encoders_of, weights_of, with_own
from rmadapter.methods.parts.learners import TextLearner
from rmadapter.prompts import frozen_prompts


class TunedCLIP(TextLearner):
    """Encoders whose upper blocks and the norm and projection after them learn.

    All else is the backbone's own.

    Args:
        backbone: Backbone with blocks.
        skipped: Share of the blocks, from below, that do not learn.
        sides: Whose encoders learn, of "image" and "text".

    Raises:
        UserError: An encoder has no blocks.
    """

    def __init__(
        self, backbone: Backbone, skipped: float = 0.0, sides: Sequence[str] = SIDES
    ) -> None:
        super().__init__(backbone)
        encoders: tuple[EitherEncoder, ...] = (backbone.image, backbone.text)
        firsts = [1 + int(skipped * encoder.depth) for encoder in encoders]
        self.first, self.first_text = firsts
        upper: list[nn.Module | nn.Parameter | None] = []
        for side, encoder, first in zip(SIDES, encoders, firsts, strict=True):
            if side in sides:
                upper += [*encoder.blocks[first - 1 :], *encoder.tail]
        model = with_own(backbone.model, weights_of(*upper))
        self.image, self.text = encoders_of(model)
        theirs = {id(parameter) for parameter in backbone.model.parameters()}
        copies = {name: p for name, p in model.named_parameters() if id(p) not in theirs}
        self.tuned = nn.ParameterDict(
            {name.replace(".", "/"): p for name, p in copies.items()}
        ).requires_grad_()

    def image_features(self, states: States) -> Tensor:
        assert self.first is not None
        # not of cast copies
        return self.image.encode(states.x, states.layout, self.first, views=self.image.views)

    def encode_text(self, x: Tensor, layout: Packed) -> Tensor:
        """Encode tokens [T, d] that enter the first trained block -> features [P, e]."""
        return self.text.encode(x, layout, self.first_text, views=self.text.views)

    def prompts(
        self, names: Sequence[str], templates: Sequence[str]
    ) -> list[tuple[Tensor, Packed]]:
        frozen = frozen_prompts(self.backbone, names, templates, self.first_text)
        return [(states.x, states.layout) for states in frozen]
