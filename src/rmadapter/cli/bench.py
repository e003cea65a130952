"""The verb `bench`; slow imports wait until it runs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
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
    Track,
    comma_list,
    is_ray,
    numbers,
)
from rmadapter.errors import UserError
from rmadapter.runs.trackers import trackers_in
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
    track: Track = ""
    crops: Crops = False
    outside: Outside = False

    def plan(self) -> Plan:
        """Return the runs to do. Raises UserError for options that do not fit together."""
        trackers = trackers_in(self.track, self.on_ray)
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
            trackers,
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

    With --plan, estimate from a few steps of each method what the runs that are left would cost.
    """
    from rmadapter.bench.plan import worker_count
    from rmadapter.bench.runner import run_all
    from rmadapter.cli.checks import note_caveats

    engine = options.cluster()
    runs = options.plan()
    processes = worker_count(runs.machine.device, options.jobs, options.jobs_per_gpu)
    if plan:
        _estimate(runs, processes, engine is not None, as_json)
        return
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


def _estimate(runs: Plan, processes: int, on_ray: bool, as_json: bool) -> None:
    """Print what runs would cost. Raises UserError for what cannot be estimated."""
    from rmadapter.bench.cost import cost
    from rmadapter.bench.plan import method_label

    if runs.tune:
        raise UserError(
            "--plan cannot tell what a search costs: leave out --tune, and count up to 4 fits per "
            "trial"
        )
    if on_ray:
        raise UserError("--plan measures on this machine: leave out --ray and --address")
    total = cost(runs, processes)
    if as_json:
        print(json.dumps(asdict(total)))
        return
    rows = []
    for line in total.lines:
        left = f"{line.left} of {line.runs}"
        title = line.variant or method_label(line.method, runs.values.get(line.method, {}))
        seconds = "unknown" if line.seconds is None else f"{line.seconds:.0f}"
        rows.append([line.data, title, str(line.shots), left, seconds])
    table(["data set", "method", "shots", "runs left", "seconds"], rows)
    where = f"{total.devices} x {total.device}"
    print(f"{total.left} of {total.runs} runs are left: {total.hours:.2f} hours on {where}")
    if total.unmeasured:
        print(f"not counted, as they could not be measured: {total.unmeasured}")
    print(
        f"memory: {total.memory / 1e9:.1f} GB per process, of a GPU about "
        f"{total.gpu_memory / 1e9:.1f} GB; activations on disk: {total.disk / 1e9:.1f} GB; "
        f"measured in {total.spent:.0f} s"
    )
    if total.order:
        print(
            f"the first is {total.order[0]}, the last {total.order[-1]}; --json has the whole order"
        )


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
