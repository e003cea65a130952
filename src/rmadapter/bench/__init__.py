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
    from rmadapter.bench.report.figures import trade_off as trade_off
    from rmadapter.bench.report.format import (
        Cell as Cell,
        TableRow as TableRow,
        setting_text as setting_text,
    )
    from rmadapter.bench.report.groups import (
        Column as Column,
        Group as Group,
        group_records as group_records,
    )
    from rmadapter.bench.report.printed import Check as Check, PrintedTables as PrintedTables
    from rmadapter.bench.report.read import read_records as read_records
    from rmadapter.bench.report.stats import HM_OF_MEANS as HM_OF_MEANS
    from rmadapter.bench.runner import run_all as run_all
    from rmadapter.support.cluster import run_on_cluster as run_on_cluster

__getattr__, __all__ = lazy_names(
    __name__,
    {
        "rmadapter.bench.plan": ["Plan", "Tuner", "add_published_rows"],
        "rmadapter.bench.protocols": ["Job", "expand", "with_own_templates"],
        "rmadapter.support.cluster": ["run_on_cluster"],
        "rmadapter.bench.report.figures": ["trade_off"],
        "rmadapter.bench.report.format": ["Cell", "TableRow", "setting_text"],
        "rmadapter.bench.report.groups": ["Column", "Group", "group_records"],
        "rmadapter.bench.report.printed": ["Check", "PrintedTables"],
        "rmadapter.bench.report.read": ["read_records"],
        "rmadapter.bench.report.stats": ["HM_OF_MEANS"],
        "rmadapter.bench.runner": ["run_all"],
    },
)
