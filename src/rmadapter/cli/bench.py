"""The verb `bench`; slow imports wait until it runs."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from rmadapter.cli.options import (
    Address,
    Backbone,
    Config,
    Crops,
    Draw,
    ExperimentOptions,
    Json,
    OnRay,
    Outside,
    PlanOnly,
    Quiet,
    comma_list,
    is_ray,
    numbers,
)
from rmadapter.errors import UserError
from rmadapter.support.terminal import note, table

if TYPE_CHECKING:
    from rmadapter.artifacts.record import Record
    from rmadapter.bench.plan import Plan
    from rmadapter.bench.protocols import Job
    from rmadapter.task import Task


@dataclass(frozen=True, kw_only=True)
class BenchOptions(ExperimentOptions):
    """What to run, and where."""

    protocol: Annotated[
        str,
        typer.Argument(help="base-to-novel, cross-dataset, domain-generalization, few-shot, ..."),
    ]
    datasets: Annotated[
        str,
        typer.Option(
            help="Names or folders below --root: a,b or pacs/photo; paper: the paper's 11."
        ),
    ]
    backbone: Backbone = None
    shots: Annotated[
        str, typer.Option(help="Images per class; by default 16, for few-shot 1,2,4,8,16.")
    ] = ""
    draw: Draw = None
    axes: Annotated[str, typer.Option(help="For sensitivity: rank,alpha,...")] = ""
    tune: Annotated[
        int,
        typer.Option(
            min=0, help="Also run each method with the best of this many settings, judged on folds."
        ),
    ] = 0
    config: Config = None
    jobs_per_gpu: Annotated[
        int, typer.Option(min=0, help="Processes per GPU, instead of --jobs.")
    ] = 0
    shard: Annotated[
        str,
        typer.Option(
            help="2/8: the second of eight parts; auto: the part of this Slurm array task."
        ),
    ] = ""
    on_ray: OnRay = False
    address: Address = ""
    crops: Crops = False
    outside: Outside = False

    def plan(self) -> Plan:
        """Return the runs to do. Raises UserError for options that do not fit together."""
        from rmadapter.bench.plan import (
            Plan,
            add_published_rows,
            add_tuned_rows,
            find_tuner,
            of_run,
        )
        from rmadapter.runs.request import read_config

        fitted, values = read_config(self.config, comma_list(self.methods))
        flags = {"backbone": self.backbone, "draw": self.draw}
        values |= {name: value for name, value in flags.items() if value is not None}
        task, machine, own = self.configured(of_run(fitted, values))
        jobs = self._jobs(comma_list(self.methods or fitted), task)
        if self.per_set:
            jobs = list(add_published_rows(jobs, own))
        search = None
        if self.tune:
            tuner = find_tuner()
            jobs, search = list(add_tuned_rows(jobs, self.tune, own, tuner)), tuner.tune
        jobs, elsewhere = self._part(jobs)
        return Plan(
            tuple(jobs),
            self.out,
            self.root,
            machine,
            {name: values for name, values in own.items() if name not in elsewhere},
            self.outside,
            self.crops,
            search,
        )

    def _jobs(self, methods: Sequence[str], task: Task) -> Sequence[Job]:
        from rmadapter.bench.protocols import expand, with_own_templates
        from rmadapter.data.catalog.sets import ELEVEN

        jobs = expand(
            self.protocol,
            ELEVEN if self.datasets == "paper" else comma_list(self.datasets),
            methods,
            self.seed_numbers(),
            numbers("shots", self.shots),
            axes=comma_list(self.axes),
            root=self.root,
            common=task,
        )
        return with_own_templates(jobs) if self.templates == "dataset" else jobs

    def _part(self, jobs: Sequence[Job]) -> tuple[Sequence[Job], set[str]]:
        """Return the jobs of this --shard, and the methods that only other shards run."""
        from rmadapter.bench.plan import parse_shard, select_shard

        if self.shard:
            number, count = parse_shard(self.shard, os.environ)
            chosen = select_shard(jobs, number, count)
            note(f"part {number} of {count}: {len(chosen)} of {len(jobs)} runs")
            return chosen, {job.method for job in jobs} - {job.method for job in chosen}
        if "SLURM_ARRAY_TASK_ID" in os.environ:
            note(
                "a task of an array without --shard auto: all tasks share all runs, and each "
                "takes whatever is free"
            )
        return jobs, set()

    def cluster(self) -> Callable[..., None] | None:
        """Return what does the runs on a Ray cluster, if one is wanted, as `run_all` takes it."""
        if not is_ray(self.on_ray, self.address):
            return None
        from rmadapter.bench.ray import work

        return partial(work, address=self.address)


def bench(
    options: BenchOptions,
    plan: PlanOnly = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run an experiment of many runs; finished runs are kept.

    With --plan, list the runs that are left, and run none.
    """
    from rmadapter.bench.plan import worker_count
    from rmadapter.bench.runner import run_all
    from rmadapter.cli.checks import note_caveats

    engine = options.cluster()
    runs = options.plan()
    if plan:
        _show_plan(runs, as_json)
        return
    processes = worker_count(runs.machine.device, options.jobs, options.jobs_per_gpu)
    note_caveats(*dict.fromkeys(job.task.backbone for job in runs.jobs))
    records = run_all(runs, processes, engine=engine)
    if as_json:
        print(json.dumps([json.loads(record.line()) for record in records]))
    else:
        _show(records)
    failed = [record for record in records if record.status == "failed"]
    if failed:
        task, method = failed[0].task, failed[0].method
        first = f"{task.data}, {method.name}, seed {task.seed}: {failed[0].reason}"
        raise UserError(
            f"{len(failed)} of {len(records)} runs failed ({first}); the same command retries them"
        )


