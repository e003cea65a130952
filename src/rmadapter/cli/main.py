"""The command line: thin verbs over the library. Every import that costs time waits for its verb."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from rmadapter.cli import app as app_cli
from rmadapter.cli import backbones as backbones_cli
from rmadapter.cli import bench as bench_cli
from rmadapter.cli import explain as explain_cli
from rmadapter.cli import export as deploy_cli
from rmadapter.cli import leaderboard as leaderboard_cli
from rmadapter.cli import lists as known
from rmadapter.cli import predict as predict_cli
from rmadapter.cli import runs as runs_cli
from rmadapter.cli import serve as serve_cli
from rmadapter.cli import suggest as suggest_cli
from rmadapter.cli import suspects as suspects_cli
from rmadapter.cli import tune as scale_cli
from rmadapter.cli.examples import register
from rmadapter.errors import mistake
from rmadapter.support import distributed as world
from rmadapter.support.files import at_home
from rmadapter.support.hub import run_folder
from rmadapter.support.terminal import (
    Config,
    Crops,
    GroupColumn,
    ImageColumn,
    Its,
    Json,
    LabelColumn,
    Name,
    Outside,
    Quiet,
    Sets,
    SkipBad,
    SplitColumn,
    command,
    named_columns,
    note,
    plain,
    stoppable,
    streams,
    table,
)

app = typer.Typer(
    help="Adapt a CLIP-like model with a few images per class without losing what it already knows.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Which = Annotated[
    str | None,
    typer.Option("--classes", help="all (default), base (first half) or novel (second half)."),
]
Backbones = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        help="pocket (the default), ViT-B-16/openai, hf-hub:... or a folder; A,B: B if A is unavailable.",
    ),
]


def main() -> None:
    """Run the command line; a user's mistake becomes one line on stderr and exit code 2."""
    with streams(sys.argv[1:]), stoppable():
        try:
            code = app(
                [*map(at_home, sys.argv[1:])], prog_name="rmadapter", standalone_mode=False
            )  # else in a box
        except Exception as error:
            if text := mistake(error):
                world.tell(plain(text))
            code = 2
        sys.exit(code)


