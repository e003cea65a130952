"""The commands of the bench. They are thin, and import slow modules only when they run."""

from __future__ import annotations

import inspect
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, get_type_hints

import typer

from rmadapter.bench.ray.cluster import Address, Engine, is_ray
from rmadapter.errors import UserError
from rmadapter.support.terminal import Config, Crops, Json, Outside, Quiet, note, table

if TYPE_CHECKING:
    from rmadapter.artifacts.record import Record
    from rmadapter.bench.plan import Plan


class Asked(NamedTuple):
    """The runs to do and the number of processes. engine: as in `run_all`."""

    plan: Plan
    processes: int
    as_json: bool
    engine: Callable[..., None] | None = None


def _asked(
    protocol: Annotated[
        str,
        typer.Argument(help="base-to-novel, cross-dataset, domain-generalization, few-shot, ..."),
    ],
    datasets: Annotated[
        str,
        typer.Option(
            help="Names or folders below --root: a,b or pacs/photo; paper: the paper's 11."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", help="Folder for results; repeat the command to resume.")
    ],
    methods: Annotated[
        str, typer.Option(help="Names from `rmadapter methods`, package:Class or file.py:Class.")
    ] = "",
    backbone: Annotated[
        str | None, typer.Option(help="pocket (the default), ViT-B-16/openai, ... or a folder.")
    ] = None,
    seeds: Annotated[
        str, typer.Option(help="Seeds of draw, initialisation and batches.")
    ] = "1,2,3",
    shots: Annotated[
        str, typer.Option(help="Images per class; by default 16, for few-shot 1,2,4,8,16.")
    ] = "",
    root: Annotated[Path, typer.Option(help="Folder of data sets.")] = Path(),
    templates: Annotated[
        str,
        typer.Option(
            help='"dataset" for that of the set trained on, or one prompt template with {}.'
        ),
    ] = "",
    axes: Annotated[str, typer.Option(help="For sensitivity: rank,alpha,...")] = "",
    per_set: Annotated[
        bool,
        typer.Option("--per-set", help="Also run with the authors' constants for each data set."),
    ] = False,
    tune: Annotated[
        int,
        typer.Option(
            min=0, help="Also run each method with the best of this many settings, judged on folds."
        ),
    ] = 0,
    config: Config = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="[METHOD.]FIELD=VALUE",
            help="A method's setting, or one common to all.",
        ),
    ] = None,
    jobs: Annotated[
        int, typer.Option(min=1, help="Processes; they share the cores, and use the GPUs in turn.")
    ] = 1,
    jobs_per_gpu: Annotated[
        int, typer.Option(min=0, help="Processes per GPU, instead of --jobs.")
    ] = 0,
    shard: Annotated[
        str,
        typer.Option(
            help="2/8: the second of eight parts; auto: the part of this Slurm array task."
        ),
    ] = "",
    engine: Engine = "local",
    address: Address = "",
    crops: Crops = False,
    outside: Outside = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> Asked:
    """Read the options of `bench` and `plan`."""
    from rmadapter.bench import shard as parts
    from rmadapter.bench.plan import Plan
    from rmadapter.bench.pool import workers
    from rmadapter.bench.protocols import expand
    from rmadapter.bench.published_settings import as_published
    from rmadapter.data.catalog.sets import ELEVEN
    from rmadapter.runs.request import machine_of, read_config
    from rmadapter.settings import configured, parse_overrides
    from rmadapter.task import Task, check_views

    elsewhere = None
    if is_ray(engine, address):
        from rmadapter.bench.ray.jobs import work

        elsewhere = partial(work, address=address)
    if datasets == "paper":
        datasets = ",".join(ELEVEN)
    fitted, values = read_config(config, _list(methods))
    given = {**_of_run(fitted, values), **({"backbone": backbone} if backbone else {})}
    if templates not in ("", "dataset"):
        given["templates"] = templates
    task, machine, own = common_and_own(given | parse_overrides(sets or []))
    planned = expand(
        protocol, _list(datasets), _list(methods or fitted), _numbers("seeds", seeds), _numbers("shots", shots),
        axes=_list(axes), root=root, common=check_views(configured(Task(), task)), own_templates=templates == "dataset",
    )  # fmt: skip
    planned, search = list(as_published(planned)) if per_set else planned, None
    if tune:
        from rmadapter.bench.tuned import as_tuned, tuned

        planned, search = list(as_tuned(planned, tune, own)), tuned
    if shard:
        number, count = parts.shard(shard, os.environ)
        every, planned = planned, parts.part(planned, number, count)
        elsewhere_set = {job.method for job in every} - {job.method for job in planned}
        own = {name: values for name, values in own.items() if name not in elsewhere_set}
        note(f"part {number} of {count}: {len(planned)} of {len(every)} runs")
    elif parts.in_array(os.environ):
        note(
            "a task of an array without --shard auto: all tasks share all runs, and each takes whatever is free"
        )
    wanted = Plan(tuple(planned), out, root, machine_of(machine), own, outside, crops, search)
    return Asked(wanted, workers(wanted.machine.device, jobs, jobs_per_gpu), as_json, elsewhere)


