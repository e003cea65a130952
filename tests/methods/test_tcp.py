"""TCP against a plain forward pass of open_clip's modules, and as a whole on eight images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.methods.tcp import TCP
from rmadapter.training.contract import Shots
from tests.helpers.context_prompts import (
    CLASSES,
    LABELS,
    assert_same_as_plain,
    knowledge,
    plain_logits,
    plain_text,
)


def class_contexts(learner: Any) -> Tensor:
    backbone: Any = learner.backbone
    known = backbone.model.encode_text(
        backbone.tokenizer([f"a photo of a {name}." for name in CLASSES])
    )
    known = F.normalize(known, dim=-1)
    hidden = known @ learner.down.weight.T + learner.down.bias
    hidden = hidden * torch.sigmoid(1.702 * hidden)
    return (hidden @ learner.up.weight.T + learner.up.bias).reshape(
        len(CLASSES), *learner.ctx.shape
    )


@pytest.mark.parametrize(
    ("layer", "place"), [(9, 2), (5, 1), (12, 3)]
)  # of 12 blocks, and of the tiny model's four
def test_loss_and_gradients_are_the_plain_ones(tiny_clip: Backbone, layer: int, place: int) -> None:
    def plain(learner: Any, shots: Shots) -> Tensor:
        classes = plain_text(
            learner.backbone, CLASSES, learner.ctx, {place: class_contexts(learner)}
        )
        ce = F.cross_entropy(plain_logits(learner.backbone, shots, classes), LABELS)
        return ce + 8 * knowledge(learner.backbone, classes)

    assert_same_as_plain(TCP(layer=layer), tiny_clip, plain)


def test_a_bert_gets_its_class_contexts_too(tiny_hf: Backbone) -> None:
    """Its own layers, run one by one on padded sequences."""
    tokens = tiny_hf.tokenizer([f"X X X X {name}." for name in CLASSES])
    mask = tokens != tiny_hf.model.text.config.pad_token_id  # type: ignore[union-attr]

    def plain(learner: Any, shots: Shots) -> Tensor:
        text: Any = learner.backbone.model.text
        words = text.transformer.embeddings.word_embeddings(tokens)
        words = torch.cat([words[:, :1], learner.ctx.expand(len(CLASSES), -1, -1), words[:, 5:]], 1)
        x = text.transformer.embeddings(inputs_embeds=words)
        for i, block in enumerate(text.transformer.encoder.layer):
            if i == 2:
                x = torch.cat([x[:, :1], class_contexts(learner), x[:, 5:]], 1)
            x = block(x, attention_mask=mask[:, None, None, :])
            x = x[0] if isinstance(x, tuple) else x
        mean = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        classes = text.proj(mean)
        ce = F.cross_entropy(plain_logits(learner.backbone, shots, classes), LABELS)
        return ce + 8 * knowledge(learner.backbone, classes)

    assert_same_as_plain(TCP(), tiny_hf, plain)
