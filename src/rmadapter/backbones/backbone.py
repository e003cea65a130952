"""A frozen CLIP-like model that travels with its own transform, tokenizer, logit scale and
activation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from rmadapter.encoders import ImageEncoder, TextEncoder, encoders_of
from rmadapter.encoders.image import WholeImage
from rmadapter.encoders.text import WholeText
from rmadapter.errors import UserError
from rmadapter.task import FEATURES_ALONE, TEXT_TOO


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen CLIP-like model and everything that belongs to its weights."""

    name: str  # as given to load_backbone
    model: (
        nn.Module
    )  # open_clip's CLIP or CustomTextCLIP: eval mode, no gradients, float32, on the CPU
    preprocess: Callable[[Any], torch.Tensor]  # PIL RGB image -> float [3, image_size, image_size]
    tokenizer: Callable[[list[str]], torch.Tensor]  # N texts -> long [N, context length]
    image_size: int  # pixels
    mean: tuple[float, float, float]  # of RGB in 0..1, subtracted by `preprocess`
    std: tuple[float, float, float]
    tokenizer_digest: str = (
        ""  # SHA-256 in hex of the tokenizer's files and settings; "" if unknown
    )

    @cached_property
    def image(self) -> ImageEncoder:
        return encoders_of(self.model)[0]

    @cached_property
    def text(self) -> TextEncoder:
        return encoders_of(self.model)[1]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def with_blocks(self, *sides: str) -> Backbone:
        """Return the backbone itself. sides: "image", "text". Raises UserError if one of these has
        no known blocks."""
        for encoder in (self.image, self.text):
            if encoder.side in sides and isinstance(encoder, (WholeImage, WholeText)):
                rest = (
                    FEATURES_ALONE
                    if isinstance(self.text, WholeText)
                    else (*FEATURES_ALONE, *TEXT_TOO)
                )
                raise UserError(
                    f"backbone {self.name!r}: this method needs transformer blocks, and its {encoder.side} encoder, "
                    f"a {encoder.kind}, has none that are known; methods that work with it: {', '.join(rest)}"
                )
        return self

    def to(self, device: torch.device) -> Backbone:
        """Move the model; returns the backbone itself."""
        self.model.to(device)
        return self

    @property
    def logit_scale(self) -> Tensor:
        """One over CLIP's temperature, scalar."""
        clip: Any = self.model
        return clip.logit_scale.exp()

    @cached_property
    def embedding_size(self) -> int:
        """Length e of a feature."""
        with torch.no_grad():
            return self.text.frozen(self.tokenizer(["a"]).to(self.device)).features.shape[-1]

    @property
    def resizing(self) -> dict[str, Any]:
        """How `preprocess` makes a square of an image: resize (open_clip's mode), interpolation,
        and fill of what is padded."""
        from open_clip.transform import PreprocessCfg

        config = PreprocessCfg(**getattr(self.model.visual, "preprocess_cfg", {}))
        how = "bilinear" if config.interpolation == "bilinear" else "bicubic"  # as open_clip does
        return {"resize": config.resize_mode, "interpolation": how, "fill": config.fill_color}

    @cached_property
    def digest(self) -> str:
        """SHA-256 in hex over names, shapes and bytes of the weights, and the kind of GELU, which
        has none."""
        from open_clip.transformer import QuickGELU

        quick_gelu = any(isinstance(module, QuickGELU) for module in self.model.modules())
        sha = hashlib.sha256(b"quick_gelu" if quick_gelu else b"gelu")
        for name, tensor in sorted(self.model.state_dict().items()):
            sha.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            sha.update(
                memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
            )
        return sha.hexdigest()

    @cached_property
    def structure(self) -> str:
        """SHA-256 in hex over what has no weights but changes features, such as numbers of heads
        and kinds of pooling. Other versions of libraries may give another one."""
        facts: list[Any] = [
            [
                name,
                type(module).__name__,
                {key: value for key, value in vars(module).items() if _is_plain(key, value)},
            ]
            for name, module in self.model.named_modules()
        ]
        kept = self.model.state_dict().keys()
        facts += [
            [name, part.tolist()] for name, part in self.model.named_buffers() if name not in kept
        ]  # masks
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _is_plain(key: str, value: Any) -> bool:
    return not (key == "training" or key.startswith("_")) and isinstance(
        value, (bool, int, float, str)
    )
