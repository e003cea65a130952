"""Export a run as a folder that answers without this package."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rmadapter.support.lazy import lazy_names

if TYPE_CHECKING:
    from rmadapter.export.cached import cached_export as cached_export
    from rmadapter.export.engines import Outputs as Outputs, engine_of as engine_of
    from rmadapter.export.graph import FittedModel as FittedModel
    from rmadapter.export.runtime import Model as Model

FACTS = "export.json"  # describes an exported folder

__getattr__, __all__ = lazy_names(
    __name__,
    {
        "rmadapter.export.cached": ["cached_export"],
        "rmadapter.export.engines": ["Outputs", "engine_of"],
        "rmadapter.export.graph": ["FittedModel"],
        "rmadapter.export.runtime": ["Model"],
    },
)
