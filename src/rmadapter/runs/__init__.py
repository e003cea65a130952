"""Extend and compare finished runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rmadapter.support.lazy import lazy_names

if TYPE_CHECKING:
    from rmadapter.backbones.published import caveat as caveat
    from rmadapter.metrics import wilson as wilson
    from rmadapter.prompts import bounded_text as bounded_text
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
    from rmadapter.settings import (
        configured as configured,
        parse_overrides as parse_overrides,
        settings_of as settings_of,
    )
    from rmadapter.task import qualified_settings as qualified_settings

__getattr__, __all__ = lazy_names(
    __name__,
    {
        "rmadapter.backbones.published": ["caveat"],
        "rmadapter.metrics": ["wilson"],
        "rmadapter.prompts": ["bounded_text"],
        "rmadapter.runs.add": ["add_names", "can_add_names", "classify_by_names"],
        "rmadapter.runs.features": ["examine"],
        "rmadapter.runs.folds": ["Folds"],
        "rmadapter.runs.gallery": ["Gallery"],
        "rmadapter.runs.labels": ["Proposals", "propose_labels"],
        "rmadapter.runs.request": ["Request"],
        "rmadapter.runs.run": ["describe_run"],
        "rmadapter.settings": ["configured", "parse_overrides", "settings_of"],
        "rmadapter.task": ["qualified_settings"],
    },
)
