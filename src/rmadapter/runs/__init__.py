"""Extend and compare finished runs."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rmadapter.prompts import bounded_text as bounded_text
    from rmadapter.runs.add import add_names as add_names
    from rmadapter.runs.add import can_add_names as can_add_names
    from rmadapter.runs.add import classify_by_names as classify_by_names
    from rmadapter.runs.features import examine as examine
    from rmadapter.runs.gallery import Gallery as Gallery
    from rmadapter.runs.labels import Proposals as Proposals
    from rmadapter.runs.labels import propose_labels as propose_labels

# Imported on first use, so that the command line does not import torch.
_HOME_OF = {
    "Gallery": "rmadapter.runs.gallery",
    "Proposals": "rmadapter.runs.labels",
    "add_names": "rmadapter.runs.add",
    "bounded_text": "rmadapter.prompts",
    "can_add_names": "rmadapter.runs.add",
    "classify_by_names": "rmadapter.runs.add",
    "examine": "rmadapter.runs.features",
    "propose_labels": "rmadapter.runs.labels",
}
__all__ = [*_HOME_OF]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)
