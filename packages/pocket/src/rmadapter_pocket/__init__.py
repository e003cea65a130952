"""`pocket`, the small offline backbone of rmadapter.

Model card: docs/reference/pocket.md of rmadapter.
"""

from __future__ import annotations

from rmadapter_pocket.model import TEXT, VISION, Pocket
from rmadapter_pocket.wheels import Wheel, fetch_wheel

__all__ = ["POCKET", "TEXT", "VISION", "Pocket", "Wheel", "fetch_wheel"]

POCKET = Pocket(
    name="pocket",
    delta="pocket_2.safetensors",
    delta_sha256="df3dc036049e04b8e0c46f8160b17c2f7599bd60ce54b7c8c52afc964419bce6",
    digest="25e3676b7d82201c344749b22d51c539b1cd6423c82e98e3e280995b7f3f1f90",
    image_size=112,
    features=256,
    text_projection="linear",
    added=frozenset({"visual.head.proj.weight", "text.proj.weight", "logit_scale"}),
    ABOUT="needs PyPI once; for trying out, research and teaching (docs/reference/pocket.md)",
)
