"""Extend and compare finished runs."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rmadapter.methods.descriptions import (
        text_weights as text_weights,
        whole_texts as whole_texts,
    )
    from rmadapter.metrics import paired as paired
    from rmadapter.prompts import (
        bounded_text as bounded_text,
        text_features as text_features,
        zero_shot_weights as zero_shot_weights,
    )
    from rmadapter.runs.add import (
        add_names as add_names,
        can_add_names as can_add_names,
        classify_by_names as classify_by_names,
    )
    from rmadapter.runs.features import examine as examine
    from rmadapter.runs.folds import Folds as Folds
    from rmadapter.runs.gallery import Gallery as Gallery
    from rmadapter.runs.labels import Proposals as Proposals, propose_labels as propose_labels
    from rmadapter.runs.request import Request as Request
    from rmadapter.runs.run import describe_run as describe_run
    from rmadapter.runs.track import settings_to_track as settings_to_track
    from rmadapter.settings import (
        configured as configured,
        parse_overrides as parse_overrides,
        settings_of as settings_of,
    )
    from rmadapter.task import qualified_settings as qualified_settings

# Imported on first use, so that the command line does not import torch.
_HOME_OF = {
    "Folds": "rmadapter.runs.folds",
    "Gallery": "rmadapter.runs.gallery",
    "Proposals": "rmadapter.runs.labels",
    "Request": "rmadapter.runs.request",
    "add_names": "rmadapter.runs.add",
    "bounded_text": "rmadapter.prompts",
    "can_add_names": "rmadapter.runs.add",
    "classify_by_names": "rmadapter.runs.add",
    "configured": "rmadapter.settings",
    "describe_run": "rmadapter.runs.run",
    "examine": "rmadapter.runs.features",
    "paired": "rmadapter.metrics",
    "parse_overrides": "rmadapter.settings",
    "propose_labels": "rmadapter.runs.labels",
    "qualified_settings": "rmadapter.task",
    "settings_of": "rmadapter.settings",
    "settings_to_track": "rmadapter.runs.track",
    "text_features": "rmadapter.prompts",
    "text_weights": "rmadapter.methods.descriptions",
    "whole_texts": "rmadapter.methods.descriptions",
    "zero_shot_weights": "rmadapter.prompts",
}
__all__ = [*_HOME_OF]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)
