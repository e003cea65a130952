"""Put layers inside the blocks of a model by hooks on its own modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from rmadapter.backbones import Backbone

SCALES = (0.5, 0.3, 0.7, 0.4)  # of the blocks of a tiny model


def sum_of_patches(x: Tensor, weight: Tensor) -> Tensor:
    """Return the depthwise convolution of 16 patches [B, 16, d], patch by patch."""
    grid = F.pad(x.unflatten(1, (4, 4)), (0, 0, 1, 1, 1, 1))  # [B, 6, 6, d]
    near = (grid[:, i : i + 4, j : j + 4] * weight[:, 0, i, j] for i in range(3) for j in range(3))
    return sum(near).flatten(1, 2)  # type: ignore[union-attr]


def front_of(backbone: Backbone) -> int:
    """Return the number of tokens before the patches: none in tiny_siglip."""
    return 0 if backbone.image.read_index is None else 1


def is_bert(backbone: Backbone) -> bool:
    model: Any = backbone.model
    return hasattr(getattr(model, "text", model).transformer, "encoder")


@contextmanager
def hooked(
    backbone: Backbone, module: Any, near: Mapping[str, Callable[[Tensor, Any], Tensor]]
) -> Iterator[Any]:
    """Yield the model, whose own forward passes carry the module's layers, block by block with
    SCALES. near: what a layer adds to the tokens of "image" or "text", without its scale."""
    model: Any = backbone.model
    text, bert = getattr(model, "text", model), is_bert(backbone)
    blocks = {
        "image": backbone.image.blocks,
        "text": text.transformer.encoder.layer if bert else text.transformer.resblocks,
    }
    handles = []

    def put(place: Any, side: str, layer: Any, scale: float, before: bool = False) -> None:
        def change(x: Tensor) -> Tensor:
            return x + scale * near[side](x, layer)

        if before:
            handles.append(
                place.register_forward_pre_hook(lambda module, args: (change(args[0]), *args[1:]))
            )
        else:
            handles.append(place.register_forward_hook(lambda module, args, x: change(x)))

    for side, some in blocks.items():
        for block, layers, scale in zip(some, module.layers[side], SCALES, strict=True):
            if side == "text" and bert:
                put(block.attention.self, side, layers["attention"], scale, before=True)
                put(block.intermediate.dense, side, layers["mlp"], scale)
                continue
            timm = hasattr(block, "norm1")
            put(block.norm1 if timm else block.ln_1, side, layers["attention"], scale)
            if "mlp" in layers:
                put(block.mlp.fc1 if timm else block.mlp.c_fc, side, layers["mlp"], scale)
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()


def scale_of(name: str) -> float:
    """Return the scale of the block that a weight is of, "layers.image.2.attention.weight"."""
    return SCALES[int(name.split(".")[2])]
