"""The command `tune`; slow imports are deferred until it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rmadapter.bench.ray.cluster import Address, Engine, is_ray
from rmadapter.support.terminal import (
    Config,
    Crops,
    Json,
    Name,
    Outside,
    Quiet,
    Sets,
    SkipBad,
    note,
    table,
)

if TYPE_CHECKING:
    from rmadapter.bench.tune import Tuned

SHOWN = 10  # trials in the table


def tune(
    data: Annotated[
        Path, typer.Argument(help="Folder of class folders, table, or a format in docs/data.md.")
    ],
    out: Annotated[
        Path, typer.Option("--out", help="Folder for results; repeat the command to resume.")
    ],
    method: Name = "",
    trials: Annotated[
        int, typer.Option(min=2, help="Number of settings to try, the given ones first.")
    ] = 20,
    search: Annotated[
        list[str] | None,
        typer.Option(
            "--search",
            metavar="FIELD[=LOW..HIGH]",
            help="What to try; also FIELD=A,B,C. May be repeated.",
        ),
    ] = None,
    folds: Annotated[
        int, typer.Option(min=2, help="Folds of the shots, to judge each setting by.")
    ] = 4,
    backbone: Annotated[
        str | None, typer.Option(help="pocket (the default), ViT-B-16/openai, ... or a folder.")
    ] = None,
    shots: Annotated[
        int | None, typer.Option(help="Training images per class; 16 by default, 0 takes all.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of draw, folds, training and proposals; 1 by default.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="With --engine ray: number of workers.")] = 1,
    engine: Engine = "local",
    address: Address = "",
    crops: Crops = False,
    config: Config = None,
    sets: Sets = None,
    skip_bad: SkipBad = False,
    outside: Outside = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Search for settings that do better than the published ones, on folds of the training images."""
    from rmadapter.bench.search_space import space
    from rmadapter.bench.tune import Search
    from rmadapter.bench.tune import tune as run_tune
    from rmadapter.methods import DEFAULT
    from rmadapter.runs.request import Request, read_config
    from rmadapter.settings import parse_overrides

    cluster = address if is_ray(engine, address, jobs) else None
    named, values = read_config(config, (method,))
    flags = {"backbone": backbone, "shots": shots, "seed": seed}
    values |= {flag: value for flag, value in flags.items() if value is not None} | parse_overrides(
        sets or []
    )
    request = Request.make(values, method or named or DEFAULT, data=str(data))
    ranges = space(request.method, request.name, search or ())
    read = {"skip_bad": skip_bad, "outside": outside, "crops": crops}
    found = run_tune(Search(request, values, folds, read), ranges, trials, out, jobs, cluster)
    _tell(found, [*ranges], out, as_json)


def _tell(found: Tuned, names: list[str], out: Path, as_json: bool) -> None:
    from rmadapter.bench.tune import BEST, FILE, PICTURE

    best, gain = found.best, found.gain
    places = {"config": str(out / BEST), "picture": str(out / PICTURE), "trials": str(out / FILE)}
    for trial in found.trials:
        if trial.reason:
            note(f"trial {trial.number}: {trial.reason}")
    if as_json:
        facts = {"number": best.number, "params": best.params, "accuracy": best.accuracy}
        print(
            json.dumps(
                {"best": facts, "gain": gain and gain[0], "error": gain and gain[1], **places}
            )
        )
        return
    ordered = sorted(
        (trial for trial in found.trials if trial.right), key=lambda trial: -(trial.accuracy or 0)
    )
    rows = [
        [f"{trial.number}" if trial.number else "0 (as given)", *(_cell(trial.params.get(name)) for name in names),
         f"{trial.accuracy:.1f}", f"{trial.seconds:.0f}"]
        for trial in ordered[:SHOWN]
    ]  # fmt: skip
    table(["trial", *names, "accuracy in %", "seconds"], rows)
    print(f"judged by {len(best.right):,} training images in folds; no model read a test image")
    if gain:
        print(f"the best is {gain[0]:.1f} ± {gain[1]:.1f} points ahead of the given settings")
        if gain[0] <= 2 * gain[1]:
            note(
                "that is within two standard errors, so it may be chance alone: no reason to leave the given settings"
            )
    print("\n".join(f"{what}: {place}" for what, place in places.items()))


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