def _version(wanted: bool) -> None:
    if wanted:
        from rmadapter import __version__

        print(f"rmadapter {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    world.enter(str(context.invoked_subcommand))


def fit(
    data: Annotated[
        Path,
        typer.Argument(
            help="Folder of class folders, table of path,label[,split], or a format in docs/data.md."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", help="Folder for the run; repeat the command to resume.")
    ],
    method: Name = "",
    backbone: Backbones = None,
    shots: Annotated[
        int | None, typer.Option(help="Training images per class; 16 by default, 0 takes all.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of draw, initialisation and batches; 1 by default.")
    ] = None,
    classes: Which = None,
    effort: Annotated[
        str, typer.Option(help="How long to train: fast, normal or thorough.")
    ] = "normal",
    minutes: Annotated[
        float | None, typer.Option(help="Minutes for --method auto to choose; 10 by default.")
    ] = None,
    image_column: ImageColumn = "",
    label_column: LabelColumn = "",
    split_column: SplitColumn = "",
    group_column: GroupColumn = "",
    crops: Crops = False,
    names: Annotated[
        Path | None, typer.Option(help="CSV file of label,name: class names for prompts.")
    ] = None,
    config: Config = None,
    sets: Sets = None,
    folds: Annotated[
        int | None,
        typer.Option(
            min=0, help="Cross-validation folds; 4 by default where needed, 0: no judgement."
        ),
    ] = None,
    skip_bad: SkipBad = False,
    outside: Outside = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Adapt a backbone to images; write the model, its record and report.html."""
    from rmadapter.artifacts.summary import show
    from rmadapter.backbones.choice import advise, first_of
    from rmadapter.data.names import check_known, read_names
    from rmadapter.data.read import read_images
    from rmadapter.methods import explain_effort
    from rmadapter.runs.fit import fit as run_fit
    from rmadapter.runs.fit import help_fit
    from rmadapter.runs.request import requested
    from rmadapter.runs.run import Lab

    flags = {
        "backbone": backbone,
        "shots": shots,
        "seed": seed,
        "classes": classes,
        "minutes": minutes,
    }
    wanted = requested(method, config, flags, sets, effort, str(data), choosing=True)
    if effort != "normal":
        note(explain_effort(wanted.name, effort, wanted.method))
    lab = Lab(world.share(wanted.name, wanted.method, wanted.machine))
    given = read_names(names) if names else {}
    columns = named_columns(image_column, label_column, split_column, group_column)
    splits = read_images(
        data, skip_bad=skip_bad, outside=outside, names=given, columns=columns, crops=crops
    )
    check_known(given, next(iter(splits.values())).written, names or "")
    lab.add(str(data), splits)
    lab.add_backbone(chosen := first_of(wanted.task.backbone))
    if advice := advise(chosen.name):
        note(advice)
    task = replace(wanted.task, backbone=chosen.name)
    if world.helps():
        help_fit(task, wanted.method, out, lab, wanted.name)
        world.leave()
        return
    record = run_fit(
        task,
        wanted.method,
        out,
        lab,
        wanted.name,
        command(),
        folds=folds,
        columns=columns,
        crops=crops,
    )
    world.leave()
    for text in record.notes:
        note(text)
    show(record, as_json, out)
    if not as_json:
        print(f"report: {out / 'report.html'}")


def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder written by `fit`, or hf:OWNER/NAME.")],
    data: Annotated[Path, typer.Argument(help="Folder or table of images.")],
    split: Annotated[
        str, typer.Option(help="Split of the data, or heldout: images `fit` did not draw.")
    ] = "test",
    image_column: ImageColumn = "",
    label_column: LabelColumn = "",
    split_column: SplitColumn = "",
    group_column: GroupColumn = "",
    crops: Crops = False,
    classes: Which = None,
    method: Name = "",
    backbone: Its = None,
    config: Config = None,
    sets: Sets = None,
    skip_bad: SkipBad = False,
    outside: Outside = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure the accuracy of a run on a data set, beside the untouched backbone's."""
    from rmadapter.artifacts.checkpoint import load
    from rmadapter.artifacts.summary import show_score
    from rmadapter.data.read import read_images
    from rmadapter.runs import request
    from rmadapter.runs.fit import evaluate_saved, known_names
    from rmadapter.settings import configured, parse_overrides
    from rmadapter.task import Task
    from rmadapter.training.cache import Cache

    which = configured(Task(), {"classes": classes or "all"}).classes
    name, values = request.read_config(config, (method,))
    given = parse_overrides(sets or [])
    machine = request.machine_of(
        {field: given.pop(field) for field in request.READING if field in given}
    )
    settings = request.split(values, name)[2] | given
    saved = load(run, backbone, method=method, settings=settings, device=machine.device)
    columns = named_columns(image_column, label_column, split_column, group_column)
    names = known_names(run_folder(run), saved)
    splits = read_images(
        data, skip_bad=skip_bad, outside=outside, names=names, columns=columns, crops=crops
    )
    if ignored := next(iter(splits.values())).ignored:
        note(ignored)
    cache = Cache(saved.fitted.backbone, machine, hold=False)
    _, scores = evaluate_saved(run_folder(run), saved.fitted, splits, split, which, cache)
    show_score(scores[0], as_json)


def params(
    backbone: Annotated[
        str | None, typer.Option(help="Only its sizes matter; ViT-B-16/none by default.")
    ] = None,
    method: Name = "",
    classes: Annotated[
        int, typer.Option(help="Number of classes; only a few methods depend on it.")
    ] = 100,
    shots: Annotated[
        int | None, typer.Option(help="Images per class; only a few methods depend on it.")
    ] = None,
    config: Config = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Count the trained parameters, and how many of them inference needs."""
    from rmadapter.backbones import load_backbone
    from rmadapter.runs import request

    own = request.read_config(config, (method,))[1].get("backbone", "ViT-B-16/none")
    wanted = request.requested(method, config, {"backbone": backbone or own, "shots": shots}, sets)
    found = wanted.method.parameters(
        load_backbone(wanted.task.backbone), classes, wanted.task.shots
    )
    counts = {"trainable": found.trained, "inference": found.trained - found.training_only}
    if as_json:
        print(json.dumps(counts))
    else:
        table(["parameters", "count"], [[name, f"{count:,}"] for name, count in counts.items()])


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the run.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Seed for everything random.")] = 1,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Adapt the offline backbone to OpenMoji pictograms, and see what it gains and keeps."""
    from rmadapter.artifacts.summary import show
    from rmadapter.cli.demo import demo as run_demo

    record = run_demo(out, seed, command=command())
    show(record, as_json, out)
    if not as_json:
        for text in record.notes:  # the licence, which --quiet does not silence
            print(text)
        print(f"report: {out / 'report.html'}")


def cache(
    clear: Annotated[
        bool, typer.Option("--clear", help="Remove all of it without asking.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List or remove the activations of frozen blocks that --set disk_cache=GB left on this disk."""
    from datetime import datetime

    from rmadapter.training.disk_cache import Store, place

    store = Store(place())
    removed = store.clear() / 1e6 if clear else 0.0
    found = store.contents()
    facts = {
        "folder": str(store.folder),
        "mb": sum(one["mb"] for one in found),
        "removed_mb": removed,
    }
    if as_json:
        print(json.dumps({**facts, "contents": found}))
        return
    if found:
        used = [datetime.fromtimestamp(one["used"]).strftime("%Y-%m-%d %H:%M") for one in found]
        cells = [[one["what"], f"{one['images']:,}", f"{one['mb']:,.1f}"] for one in found]
        table(
            ["activations", "images", "MB", "last used"],
            [[*row, day] for row, day in zip(cells, used, strict=True)],
        )
    print(
        f"{store.folder}: {facts['mb']:,.1f} MB" + (f"; {removed:,.1f} MB removed" if clear else "")
    )


def doctor(as_json: Json = False) -> None:
    """Show what this machine and installation can do."""
    from rmadapter.cli.doctor import diagnose

    facts = diagnose()
    if as_json:
        print(json.dumps(facts))
    else:
        table(["what", "found"], [[name, str(value)] for name, value in facts.items()])


# In the order in which somebody new needs them.
VERBS = (
    demo, suspects_cli.suspects, fit, predict_cli.predict, evaluate, runs_cli.add, runs_cli.compare, deploy_cli.export,
    deploy_cli.push, serve_cli.serve, app_cli.app, explain_cli.explain, suggest_cli.suggest,
    scale_cli.tune, bench_cli.bench, bench_cli.plan, bench_cli.report, leaderboard_cli.leaderboard,
    leaderboard_cli.reproduce, known.methods, params, known.data,
    backbones_cli.backbones, backbones_cli.convert, cache, doctor,
)  # fmt: skip
register(app, VERBS)