def _with_options(verb: Callable[[Asked], None]) -> Callable[..., None]:
    """Make a command with the options of `_asked`, which Typer reads from the signature."""

    def command(*words: Any, **named: Any) -> None:
        verb(_asked(*words, **named))

    command.__name__, command.__doc__ = verb.__name__, verb.__doc__
    hints, signature = get_type_hints(_asked, include_extras=True), inspect.signature(_asked)
    options = [
        option.replace(annotation=hints[name]) for name, option in signature.parameters.items()
    ]
    command.__signature__ = signature.replace(parameters=options, return_annotation=None)  # type: ignore[attr-defined]
    return command


@_with_options
def bench(asked: Asked) -> None:
    """Run one of the paper's experiments; finished runs are kept."""
    from rmadapter.bench.runner import run_all

    records = run_all(asked.plan, asked.processes, engine=asked.engine)
    if asked.as_json:
        print(json.dumps([json.loads(record.line()) for record in records]))
    else:
        _show(records)
    failed = [record for record in records if record.status == "failed"]
    if failed:
        first = f"{failed[0].task.data}, {failed[0].method.name}, seed {failed[0].task.seed}: {failed[0].reason}"
        raise UserError(
            f"{len(failed)} of {len(records)} runs failed ({first}); the same command retries them"
        )


@_with_options
def plan(asked: Asked) -> None:
    """Estimate the cost of `bench` with the same options: runs, hours and disk, from a few steps of
    each method."""
    from rmadapter.bench.cost import cost

    if asked.plan.tune:
        raise UserError(
            "plan cannot tell what a search costs: leave out --tune, and count up to 4 fits per trial"
        )
    if asked.engine is not None:
        raise UserError("plan measures on this machine: leave out --engine and --address")
    found = cost(asked.plan, asked.processes)
    if asked.as_json:
        print(json.dumps(asdict(found)))
        return
    rows = [
        [
            line.data,
            line.variant or line.method,
            str(line.shots),
            f"{line.left} of {line.runs}",
            f"{line.seconds:.0f}",
        ]
        for line in found.lines
    ]
    table(["data set", "method", "shots", "runs left", "seconds"], rows)
    print(
        f"{found.left} of {found.runs} runs are left: {found.hours:.2f} hours on {found.devices} x {found.device}"
    )
    print(f"activations on disk: {found.disk / 1e9:.1f} GB; measured in {found.spent:.0f} s")
    if found.order:
        print(
            f"the first is {found.order[0]}, the last {found.order[-1]}; --json has the whole order"
        )


PLANNED = ("shots", "seed", "classes")  # set by the protocol, by --shots and by --seeds


