"""The two encoders of a CLIP-like model, taken apart; nothing here knows a method."""

from __future__ import annotations

from typing import Any

from rmadapter.encoders.encoder import Encoder, States, weights_of
from rmadapter.encoders.image import ClipImage, ImageEncoder, TimmImage
from rmadapter.encoders.layouts import Grid, Packed
from rmadapter.encoders.text import BertText, ClipText, TextEncoder
from rmadapter.encoders.whole import WholeImage, WholeText, first_of

__all__ = [
    "Encoder",
    "Grid",
    "ImageEncoder",
    "Packed",
    "States",
    "TextEncoder",
    "encoders_of",
    "weights_of",
]


def encoders_of(model: Any) -> tuple[ImageEncoder, TextEncoder]:
    """The two encoders of an open_clip model; one that is not a stack of transformer blocks has
    none."""
    return _image(model), _text(model)


def _image(model: Any) -> ImageEncoder:
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    visual = model.visual
    if isinstance(visual, VisionTransformer) and not visual.output_tokens:
        return ClipImage(visual)
    if isinstance(visual, TimmModel) and hasattr(
        next(iter(getattr(visual.trunk, "blocks", ())), None), "attn"
    ):
        return TimmImage(visual)
    kind = _of_coca(model) + type(getattr(visual, "trunk", visual)).__name__
    return WholeImage(visual, kind, lambda images: first_of(visual(images)))


def _text(model: Any) -> TextEncoder:
    import open_clip
    from open_clip.hf_model import HFTextEncoder
    from open_clip.transformer import TextTransformer

    text = getattr(model, "text", model)
    found: TextEncoder | None = None
    if isinstance(text, open_clip.CLIP):
        found = ClipText(text, inside=True)
    elif isinstance(text, TextTransformer) and text.cls_emb is None and not text.use_pad_mask:
        found = ClipText(text, inside=False)
    elif isinstance(text, HFTextEncoder) and hasattr(
        getattr(text.transformer, "encoder", None), "layer"
    ):
        found = (
            None if getattr(text.config, "is_decoder", False) else BertText(text)
        )  # a decoder is causal
    if found is not None and not found.opaque:
        return found
    kind = (
        type(getattr(text, "transformer", text)).__name__
        if found is None
        else type(found.blocks[0]).__name__
    )
    return WholeText(
        _of_coca(model) + kind, lambda tokens: first_of(model.encode_text(tokens, normalize=False))
    )


def _of_coca(model: Any) -> str:
    import open_clip

    return "CoCa's " if isinstance(model, open_clip.CoCa) else ""
