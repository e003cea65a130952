"""Compare methods that learn context tokens (CoOp and its kin) with plain forward passes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.data.read import ImageSet
from rmadapter.training.contract import Shots
from tests.helpers.rounding import FACTOR, assert_rounds_like, double
from tests.helpers.shots import gradients, pixels_of, shots_of, untrained

CLASSES = ("cat", "a small red car", "dog", "tree house")
NEW = ("blue bird", "house")
ROWS = (5, 0, 3)
LABELS = torch.tensor([2, 0, 1])  # of these rows


def plain_text(
    backbone: Backbone, classes: tuple[str, ...], context: Tensor,
    deep: Mapping[int, Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """Compute class features [C, e] of context [n, d] or [C, n, d] from full padded sequences.

    deep: contexts in the same places before a block, by its number from 0 (only open_clip's
    transformer).
    """
    model: Any = backbone.model
    n, text = context.shape[-2], getattr(model, "text", model)
    tokens = backbone.tokenizer([" ".join("X" * n) + f" {name}." for name in classes])

    def put(x: Tensor, values: Tensor) -> Tensor:
        return torch.cat([x[:, :1], values.expand(len(classes), -1, -1), x[:, 1 + n :]], 1)

    if hasattr(text, "transformer") and hasattr(text.transformer, "encoder"):  # Hugging Face
        mask = (tokens != text.config.pad_token_id).long()
        words = put(text.transformer.embeddings.word_embeddings(tokens), context)
        outputs = text.transformer(inputs_embeds=words, attention_mask=mask)
        return text.proj(text.pooler(outputs, mask))
    x = put(text.token_embedding(tokens), context) + text.positional_embedding
    mask = None if text.attn_mask is None else text.attn_mask.to(x.dtype)
    for i, block in enumerate(text.transformer.resblocks):
        x = block(put(x, deep[i]) if deep and i in deep else x, attn_mask=mask)
    x = text.ln_final(x)
    last = getattr(text, "pool_type", "argmax") == "last"
    read = x[:, -1] if last else x[torch.arange(len(x)), tokens.argmax(-1)]
    return text.text_projection(read) if last else read @ text.text_projection


def eight_shots(backbone: Backbone, seed: int = 1) -> Shots:
    """Draw two noisy images of one colour for each of four classes."""
    colors = np.repeat([(40, 60, 220), (30, 170, 60), (220, 40, 30), (200, 200, 40)], 2, axis=0)
    noise = np.random.default_rng(0).normal(colors[:, None, None], 40, (8, 32, 32, 3))
    pixels = np.clip(noise, 0, 255).astype(np.uint8)
    images = ImageSet.from_lists(list(pixels), [0, 0, 1, 1, 2, 2, 3, 3], CLASSES)
    return shots_of(backbone, images, seed=seed)


def assert_same_as_plain(
    method: Any, backbone: Backbone, plain: Callable[[Any, Shots], Tensor], seed: int = 1,
    factor: float = FACTOR,
) -> None:  # fmt: skip
    """Compare the loss and every gradient of three shots before training with plain(learner,
    shots), the loss of ROWS.

    The method works in float32; the plain loss in float64 is the oracle, and in float32 it bounds
    the rounding.
    """
    shots = eight_shots(backbone, seed)
    start = untrained(method, backbone, shots)
    exact = copy.deepcopy(start.module).double()
    exact.backbone = double(backbone)
    lean = _loss_and_gradients(start.module, start.terms(ROWS)["loss"])
    same = _loss_and_gradients(start.module, plain(start.module, shots))
    truth = _loss_and_gradients(exact, plain(exact, shots))
    assert all(gradient.norm() > 0 for gradient in truth[1].values())
    for one, mine, true in zip(same, lean, truth, strict=True):
        assert_rounds_like(one, mine, true, factor=factor)


def _loss_and_gradients(learner: Any, loss: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return {"loss": loss.detach()}, gradients(learner, loss)


def plain_logits(backbone: Backbone, shots: Shots, classes: Tensor) -> Tensor:
    """Compute logits of ROWS from their pixels."""
    model: Any = backbone.model
    pixels = pixels_of(backbone, shots.images, ROWS).to(model.logit_scale.dtype)
    features = model.encode_image(pixels)
    return model.logit_scale.exp() * F.normalize(features, dim=-1) @ F.normalize(classes, dim=-1).T


def knowledge(backbone: Backbone, classes: Tensor) -> Tensor:
    """Return one minus the mean cosine to the features of "a photo of a NAME."."""
    model: Any = backbone.model
    tokens = backbone.tokenizer([f"a photo of a {name}." for name in CLASSES])
    known = F.normalize(model.encode_text(tokens), dim=-1)
    return 1 - (F.normalize(classes, dim=-1) * known).sum(-1).mean()