def _of_run(method: str, values: dict[str, Any]) -> dict[str, Any]:
    """Convert the values of a run's config.yaml for a bench. A file that names no method is for a
    bench already."""
    from rmadapter.task import COMMON_SETTINGS

    if not method:
        return values
    kept = {name: value for name, value in values.items() if name not in PLANNED}
    return {
        name if name in COMMON_SETTINGS or "." in name else f"{method}.{name}": value
        for name, value in kept.items()
    }


def common_and_own(
    given: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, Any], dict[str, dict[str, Any]]]:
    """Split settings into the tasks', the machine's and {method: {setting: value}}. Raises
    UserError for others."""
    from rmadapter.task import COMMON_SETTINGS, MACHINE_SETTINGS, TASK_SETTINGS

    values: dict[str, dict[str, Any]] = {}
    for name, value in given.items():
        method, dot, own = name.rpartition(".")
        if dot:
            values.setdefault(method, {})[own] = value
        elif name not in COMMON_SETTINGS or name in PLANNED:
            common = ", ".join(other for other in COMMON_SETTINGS if other not in PLANNED)
            raise UserError(
                f"--set {name}: write METHOD.{name} for a method's setting; the common ones are {common}"
            )
    task = {name: value for name, value in given.items() if name in TASK_SETTINGS}
    return task, {name: value for name, value in given.items() if name in MACHINE_SETTINGS}, values


def report(
    results: Annotated[
        Path, typer.Argument(help="Folder written by `bench`, file of records, or run of `fit`.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for the report; a run's report goes into its own."),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Compare with the paper's figures; exit code 1 if one is off."
        ),
    ] = False,
    tolerance: Annotated[
        float | None,
        typer.Option(help="Points by which a figure may be off, with --check.", show_default="1.0"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write tables, figures and one page of everything measured; or rewrite the page of one run."""
    if tolerance is not None and not check:
        raise UserError("--tolerance: is for --check, which compares with the paper's figures")
    if (results / "model.json").is_file():
        _page_again(results, out, check, as_json)
        return
    if out is None:
        raise UserError("--out: give a folder for the report")
    from rmadapter.bench.report import paper
    from rmadapter.bench.report.write import write_reports

    written = write_reports(results, out)
    within = paper.TOLERANCE if tolerance is None else tolerance
    judged = paper.check(results, within) if check else []
    if as_json:
        print(json.dumps(judged if check else written))
    elif check:
        names = ["table", "row", "figure", "paper", "ours", "difference", "within", "status"]
        cells = {None: "-", True: "yes", False: "NO"}
        table(
            names,
            [
                [
                    f"{v:.2f}" if isinstance(v := r[n], float) else cells.get(v, str(v))
                    for n in names
                ]
                for r in judged
            ],
        )
        measured = [row for row in judged if row["within"] is not None]
        near = sum(row["within"] for row in measured)
        print(
            f"{len(measured)} of {len(judged)} printed figures were measured; {near} are within {within:g} points"
        )
    else:
        print(f"report: {out / 'report.html'}")
    if any(row["within"] is False for row in judged):
        raise typer.Exit(1)


def _page_again(run: Path, out: Path | None, check: bool, as_json: bool) -> None:
    from rmadapter.runs.fit import page_again

    if out is not None or check:
        raise UserError(
            f"{run}: a run's report is written into its own folder: leave out --out and --check"
        )
    page = page_again(run)
    print(json.dumps({"report": str(page)}) if as_json else f"report: {page}")


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(name: str, text: str) -> list[int]:
    try:
        return [int(part) for part in _list(text)]
    except ValueError:
        raise UserError(f"--{name} {text}: write whole numbers, such as 1,2,3") from None


def _show(records: Sequence[Record]) -> None:
    """Print means over seeds: one row per data set, method, variant and number of shots."""
    from statistics import fmean

    groups: dict[tuple[Any, ...], list[Record]] = {}
    pairs = {(record.method.name, record.variant or record.method.title) for record in records}
    titles = Counter(title for _, title in pairs)
    for record in records:
        name, title = record.method.name, record.variant or record.method.title
        key = (
            record.task.data,
            title if titles[title] == 1 else f"{title} ({name})",
            record.task.shots,
        )
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
