"""rmadapter: adapt a CLIP-like model with a few images per class without losing what it already knows."""

from __future__ import annotations

from importlib import import_module, metadata
from typing import Any

__version__ = metadata.version("rmadapter")

_HOMES = {
    "RMAdapterClassifier": "classifier",
    "AdaptedCLIP": "model",
    "Backbone": "backbone",
    "load_backbone": "backbone",
    "DualBranchAdapter": "adapter",
    "Config": "config",
    "ImageSet": "data.images",
    "read_images": "data.images",
    "evaluate": "evaluation",
    "UserError": "errors",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used, so that `import rmadapter` pulls in no backbone."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
