"""The paper's experiments: protocols, runs, reports."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

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

# Imported on first use, so that the command line does not import torch.
_HOME_OF = {
    "Cell": "rmadapter.bench.report.format",
    "Column": "rmadapter.bench.report.groups",
    "Group": "rmadapter.bench.report.groups",
    "Job": "rmadapter.bench.protocols",
    "Plan": "rmadapter.bench.plan",
    "Tuner": "rmadapter.bench.plan",
    "add_published_rows": "rmadapter.bench.plan",
    "expand": "rmadapter.bench.protocols",
    "group_records": "rmadapter.bench.report.groups",
    "paper": "rmadapter.bench.report",
    "read_records": "rmadapter.bench.report.read",
    "run_all": "rmadapter.bench.runner",
    "run_on_cluster": "rmadapter.bench.ray",
    "with_own_templates": "rmadapter.bench.protocols",
}
__all__ = [*_HOME_OF]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)
