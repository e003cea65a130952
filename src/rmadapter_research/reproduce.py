"""Reproduce the paper's Tables 1 to 6: the runs they need, on the data sets that are present, and
a verdict on each printed figure.

The settings that methods have on ImageNet only are from their authors' repositories; see
docs/studies/reproduce.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, TypeAlias

from rmadapter.artifacts.record import Record, read_record
from rmadapter.bench.plan import Plan, Progress, add_published_rows
from rmadapter.bench.protocols import DOMAINS, Job, expand
from rmadapter.bench.report import paper
from rmadapter.bench.report.groups import TRANSFER
from rmadapter.bench.runner import run_all
from rmadapter.data import CATALOG, ELEVEN, check
from rmadapter.errors import UserError
from rmadapter.settings import Machine
from rmadapter.support.files import csv_text, write_text
from rmadapter.task import Task

OURS = ("rmadapter", "rmadapter-paper")
NOT_RUN = "not run"
VERDICTS = "verdict.csv"
OUTLINE = ["table", "data set", "runs", "finished", "hours left", "missing data"]


Settings: TypeAlias = "Mapping[str, Mapping[str, object]]"  # {method: {setting: value}}


def _size(dataset: str) -> tuple[int, str]:
    return sum(CATALOG[dataset].counts.values()), dataset


@dataclass(frozen=True)
class Part:
    """A table: its protocol, its methods (empty: the protocol's own), and their settings in this
    table only."""

    protocol: str
    methods: tuple[str, ...] = ()
    values: Settings = field(default_factory=dict)

    @property
    def needed(self) -> tuple[str, ...]:
        """The data sets that the table uses."""
        if self.protocol == "domain-generalization":
            return ("imagenet", *DOMAINS["imagenet"])
        return ELEVEN

    def datasets(self, available: Iterable[str]) -> list[str]:
        """Return data sets for `expand`, small ones first; for transfer the source first, or none
        if any is missing."""
        present = set(available) & {*self.needed}
        if self.protocol not in TRANSFER:
            return sorted(present, key=_size)
        if len(present) < len(self.needed):
            return []
        return list(ELEVEN) if self.protocol == "cross-dataset" else ["imagenet"]


ON_IMAGENET: Settings = {
    "coop": {"epochs": 50},
    "maple": {"depth": 3, "epochs": 2, "learning_rate": 0.0026},
    "promptsrc": {"depth": 3, "mean": 6.0, "std": 10.0},
    "mma": {"batch_size": 128},
}
PARTS: Mapping[str, Part] = {
    "1": Part(
        "base-to-novel",
        (
            "zero-shot", "coop", "cocoop", "kgcoop", "maple", "tcp", "promptsrc", "mma",
            "coprompt", *OURS,
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
}  # fmt: skip


@dataclass(frozen=True)
class ReproduceOptions:
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
    values: Settings = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.tables:
            raise UserError(f"--tables: name at least one of {', '.join(PARTS)}")
        for table in self.tables:
            if table not in PARTS:
                raise UserError(f"--tables {table}: the tables with runs are {', '.join(PARTS)}")
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
            part.protocol, datasets, methods, options.seeds, root=options.root,
            common=options.task, own_templates=options.own_templates,
        )  # fmt: skip
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
    """The runs of a table on a data set. hours: of those left, at the pace of finished runs of the
    same methods; None if some of these methods have not finished a run. missing: data sets that are
    not complete."""

    table: str
    dataset: str
    runs: int
    finished: int
    hours: float | None
    missing: tuple[str, ...]

    def row(self) -> list[str]:
        """Return the cells of a table's row, as in `OUTLINE`."""
        hours = "?" if self.hours is None else f"{self.hours:.2f}"
        missing = str(len(self.missing)) if len(self.missing) > 1 else "".join(self.missing)
        return [self.table, self.dataset, str(self.runs), str(self.finished), hours, missing]


@dataclass
class Pace:
    """Seconds and images of a method's finished runs, of training and of evaluation."""

    train: float = 0.0
    trained: int = 0
    evaluate: float = 0.0
    evaluated: int = 0

    def add(self, job: Job, record: Record) -> None:
        """Count a finished run of a job."""
        trained, evaluated = images_of(job)
        seconds = record.seconds
        self.train += seconds.get("frozen", 0.0) + seconds.get("train", 0.0)
        self.evaluate += seconds.get("evaluate", 0.0)
        self.trained, self.evaluated = self.trained + trained, self.evaluated + evaluated

    def seconds(self, job: Job) -> float:
        """Predict the seconds of a job."""
        trained, evaluated = images_of(job)
        return self.train * trained / self.trained + self.evaluate * evaluated / self.evaluated


def images_of(job: Job) -> tuple[int, int]:
    """Return how many images a job trains on and is tested on, by the catalogue."""
    classes = CATALOG[job.task.data].classes
    if job.task.classes == "base":
        classes = (classes + 1) // 2
    tested = {test.data or job.task.data for test in job.task.questions}
    return classes * job.task.shots, sum(CATALOG[name].counts["test"] for name in tested)


def outline(plans: Mapping[str, Plan], absent: Iterable[str] = ()) -> list[Outline]:
    """Count all and finished runs, table by table, and estimate the hours of the others. absent:
    data sets that are not complete."""
    remaining = {table: {*Progress(plan).remaining()} for table, plan in plans.items()}
    paces: dict[str, Pace] = {}
    for table, plan in plans.items():
        for job in plan.jobs:
            file = plan.out / job.path
            if job not in remaining[table] and file.is_file():
                paces.setdefault(job.method, Pace()).add(job, read_record(file))
    lines = []
    for table, plan in plans.items():
        for dataset in dict.fromkeys(job.task.data for job in plan.jobs):
            jobs = [job for job in plan.jobs if job.task.data == dataset]
            left = [job for job in jobs if job in remaining[table]]
            known = all(job.method in paces for job in left)
            seconds = sum(paces[job.method].seconds(job) for job in left) if known else None
            needed = {name for job in jobs for name in job.datasets}
            hours = None if seconds is None else round(seconds / 3600, 3)
            missing = tuple(name for name in absent if name in needed)
            lines.append(Outline(table, dataset, len(jobs), len(jobs) - len(left), hours, missing))
    return lines


def describe_left(lines: Sequence[Outline]) -> str:
    """Say how many runs are left, how long they take as far as that is known, and how to know
    more."""
    runs, left = sum(line.runs for line in lines), sum(line.runs - line.finished for line in lines)
    known = sum(line.hours or 0.0 for line in lines)
    hours = f"{known:.1f} hours in one process"
    if all(line.hours is not None for line in lines):
        return f"{left} of {runs} runs are left: {hours}"
    hours = f"more than {hours}" if known else "hours are not known yet"
    return (
        f"{left} of {runs} runs are left: {hours}\n"
        "?: estimated as soon as each of the methods has finished a run here; get the smallest "
        "data set, dtd, and run --tables 1 --seeds 1"
    )


def run_plans(plans: Mapping[str, Plan], processes: int = 1) -> list[Record]:
    """Do the runs: small data sets first, all tables of a data set together as they share its
    frozen activations; then Tables 2 and 3. Finished runs are kept."""
    records: list[Record] = []
    for transfer in (False, True):
        selected = [
            plan for table, plan in plans.items() if (PARTS[table].protocol in TRANSFER) == transfer
        ]
        jobs = [job for plan in selected for job in plan.jobs]
        values = {method: own for plan in selected for method, own in plan.values.items()}
        for dataset in sorted({job.task.data for job in jobs}, key=_size):
            part = tuple(job for job in jobs if job.task.data == dataset)
            in_use = {job.method for job in part} & values.keys()
            settings = {method: values[method] for method in in_use}
            records += run_all(replace(selected[0], jobs=part, values=settings), processes)
    return records


class Verdict(paper.Check):
    """A row of `paper.check` with "within", "off by +1.23", "2 of 3 seeds" or "not run"."""

    verdict: str


def judge(
    options: ReproduceOptions, plans: Mapping[str, Plan], tolerance: float = paper.TOLERANCE
) -> list[Verdict]:
    """Compare the finished runs with each printed figure of the wanted tables, as `paper.check`
    does. Also writes the verdicts to `out` as CSV."""
    paths = [plan.out / job.path for plan in plans.values() for job in plan.jobs]
    records = [read_record(path) for path in paths if path.is_file()]
    finished = [record for record in records if record.status == "finished"]
    titles = tuple(f"Table {table}" for table in options.tables)
    rows: list[Verdict] = [
        {**row, "verdict": _verdict(row)}
        for row in paper.check(finished, tolerance, options.seeds)
        if row["table"].split(",")[0] in titles
    ]
    write_text(options.out / VERDICTS, csv_text([*rows[0]], [[*row.values()] for row in rows]))
    return rows


def _verdict(row: paper.Check) -> str:
    if row["within"] is None:
        return NOT_RUN if row["ours"] is None else row["status"]
    return "within" if row["within"] else f"off by {row['difference']:+.2f}"
