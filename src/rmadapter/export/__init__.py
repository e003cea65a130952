"""Export a run as a folder that answers without this package."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rmadapter.export.cached import cached_export as cached_export
    from rmadapter.export.engines import Outputs as Outputs, engine_of as engine_of
    from rmadapter.export.folder import export as export
    from rmadapter.export.graph import FittedModel as FittedModel
    from rmadapter.export.runtime import Model as Model

FACTS = "export.json"  # describes an exported folder

# Imported on first use, so that an export is opened without torch.
_HOME_OF = {
    "FittedModel": "rmadapter.export.graph",
    "Model": "rmadapter.export.runtime",
    "Outputs": "rmadapter.export.engines",
    "cached_export": "rmadapter.export.cached",
    "engine_of": "rmadapter.export.engines",
    "export": "rmadapter.export.folder",
}
__all__ = [*_HOME_OF]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)
