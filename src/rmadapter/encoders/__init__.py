"""The two encoders of a CLIP-like model as stem, blocks and head; no method is known here."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from torch import Tensor

from rmadapter.encoders.blocks import Fused, Opaque, PreNorm, Projections, View, with_own
from rmadapter.encoders.encoder import PARTS, BlockView, Encoder, States, in_halves, weights_of
from rmadapter.encoders.image import ClipImage, ImageEncoder, TimmImage, WholeImage
from rmadapter.encoders.layouts import Grid, Packed, pack, send
from rmadapter.encoders.text import BertText, ClipText, TextEncoder, WholeText, pausing

if TYPE_CHECKING:
    from open_clip import CLIP, CustomTextCLIP

OpenClip: TypeAlias = "CLIP | CustomTextCLIP"
EitherEncoder: TypeAlias = ImageEncoder | TextEncoder

__all__ = [
    "PARTS",
    "BlockView",
    "EitherEncoder",
    "Encoder",
    "Fused",
    "Grid",
    "ImageEncoder",
    "Opaque",
    "OpenClip",
    "Packed",
    "PreNorm",
    "Projections",
    "States",
    "TextEncoder",
    "View",
    "WholeImage",
    "WholeText",
    "encoders_of",
    "image_encoder_of",
    "in_halves",
    "pack",
    "pausing",
    "send",
    "text_encoder_of",
    "weights_of",
    "with_own",
]


def encoders_of(model: OpenClip) -> tuple[ImageEncoder, TextEncoder]:
    """Return the two encoders of an open_clip model. One that is not a stack of transformer blocks
    is a `WholeImage` or `WholeText`."""
    return image_encoder_of(model), text_encoder_of(model)


def features_of(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Return the features of an encoder that may also give its tokens, as CoCa's do."""
    return output[0] if isinstance(output, tuple) else output


def image_encoder_of(model: OpenClip) -> ImageEncoder:
    """Return the first of `encoders_of`."""
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    visual = model.visual
    trunk = getattr(visual, "trunk", visual)
    if isinstance(visual, VisionTransformer) and not visual.output_tokens:
        return ClipImage(visual)
    if isinstance(visual, TimmModel):
        first_block = next(iter(getattr(trunk, "blocks", ())), None)
        if hasattr(first_block, "attn"):
            return TimmImage(visual)
    kind = _prefix(model) + type(trunk).__name__
    return WholeImage(visual, kind, lambda images: features_of(visual(images)))


def text_encoder_of(model: OpenClip) -> TextEncoder:
    """Return the second of `encoders_of`."""
    import open_clip
    from open_clip.hf_model import HFTextEncoder
    from open_clip.transformer import TextTransformer

    text = getattr(model, "text", model)
    encoder: TextEncoder | None = None
    if isinstance(text, open_clip.CLIP):
        encoder = ClipText(text, inside=True)
    elif isinstance(text, TextTransformer) and text.cls_emb is None and not text.use_pad_mask:
        encoder = ClipText(text, inside=False)
    elif isinstance(text, HFTextEncoder):
        layered = hasattr(getattr(text.transformer, "encoder", None), "layer")
        if layered and not getattr(text.config, "is_decoder", False):  # a decoder is causal
            encoder = BertText(text)
    if encoder is not None and not encoder.opaque:
        return encoder
    part = getattr(text, "transformer", text) if encoder is None else encoder.blocks[0]

    def encode(tokens: Tensor) -> Tensor:
        return features_of(model.encode_text(tokens, normalize=False))

    return WholeText(_prefix(model) + type(part).__name__, encode)


def _prefix(model: OpenClip) -> str:
    import open_clip

    return "CoCa's " if isinstance(model, open_clip.CoCa) else ""
