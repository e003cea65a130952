"""The verbs `leaderboard` and `reproduce`; every import that costs time waits for its verb."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rmadapter.console import Json


def leaderboard(
    results: Annotated[Path, typer.Argument(help="Folder that `bench` wrote, or a file of records.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the page.")],
    as_json: Json = False,
) -> None:
    """One page of everything that was measured, by track, beside what papers print."""
    from rmadapter.bench.leaderboard.page import write_leaderboard

    written = write_leaderboard(results, out)
    print(json.dumps(written) if as_json else f"leaderboard: {out / 'index.html'}")
