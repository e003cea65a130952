"""Reproduce the paper's Tables 1 to 6: the runs they need, on the data sets that are present, and
a verdict on each printed figure.

The settings that methods have on ImageNet only are from their authors' repositories; see
docs/studies/reproduce.md.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, TypeAlias

from rmadapter import Machine, Record, Task, UserError
from rmadapter.artifacts import write_text
from rmadapter.bench import (
    Check,
    Plan,
    add_published_rows,
    expand,
    run_all,
    with_own_templates,
)
from rmadapter.data import CATALOG, check
from rmadapter_research import paper

OUR_METHODS = ("rmadapter", "rmadapter-paper")
VERDICTS = "verdict.csv"
OUTLINE = ["table", "data set", "runs", "finished", "missing data"]

Settings: TypeAlias = "Mapping[str, Mapping[str, object]]"  # {method: {setting: value}}


def _size(dataset: str) -> tuple[int, str]:
    return sum(CATALOG[dataset].counts.values()), dataset


@dataclass(frozen=True)
class Part:
    """A table of the paper.

    Attributes:
        protocol: Its protocol.
        methods: Its methods; empty for the protocol's own.
        values: Their settings in this table only.
    """

    protocol: str
    methods: tuple[str, ...] = ()
    values: Settings = field(default_factory=dict)

    @property
    def is_transfer(self) -> bool:
        """Whether it is trained on one data set and tested on others."""
        return self.protocol in paper.TRANSFER

    @property
    def needed(self) -> list[str]:
        """The data sets that the table uses; for transfer the source first."""
        return paper.datasets_in(self.protocol if self.is_transfer else "base-to-novel")

    def datasets(self, available: Iterable[str]) -> list[str]:
        """Return data sets for `expand`, small ones first; for transfer the source first, or none
        if any is missing."""
        present = {*available} & {*self.needed}
        if not self.is_transfer:
            return sorted(present, key=_size)
        if len(present) < len(self.needed):
            return []
        return self.needed if self.protocol == "cross-dataset" else self.needed[:1]


ON_IMAGENET: Settings = {
    "coop": {"epochs": 50},
    "maple": {"depth": 3, "epochs": 2, "learning_rate": 0.0026},
    "promptsrc": {"depth": 3, "mean": 6.0, "std": 10.0},
    "mma": {"batch_size": 128},
    "rmadapter-paper": {"batch_size": 128},
}
PARTS: Mapping[str, Part] = {
    "1": Part(
        "base-to-novel",
        (
            "zero-shot",
            "coop",
            "cocoop",
            "kgcoop",
            "maple",
            "tcp",
            "promptsrc",
            "mma",
            "coprompt",
            *OUR_METHODS,
        ),
    ),
    "2": Part(
        "cross-dataset",
        ("coop", "cocoop", "maple", "promptsrc", "mma", "coprompt", *OUR_METHODS),
        ON_IMAGENET,
    ),
    "3": Part(
        "domain-generalization",
        (
            "zero-shot",
            "coop",
            "cocoop",
            "kgcoop",
            "maple",
            "promptsrc",
            "mma",
            "coprompt",
            *OUR_METHODS,
        ),
        ON_IMAGENET,
    ),
    "4": Part("ablation-components"),
    "5": Part("ablation-sharing"),
    "6": Part("ablation-layers"),
}


@dataclass(frozen=True)
class ReproduceOptions:
    """What to reproduce and how.

    Attributes:
        root: Folder of data sets.
        out: Folder for results.
        tables: Numbers of the tables.
        methods: Methods; empty for all.
        seeds: Seeds.
        per_set: Whether methods also run with their authors' constants for each data set.
        own_templates: Whether each data set has its own prompt templates.
        task: Settings that all tasks share.
        machine: Machine settings.
        values: Settings of methods.
    """

    root: Path
    out: Path
    tables: Sequence[str] = tuple(PARTS)
    methods: Sequence[str] = ()
    seeds: Sequence[int] = paper.SEEDS
    per_set: bool = False
    own_templates: bool = False
    task: Task = field(default_factory=Task)
    machine: Machine = field(default_factory=Machine)
    values: Settings = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.tables or not PARTS.keys() >= {*self.tables}:
            named = ",".join(self.tables)
            raise UserError(f"--tables {named}: the tables with runs are {', '.join(PARTS)}")
        known = sorted({method for part in PARTS.values() for method in part.methods})
        for method in (*self.methods, *self.values):
            if method not in known:
                raise UserError(
                    f"{method}: the methods of the paper's tables are {', '.join(known)}"
                )
        if self.task.backbone not in paper.BACKBONES:
            allowed = " or ".join(sorted(paper.BACKBONES))
            raise UserError(f"--backbone {self.task.backbone}: the paper's figures use {allowed}")


def missing_data(options: ReproduceOptions) -> dict[str, str]:
    """Return what is missing of each data set that the tables need and that is not complete below
    the root."""
    needed = dict.fromkeys(key for table in options.tables for key in PARTS[table].needed)
    states = {key: check(CATALOG[key], options.root) for key in needed}
    return {
        key: "; ".join(state.missing) or state.status
        for key, state in states.items()
        if state.status != "complete"
    }


def make_plans(options: ReproduceOptions, absent: Iterable[str]) -> dict[str, Plan]:
    """Plan the runs on complete data sets, by table number. Tables without runs are left out."""
    plans = {}
    for table in options.tables:
        part = PARTS[table]
        methods = [m for m in part.methods if not options.methods or m in options.methods]
        datasets = part.datasets({*part.needed} - {*absent})
        ablation = not part.methods and (not options.methods or "rmadapter" in options.methods)
        if not datasets or not (methods or ablation):
            continue
        jobs = expand(
            part.protocol,
            datasets,
            methods,
            options.seeds,
            root=options.root,
            common=options.task,
        )
        if options.own_templates:
            jobs = with_own_templates(jobs)
        if options.per_set:
            jobs = list(add_published_rows(jobs, options.values))
        values = {}
        for method in {job.method for job in jobs}:
            settings = {**part.values.get(method, {}), **options.values.get(method, {})}
            if settings:
                values[method] = settings
        plans[table] = Plan(tuple(jobs), options.out, options.root, options.machine, values)
    return plans


class Outline(NamedTuple):
    """The runs of a table on a data set.

    Attributes:
        table: Number of the table.
        dataset: The data set.
        runs: Number of runs.
        finished: Number of finished runs.
        missing: Data sets that are not complete.
    """

    table: str
    dataset: str
    runs: int
    finished: int
    missing: tuple[str, ...]

    def row(self) -> list[str]:
        """Return the cells of a table's row, as in `OUTLINE`."""
        missing = str(len(self.missing)) if len(self.missing) > 1 else "".join(self.missing)
        return [self.table, self.dataset, str(self.runs), str(self.finished), missing]


