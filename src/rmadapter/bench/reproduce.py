"""Reproduce the paper's Tables 1 to 6: the runs they need, on the data sets that are there, and a
verdict.

The settings that methods have on ImageNet only are from their authors' repositories; see
docs/reproduce.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rmadapter.artifacts.record import Record, read_record
from rmadapter.bench.done import Board
from rmadapter.bench.plan import Plan
from rmadapter.bench.protocols import DOMAINS, expand
from rmadapter.bench.published_settings import as_published
from rmadapter.bench.report import paper
from rmadapter.bench.report.groups import TRANSFER
from rmadapter.bench.runner import run_all
from rmadapter.data.catalog.sets import CATALOG, ELEVEN, check
from rmadapter.errors import UserError
from rmadapter.settings import Machine
from rmadapter.support.files import csv_text, write_text
from rmadapter.task import Task

OURS = ("rmadapter", "rmadapter-paper")
NOT_RUN = "not run"
VERDICTS = "verdict.csv"


def _size(dataset: str) -> tuple[int, str]:
    return sum(CATALOG[dataset].counts.values()), dataset


@dataclass(frozen=True)
class Part:
    """A table: its protocol, its methods (empty: the protocol's own), and their settings in this
    table only."""

    protocol: str
    methods: tuple[str, ...] = ()
    values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def needed(self) -> tuple[str, ...]:
        return (
            ("imagenet", *DOMAINS["imagenet"])
            if self.protocol == "domain-generalization"
            else ELEVEN
        )

    def datasets(self, there: Iterable[str]) -> list[str]:
        """Data sets for `expand`, small ones first; for transfer the source first, or none if any
        is missing."""
        here = set(there) & {*self.needed}
        if self.protocol not in TRANSFER:
            return sorted(here, key=_size)
        if len(here) < len(self.needed):
            return []
        return list(ELEVEN) if self.protocol == "cross-dataset" else ["imagenet"]


ON_IMAGENET: Mapping[str, Mapping[str, Any]] = {
    "coop": {"epochs": 50},
    "maple": {"depth": 3, "epochs": 2, "learning_rate": 0.0026},
    "promptsrc": {"depth": 3, "mean": 6.0, "std": 10.0},
    "mma": {"batch_size": 128},
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
            *OURS,
        ),
    ),
    "2": Part(
        "cross-dataset",
        ("coop", "cocoop", "maple", "promptsrc", "mma", "coprompt", *OURS),
        ON_IMAGENET,
    ),
    "3": Part(
        "domain-generalization",
        ("zero-shot", "coop", "cocoop", "kgcoop", "maple", "promptsrc", "mma", "coprompt", *OURS),
        ON_IMAGENET,
    ),
    "4": Part("ablation-components"),
    "5": Part("ablation-sharing"),
    "6": Part("ablation-layers"),
}


@dataclass(frozen=True)
class Wish:
    """What to reproduce and how. tables: their numbers. methods: empty for all. own_templates: each
    data set's prompt templates. values: of `--set`."""

    root: Path
    out: Path
    tables: Sequence[str] = tuple(PARTS)
    methods: Sequence[str] = ()
    seeds: Sequence[int] = paper.SEEDS
    per_set: bool = False
    own_templates: bool = False
    task: Task = field(default_factory=Task)
    machine: Machine = field(default_factory=Machine)
    values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.tables:
            raise UserError(f"--tables: name at least one of {', '.join(PARTS)}")
        if unknown := [table for table in self.tables if table not in PARTS]:
            raise UserError(f"--tables {unknown[0]}: the tables with runs are {', '.join(PARTS)}")
        known = {method for part in PARTS.values() for method in part.methods}
        if unknown := [method for method in (*self.methods, *self.values) if method not in known]:
            raise UserError(
                f"{unknown[0]}: the methods of the paper's tables are {', '.join(sorted(known))}"
            )
        if self.task.backbone not in paper.BACKBONES:
            known = set(paper.BACKBONES)
            raise UserError(
                f"--backbone {self.task.backbone}: the paper's figures use {' or '.join(sorted(known))}"
            )


def missing(wish: Wish) -> dict[str, str]:
    """What is missing of each data set that the tables need and that is not complete below the
    root."""
    needed = dict.fromkeys(key for table in wish.tables for key in PARTS[table].needed)
    found = {key: check(CATALOG[key], wish.root) for key in needed}
    return {
        key: "; ".join(one.missing) or one.status
        for key, one in found.items()
        if one.status != "complete"
    }


def plans(wish: Wish, absent: Iterable[str]) -> dict[str, Plan]:
    """The runs on complete data sets, by table number. Tables without runs are left out."""
    made = {}
    for table in wish.tables:
        part = PARTS[table]
        methods = [method for method in part.methods if not wish.methods or method in wish.methods]
        datasets = part.datasets({*part.needed} - {*absent})
        ablation = not part.methods and (not wish.methods or "rmadapter" in wish.methods)
        if not datasets or not (methods or ablation):
            continue
        own = {"root": wish.root, "common": wish.task, "own_templates": wish.own_templates}
        jobs = expand(part.protocol, datasets, methods, wish.seeds, **own)  # type: ignore[arg-type]
        there = {job.method for job in jobs}
        values = {m: {**part.values.get(m, {}), **wish.values.get(m, {})} for m in there}
        jobs = list(as_published(jobs)) if wish.per_set else jobs
        kept = {method: own for method, own in values.items() if own}
        made[table] = Plan(tuple(jobs), wish.out, wish.root, wish.machine, kept)
    return made


def outline(made: Mapping[str, Plan]) -> list[tuple[str, str, int, int]]:
    """(table, data set, number of runs, number of finished runs), table by table."""
    found = []
    for number, plan in made.items():
        left = {*Board(plan).left()}
        for dataset in dict.fromkeys(job.task.data for job in plan.jobs):
            jobs = [job for job in plan.jobs if job.task.data == dataset]
            found.append((number, dataset, len(jobs), sum(job not in left for job in jobs)))
    return found


def run(made: Mapping[str, Plan], processes: int = 1) -> list[Record]:
    """Do the runs: small data sets first, all tables of one together as they share its frozen
    activations; then Tables 2 and 3. Finished runs are kept."""
    records: list[Record] = []
    for transfer in (False, True):
        some = [
            plan for table, plan in made.items() if (PARTS[table].protocol in TRANSFER) == transfer
        ]
        jobs = [job for plan in some for job in plan.jobs]
        values = {method: own for plan in some for method, own in plan.values.items()}
        for dataset in sorted({job.task.data for job in jobs}, key=_size):
            here = tuple(job for job in jobs if job.task.data == dataset)
            own = {
                method: values[method] for method in {job.method for job in here} & values.keys()
            }
            records += run_all(replace(some[0], jobs=here, values=own), processes)
    return records


def verdicts(
    wish: Wish, made: Mapping[str, Plan], tolerance: float = paper.TOLERANCE
) -> list[dict[str, Any]]:
    """`paper.check` of the finished runs, for the wanted tables, with a verdict on each printed
    figure: "within", "off by +1.23", "2 of 3 seeds" or "not run". Also writes this to `out` as CSV.
    """
    paths = [plan.out / job.path for plan in made.values() for job in plan.jobs]
    records = [
        record
        for path in paths
        if path.is_file() and (record := read_record(path)).status == "finished"
    ]
    titles = tuple(f"Table {table}" for table in wish.tables)
    rows = [
        {**row, "verdict": _verdict(row)}
        for row in paper.check(records, tolerance, wish.seeds)
        if row["table"].split(",")[0] in titles
    ]
    write_text(wish.out / VERDICTS, csv_text([*rows[0]], [[*row.values()] for row in rows]))
    return rows


def _verdict(row: Mapping[str, Any]) -> str:
    if row["within"] is None:
        return NOT_RUN if row["ours"] is None else str(row["status"])
    return "within" if row["within"] else f"off by {row['difference']:+.2f}"