def _show_plan(runs: Plan, as_json: bool) -> None:
    """Print how many runs of each kind are left, and their order. Raises UserError for what `bench`
    would refuse."""
    from rmadapter.bench.plan import Progress, method_label
    from rmadapter.bench.runner import check_plan, in_order

    def kinds(jobs: Sequence[Job]) -> Counter[tuple[str, str, str, int]]:
        return Counter((job.task.data, job.method, job.variant, job.task.shots) for job in jobs)

    lab = replace(runs.lab(), folder=None)  # nothing is written
    left = in_order(check_plan(runs, lab, Progress(runs)))
    every, missing = kinds(in_order(runs.jobs)), kinds(left)
    if as_json:
        names = ("data", "method", "variant", "shots", "runs", "left")
        lines = [
            dict(zip(names, (*kind, count, missing[kind]), strict=True))
            for kind, count in every.items()
        ]
        order = [str(job) for job in left]
        print(
            json.dumps({"runs": len(runs.jobs), "left": len(left), "lines": lines, "order": order})
        )
        return
    rows = []
    for (data, method, variant, shots), count in every.items():
        title = variant or method_label(method, runs.values.get(method, {}))
        rows.append(
            [data, title, str(shots), f"{missing[data, method, variant, shots]} of {count}"]
        )
    table(["data set", "method", "shots", "runs left"], rows)
    print(f"{len(left)} of {len(runs.jobs)} runs are left")
    if left:
        print(f"the first is {left[0]}, the last {left[-1]}; --json has the whole order")


def _show(records: Sequence[Record]) -> None:
    """Print means over seeds: one row per data set, method, variant and number of shots."""
    from statistics import fmean

    from rmadapter.bench.report.groups import row_titles

    groups: dict[tuple[str, str, int], list[Record]] = {}
    for title, record in zip(row_titles(records), records, strict=True):
        key = (record.task.data, title, record.task.shots)
        groups.setdefault(key, []).append(record)
    names = list(dict.fromkeys(name for record in records for name in record.metrics))
    rows = []
    for (dataset, method, shots), group in groups.items():
        cells = []
        for name in names:
            values = [record.metrics[name] for record in group if name in record.metrics]
            cells.append(f"{fmean(values):.2f}" if values else "-")
        done = sum(record.status == "finished" for record in group)
        rows.append([dataset, method, str(shots), f"{done} of {len(group)}", *cells])
    table(["data set", "method", "shots", "seeds", *names], rows)
    for reason in dict.fromkeys(
        f"{record.method.name}: {record.reason}" for record in records if record.reason
    ):
        note(reason)