def outline(plans: Mapping[str, Plan], absent: Iterable[str] = ()) -> list[Outline]:
    """Count all and finished runs, table by table.

    Args:
        plans: Plans by the number of the table.
        absent: Data sets that are not complete.
    """
    lines = []
    for table, plan in plans.items():
        remaining = {*plan.remaining()}
        for dataset in dict.fromkeys(job.task.data for job in plan.jobs):
            jobs = [job for job in plan.jobs if job.task.data == dataset]
            needed = {name for job in jobs for name in job.datasets}
            missing = tuple(name for name in absent if name in needed)
            finished = len({*jobs} - remaining)
            lines.append(Outline(table, dataset, len(jobs), finished, missing))
    return lines


def run_plans(plans: Mapping[str, Plan], processes: int = 1) -> list[Record]:
    """Do the runs: small data sets first, all tables of a data set together as they share its
    frozen activations; then Tables 2 and 3. Finished runs are kept."""
    records: list[Record] = []
    for transfer in (False, True):
        selected = [plan for table, plan in plans.items() if PARTS[table].is_transfer == transfer]
        jobs = [job for plan in selected for job in plan.jobs]
        values = {method: own for plan in selected for method, own in plan.values.items()}
        for dataset in sorted({job.task.data for job in jobs}, key=_size):
            part = tuple(job for job in jobs if job.task.data == dataset)
            in_use = {job.method for job in part} & values.keys()
            settings = {method: values[method] for method in in_use}
            records += run_all(replace(selected[0], jobs=part, values=settings), processes)
    return records


class Verdict(Check):
    """A row of `paper.check` with "within", "off by +1.23", "2 of 3 seeds" or "not run"."""

    verdict: str


def judge(
    options: ReproduceOptions, plans: Mapping[str, Plan], tolerance: float = paper.TOLERANCE
) -> list[Verdict]:
    """Compare the finished runs with each printed figure of the wanted tables, as `paper.check`
    does. Also writes the verdicts to `out` as CSV."""
    records = [record for plan in plans.values() for record in plan.records().values()]
    finished = [record for record in records if record.status == "finished"]
    titles = tuple(f"Table {table}" for table in options.tables)
    rows: list[Verdict] = [
        {**row, "verdict": _verdict(row)}
        for row in paper.check(finished, tolerance, options.seeds)
        if row["table"].split(",")[0] in titles
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, [*rows[0]], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(options.out / VERDICTS, text.getvalue())
    return rows


def _verdict(row: Check) -> str:
    if row["within"] is None:
        return "not run" if row["ours"] is None else row["status"]
    return "within" if row["within"] else f"off by {row['difference']:+.2f}"
