"""The commands `leaderboard` and `reproduce`. They import slow modules only when they run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from rmadapter.errors import UserError
from rmadapter.support.terminal import Json, Quiet, note, table


def leaderboard(
    results: Annotated[
        Path, typer.Argument(help="Folder written by `bench`, or a file of records.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the page.")],
    as_json: Json = False,
) -> None:
    """Write one page of everything measured, by track, beside what papers print."""
    from rmadapter.bench.leaderboard.page import write_leaderboard

    written = write_leaderboard(results, out)
    print(json.dumps(written) if as_json else f"leaderboard: {out / 'index.html'}")


def reproduce(
    root: Annotated[Path, typer.Option(help="Folder of the data sets.")],
    out: Annotated[
        Path, typer.Option("--out", help="Folder for results; repeat the command to resume.")
    ],
    tables: Annotated[str, typer.Option(help="Tables of the paper, by number.")] = "1,2,3,4,5,6",
    methods: Annotated[str, typer.Option(help="Some of the tables' methods; all by default.")] = "",
    seeds: Annotated[
        str, typer.Option(help="Seeds of draw, initialisation and batches.")
    ] = "1,2,3",
    backbone: Annotated[
        str, typer.Option(help="Backbone; the paper's by default.")
    ] = "ViT-B-16/openai",
    templates: Annotated[
        str,
        typer.Option(help='"dataset" for each data set\'s own, or one prompt template with {}.'),
    ] = "",
    per_set: Annotated[
        bool,
        typer.Option("--per-set", help="Also run with the authors' constants for each data set."),
    ] = False,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="[METHOD.]FIELD=VALUE", help="As for `bench`."),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes, as for `bench`.")] = 1,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show what would run, without running it.")
    ] = False,
    tolerance: Annotated[float, typer.Option(help="Points by which a figure may be off.")] = 1.0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run the paper's tables and judge each printed figure: within, off by, or not run; exit code 1
    if one is off."""
    from rmadapter.bench import reproduce as work
    from rmadapter.cli.bench import _list, _numbers, common_and_own
    from rmadapter.runs.request import machine_of
    from rmadapter.settings import configured, parse_overrides
    from rmadapter.task import Task, check_views

    given = {
        "backbone": backbone,
        **({"templates": templates} if templates not in ("", "dataset") else {}),
    }
    task, machine, own = common_and_own(given | parse_overrides(sets or []))
    wish = work.Wish(
        root, out, _list(tables), _list(methods), _numbers("seeds", seeds), per_set,
        templates == "dataset", check_views(configured(Task(), task)), machine_of(machine), own,
    )  # fmt: skip
    absent = work.missing(wish)
    for key, why in absent.items():
        note(
            f"{key} is incomplete ({why}); `rmadapter data {key} --root {root}` says how to get it"
        )
    made = work.plans(wish, absent)
    if plan:
        rows = [
            {"table": t, "data set": d, "runs": n, "finished": f}
            for t, d, n, f in work.outline(made)
        ]
        if as_json:
            print(json.dumps(rows))
        else:
            table(
                ["table", "data set", "runs", "finished"],
                [[str(value) for value in row.values()] for row in rows],
            )
        return
    records = work.run(made, jobs)
    judged = work.verdicts(wish, made, tolerance)
    _tell(judged, as_json, out / work.VERDICTS)
    if failed := [record for record in records if record.status == "failed"]:
        told = f"{len(failed)} of {len(records)} runs failed ({failed[0].reason})"
        raise UserError(f"{told}; the same command retries them")
    if any(row["within"] is False for row in judged):
        raise typer.Exit(1)


def _tell(judged: Sequence[dict[str, Any]], as_json: bool, where: Path) -> None:
    if as_json:
        print(json.dumps(judged))
        return
    kinds = ("within", "off", "some seeds", "not run")
    counts: dict[str, Counter[str]] = {}
    for row in judged:
        verdict = row["verdict"]
        kind = "off" if verdict.startswith("off") else verdict if verdict in kinds else "some seeds"
        counts.setdefault(row["table"], Counter())[kind] += 1
    table(
        ["table", *kinds],
        [[name, *(str(found[kind]) for kind in kinds)] for name, found in counts.items()],
    )
    print(f"{len(judged)} verdicts, one on each printed figure for each of our entries: {where}")
