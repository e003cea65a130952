"""A frozen CLIP-like model with its transform, tokenizer, logit scale and activation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from rmadapter.encoders import (
    ImageEncoder,
    TextEncoder,
    WholeImage,
    WholeText,
    image_encoder_of,
    text_encoder_of,
)
from rmadapter.errors import UserError
from rmadapter.support.files import JsonObject


class Facts(NamedTuple):
    """What takes long to find out about a backbone.

    Attributes:
        digest: As in `Backbone`.
        structure: As in `Backbone`.
        embedding_size: As in `Backbone`.
        tokenizer_digest: As in `Backbone`.
        alone: Whether the image encoder can be loaded without the text encoder.
        text_width: Of the text encoder, 0 if it has no known blocks.
        text_depth: Of the text encoder, 0 if it has no known blocks.
        text_length: As in `Backbone`, 0 without a text encoder.
    """

    digest: str
    structure: str
    embedding_size: int
    tokenizer_digest: str
    alone: bool
    text_width: int
    text_depth: int
    text_length: int


@dataclass(frozen=True, eq=False, repr=False)
class Backbone:
    """A frozen CLIP-like model and everything that belongs to its weights.

    Attributes:
        name: Name that was passed to `load_backbone`.
        model: open_clip's CLIP or CustomTextCLIP, or an image encoder alone: evaluation mode, no
            gradients, float32, on the CPU.
        preprocess: Function from an RGB image to float [3, image_size, image_size].
        tokenizer: Function from N texts to long [N, context length].
        image_size: Side of the square image, in pixels.
        mean: Mean of RGB in 0..1, which `preprocess` subtracts.
        std: Standard deviation of RGB, by which `preprocess` divides.
        tokenizer_digest: SHA-256 in hex of the tokenizer's files and settings, if known.
        has_text: Whether it has a text encoder.
        revision: Commit of the repository on the hub that it was loaded from; empty elsewhere.

    Example:
        >>> from rmadapter import load_backbone
        >>> backbone = load_backbone("tiny")
        >>> backbone.image.depth, backbone.image.width, backbone.embedding_size
        (4, 64, 40)
    """

    name: str
    model: nn.Module
    preprocess: Callable[[Image.Image], Tensor]
    tokenizer: Callable[[list[str]], Tensor]
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    tokenizer_digest: str = ""
    has_text: bool = True
    revision: str = ""
    # what was found out about the same files before, if it was kept; no copy has it
    facts: Facts | None = field(default=None, init=False, repr=False)

    def __repr__(self) -> str:
        return f"Backbone({self.name!r}, {self.image_size} pixels)"

    def __getstate__(self) -> dict[str, object]:
        """Return what copies have: not what was found out, since their weights may be changed."""
        own = {one.name: getattr(self, one.name) for one in fields(self) if one.init}
        encoders = {name: vars(self)[name] for name in ("image", "text") if name in vars(self)}
        return own | encoders  # which adapters may hold, too

    @property
    def visible(self) -> nn.Module:
        """Return a module with the model's image encoder, `visual`, and its logit scale."""
        return self.model

    @cached_property
    def image(self) -> ImageEncoder:
        """Return the image encoder, with its blocks if they are known."""
        return image_encoder_of(self.visible)

    @cached_property
    def text(self) -> TextEncoder:
        """Return the text encoder, with its blocks if they are known.

        Raises:
            UserError: It has none.
        """
        return text_encoder_of(self.with_text().model)

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return next(self.visible.parameters()).device

    def knowing(self, facts: Facts) -> Backbone:
        """Keep facts about the backbone, which it need not find out any more.

        Args:
            facts: What was found out about the files that it was loaded from.

        Returns:
            The backbone itself.
        """
        object.__setattr__(self, "facts", facts)
        return self

    def with_text(
        self, what: str = "a class without images", others: Sequence[str] = ()
    ) -> Backbone:
        """Return the backbone itself, if it has a text encoder.

        Args:
            what: What needs it.
            others: Methods that do without one, to be named in the error.

        Raises:
            UserError: It has none.
        """
        if not self.has_text:
            instead = f", or one of {', '.join(others)} with images of every class"
            raise UserError(
                f"backbone {self.name!r} has no text encoder, which {what} needs; use another "
                f"backbone{instead if others else ''}"
            )
        return self

    def with_blocks(self, *sides: str) -> Backbone:
        """Return the backbone itself, if its encoders have known blocks.

        Args:
            sides: Encoders that need blocks: "image", "text".

        Raises:
            UserError: One of these has no known blocks.
        """
        for side in sides:
            encoder = self.image if side == "image" else self.text
            if isinstance(encoder, (WholeImage, WholeText)):
                raise UserError(
                    f"backbone {self.name!r}: this method needs transformer blocks, which its "
                    f"{encoder.side} encoder, a {encoder.kind}, does not have; use another "
                    f"backbone, or a method for which `rmadapter methods --backbone {self.name}` "
                    "counts parameters"
                )
        return self

    def to(self, device: torch.device) -> Backbone:
        """Move the model to a device.

        Args:
            device: Device to move to.

        Returns:
            The backbone itself.
        """
        self.model.to(device)
        return self

    @property
    def logit_scale(self) -> Tensor:
        """Return one over CLIP's temperature, a scalar."""
        scale = self.visible.logit_scale
        assert isinstance(scale, Tensor)
        return scale.exp()

    @cached_property
    def embedding_size(self) -> int:
        """Return the length e of a feature."""
        if self.facts:
            return self.facts.embedding_size
        if not self.has_text:
            pixels = torch.zeros(1, 3, self.image_size, self.image_size, device=self.device)
            return self.image.frozen(pixels).features.shape[-1]
        with torch.no_grad():
            return self.text.frozen(self.tokenizer(["a"]).to(self.device)).features.shape[-1]

    @cached_property
    def text_length(self) -> int:
        """Return the number of tokens that a text is padded or cut to.

        Raises:
            UserError: It has no text encoder.
        """
        whole = self.with_text()
        return self.facts.text_length if self.facts else whole.tokenizer(["a"]).shape[1]

    @property
    def resizing(self) -> JsonObject:
        """Return how `preprocess` makes an image square.

        These are resize (open_clip's mode), interpolation, and the fill of padding.
        """
        from open_clip.transform import PreprocessCfg

        config = PreprocessCfg(**getattr(self.visible.visual, "preprocess_cfg", {}))
        how = "bilinear" if config.interpolation == "bilinear" else "bicubic"  # as open_clip does
        return {"resize": config.resize_mode, "interpolation": how, "fill": config.fill_color}

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 in hex of the weights' names, shapes and bytes, and of the GELU.

        A DINOv3's pooling is part of it where it is not timm's.
        """
        if self.facts:
            return self.facts.digest
        from open_clip.transformer import QuickGELU

        quick_gelu = any(isinstance(module, QuickGELU) for module in self.model.modules())
        sha = hashlib.sha256(b"quick_gelu" if quick_gelu else b"gelu")
        sha.update(getattr(self.model.visual, "pooling", "").encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            sha.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            sha.update(memoryview(content.numpy()))
        return sha.hexdigest()

    @cached_property
    def structure(self) -> str:
        """Return the SHA-256 in hex of what has no weights but changes features.

        These are facts such as numbers of heads and kinds of pooling. It may change with the
        versions of libraries.
        """
        if self.facts:
            return self.facts.structure
        facts = structure_of(self.model)
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def structure_of(model: nn.Module) -> list[object]:
    """Return what has no weights but changes what a module computes."""
    facts: list[object] = []
    for name, module in model.named_modules():
        values = {key: value for key, value in vars(module).items() if _is_plain(key, value)}
        facts.append([name, type(module).__name__, values])
    weights = model.state_dict().keys()
    for name, mask in model.named_buffers():
        if name not in weights:
            facts.append([name, mask.tolist()])
    return facts


def _is_plain(key: str, value: object) -> bool:
    is_setting = key != "training" and not key.startswith("_")
    return is_setting and isinstance(value, (bool, int, float, str))
