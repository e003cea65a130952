"""CLIP-like models by name, with everything that belongs to their weights."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rmadapter.backbones.backbone import Backbone as Backbone
    from rmadapter.backbones.load import load_backbone as load_backbone

# Imported on first use, so that the command line does not import torch.
_HOME_OF = {"Backbone": "backbone", "load_backbone": "load"}
__all__ = ["Backbone", "load_backbone"]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
