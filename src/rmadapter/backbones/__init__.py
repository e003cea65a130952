"""CLIP-like models by name, with everything that belongs to their weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rmadapter.support.lazy import lazy_names

if TYPE_CHECKING:
    from rmadapter.backbones.backbone import Backbone as Backbone
    from rmadapter.backbones.load import load_backbone as load_backbone

__getattr__, __all__ = lazy_names(
    __name__,
    {
        "rmadapter.backbones.backbone": ["Backbone"],
        "rmadapter.backbones.load": ["load_backbone"],
    },
)
