"""Deep prompts: in the first blocks of an encoder, learned tokens replace the prompt tokens output
by the block below.

Introduced for images by Jia et al., "Visual Prompt Tuning", ECCV 2022. `prompts` are the tokens [n,
d] that enter blocks 1, 2, ..., one tensor per block; above the last of these, nothing is replaced.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.encoders import States
from rmadapter.errors import UserError
from rmadapter.methods.parts.context import PromptedText, draw, init_words
from rmadapter.prompts import Cosines, cosine_logits
from rmadapter.training.contract import Known, Learner, ToLogits


def check_room(backbone: Backbone, method: str) -> None:
    """Raise UserError if the image encoder cannot take additional tokens."""
    if backbone.image.opaque:
        raise UserError(
            f"{method} adds tokens to an image's own, but the blocks of {backbone.name} only take "
            "those of its "
            f"patches; choose another method or a plain ViT"
        )


def first_context(backbone: Backbone, init: str, n_ctx: int, seed: int) -> tuple[Tensor, str]:
    """Return the initial context, from the first n_ctx words of `init`, and the remaining words,
    which stay fixed.

    The context is random and no words remain if `init` has fewer words, or one of them takes
    several tokens.
    """
    words = init.split()
    if len(words) >= n_ctx:
        vectors = init_words(backbone, " ".join(words[:n_ctx]))
        if len(vectors) == n_ctx:
            return vectors, " ".join(words[n_ctx:])
    return draw(n_ctx, backbone.text.width, seed), ""


def encode_text(text: PromptedText, prompts: Sequence[Tensor]) -> Tensor:
    """Return class features [C, e], not normalised."""

    def edit(i: int, x: Tensor) -> Tensor:
        return text.put(x, prompts[i - 1]) if 1 < i <= len(prompts) else x

    return text.encode(prompts[0], edit)


def encode_image(backbone: Backbone, states: States, prompts: Sequence[Tensor]) -> Tensor:
    """Return features [B, e], not normalised, of tokens [B, L, d] that enter block 1, followed by
    prompts [n, d].

    The first prompts pass through the encoder's norm before block 1, as the image's tokens already
    have. An encoder that pools over all tokens also pools over the prompts.
    """
    encoder, length = backbone.image, states.x.shape[1]

    def append(x: Tensor, prompt: Tensor) -> Tensor:
        return torch.cat([x[:, :length], prompt.to(x.dtype).expand(x.shape[0], -1, -1)], 1)

    def edit(i: int, x: Tensor) -> Tensor:
        return append(x, prompts[i - 1]) if 1 < i <= len(prompts) else x

    return encoder.encode(append(states.x, encoder.pre_norm(prompts[0])), states.layout, edit=edit)


def logits(backbone: Backbone, image: Tensor, classes: Tensor) -> Tensor:
    """Compare features [B, e] and [C, e], normalised here, -> [B, C]."""
    return cosine_logits(backbone, image, F.normalize(classes, dim=-1))


class Prompted(Learner):
    """A module of prompts for both encoders. rest: fixed words between the text prompts and a class
    name. Features are not normalised."""

    first = 1
    reaches = ("image", "text")
    rest = ""

    @abstractmethod
    def into_text(self) -> list[Tensor]:
        """Return prompts [n, d] that enter blocks 1, 2, ... of the text encoder."""

    @abstractmethod
    def into_image(self) -> list[Tensor]:
        """Return prompts [n, d] that enter blocks 1, 2, ... of the image encoder."""

    def adapt(self, side: str, features: Tensor) -> Tensor:
        """Transform the features of one encoder; most methods leave them unchanged."""
        return features

    def text(self, names: Sequence[str]) -> PromptedText:
        """Return the text encoder on "X ... X rest name.", where the X are the prompts."""
        return PromptedText(
            self.backbone,
            [f"{self.rest} {name}".strip() for name in names],
            len(self.into_text()[0]),
        )

    def class_features(self, text: PromptedText) -> Tensor:
        """Return class features [C, e]."""
        return self.adapt("text", encode_text(text, self.into_text()))

    def image_features(self, states: States) -> Tensor:
        """Return image features [B, e]."""
        return self.adapt("image", encode_image(self.backbone, states, self.into_image()))

    def for_classes(self, names: Sequence[str], known: Known) -> ToLogits:
        classes = F.normalize(self.class_features(self.text(names)), dim=-1)
        return Cosines(self.backbone, self.image_features, classes)
