"""The paper's experiments: protocols, runs, reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rmadapter.support.lazy import lazy_names

if TYPE_CHECKING:
    from rmadapter.bench.plan import (
        Plan as Plan,
        Tuner as Tuner,
        add_published_rows as add_published_rows,
    )
    from rmadapter.bench.protocols import (
        Job as Job,
        expand as expand,
        with_own_templates as with_own_templates,
    )
    from rmadapter.bench.ray import run_on_cluster as run_on_cluster
    from rmadapter.bench.report import paper as paper
    from rmadapter.bench.report.format import Cell as Cell
    from rmadapter.bench.report.groups import (
        Column as Column,
        Group as Group,
        group_records as group_records,
    )
    from rmadapter.bench.report.read import read_records as read_records
    from rmadapter.bench.runner import run_all as run_all

__getattr__, __all__ = lazy_names(
    __name__,
    {
        "rmadapter.bench.plan": ["Plan", "Tuner", "add_published_rows"],
        "rmadapter.bench.protocols": ["Job", "expand", "with_own_templates"],
        "rmadapter.bench.ray": ["run_on_cluster"],
        "rmadapter.bench.report": ["paper"],
        "rmadapter.bench.report.format": ["Cell"],
        "rmadapter.bench.report.groups": ["Column", "Group", "group_records"],
        "rmadapter.bench.report.read": ["read_records"],
        "rmadapter.bench.runner": ["run_all"],
    },
)
