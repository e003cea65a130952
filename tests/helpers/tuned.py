"""Fine-tuned encoders by the backbone's own forward pass."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.methods.parts.tuned import TunedCLIP

TEMPLATES = ("a photo of a {}.", "{}")


def plain_model(module: TunedCLIP) -> Any:
    """The backbone's model with what was tuned in the place of its own, which alone learns."""
    model: Any = copy.deepcopy(module.backbone.model).requires_grad_(False)
    own = dict(model.named_parameters())
    for name, tensor in module.tuned.items():
        own[name.replace("/", ".")].data.copy_(tensor)
        own[name.replace("/", ".")].requires_grad_()
    return model


def plain_logits(model: Any, backbone: Backbone, pixels: Tensor, names: tuple[str, ...]) -> Tensor:
    """[B, C] by the encoders' own forward passes from pixels and words to features."""
    each = [
        F.normalize(model.encode_text(backbone.tokenizer([t.format(n) for n in names])), dim=-1)
        for t in TEMPLATES
    ]
    classes = F.normalize(torch.stack(each).mean(0), dim=-1)
    return model.logit_scale.exp() * F.normalize(model.encode_image(pixels), dim=-1) @ classes.T
