"""The two encoders of a CLIP-like model, taken apart; nothing here knows a method.

layouts   tokens of a batch without padding, and attention over them
blocks    blocks of open_clip, timm and BERT by the roles of their parts
encoder   stem -> blocks -> head; States, what an encoder gives up to a block
image     open_clip's and timm's image encoders
text      open_clip's and BERT's text encoders
"""

from __future__ import annotations

from typing import Any

from rmadapter.encoders.encoder import Encoder, States
from rmadapter.encoders.image import ClipImage, ImageEncoder, TimmImage
from rmadapter.encoders.layouts import Grid, Packed
from rmadapter.encoders.text import BertText, ClipText, TextEncoder
from rmadapter.errors import UserError

__all__ = ["Encoder", "Grid", "ImageEncoder", "Packed", "States", "TextEncoder", "encoders_of"]


def encoders_of(model: Any) -> tuple[ImageEncoder, TextEncoder]:
    """The two encoders of an open_clip model. Raises UserError for one that is no stack of transformer blocks."""
    import open_clip
    from open_clip.hf_model import HFTextEncoder
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import TextTransformer, VisionTransformer

    if isinstance(model, open_clip.CoCa):
        raise UserError("it is a CoCa, whose captioning decoder has no place for adapters")
    visual, text = model.visual, getattr(model, "text", model)
    image: ImageEncoder
    if isinstance(visual, VisionTransformer):
        image = ClipImage(visual)
    elif isinstance(visual, TimmModel) and hasattr(next(iter(getattr(visual.trunk, "blocks", ())), None), "attn"):
        image = TimmImage(visual)
    else:
        kind = type(getattr(visual, "trunk", visual)).__name__
        raise UserError(f"adapters sit beside transformer blocks, and its image encoder, a {kind}, has none")
    words: TextEncoder
    if isinstance(text, (open_clip.CLIP, TextTransformer)):
        words = ClipText(text, inside=text is model)
    elif isinstance(text, HFTextEncoder) and hasattr(getattr(text.transformer, "encoder", None), "layer"):
        words = BertText(text)
    else:
        kind = type(getattr(text, "transformer", text)).__name__
        raise UserError(f"its text encoder, a {kind}, is neither open_clip's transformer nor of the BERT family")
    if words.opaque:
        raise UserError("the blocks of its text encoder are of a kind that rmadapter does not know yet")
    return image, words
