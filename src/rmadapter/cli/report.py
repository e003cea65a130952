"""The verb `report`; slow imports wait until it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rmadapter.cli.options import Json, Tolerance
from rmadapter.errors import UserError
from rmadapter.support.terminal import table


def report(
    results: Annotated[
        Path, typer.Argument(help="Folder written by `bench`, file of records, or run of `fit`.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Folder for the report; a run's report goes into its own."
        ),
    ] = None,
    against: Annotated[
        bool,
        typer.Option(
            "--paper", help="Compare with the paper's figures; exit code 1 if one is off."
        ),
    ] = False,
    tolerance: Tolerance = None,
    backbones: Annotated[
        bool,
        typer.Option("--backbones", help="Add tables of methods by backbones, over all data sets."),
    ] = False,
    reference: Annotated[
        str,
        typer.Option(
            help="Method that the others are compared with; by default RMAdapter, else the first."
        ),
    ] = "",
    as_json: Json = False,
) -> None:
    """Write tables and figures of a bench; or a run's page again."""
    if tolerance is not None and not against:
        raise UserError("--tolerance: is for --paper, which compares with the paper's figures")
    from rmadapter.artifacts.run_folder import RunFolder

    if RunFolder(results).model.is_file():
        _rewrite_page(results, out, against or backbones or bool(reference), as_json)
        return
    if out is None:
        raise UserError("--out: give a folder for the report")
    from rmadapter.bench.report.printed import printed_tables
    from rmadapter.bench.report.read import read_records
    from rmadapter.bench.report.write import write_reports

    written = write_reports(results, out, backbones, reference)
    paper = printed_tables()
    within = paper.tolerance if tolerance is None else tolerance
    judged = paper.check(read_records(results).finished, within) if against else []
    if as_json:
        print(json.dumps(judged if against else written))
    elif against:
        names = ["table", "row", "figure", "paper", "ours", "difference", "within", "status"]
        table(names, [[_cell(value) for value in row.values()] for row in judged])
        measured = [row for row in judged if row["within"] is not None]
        near = sum(row["within"] is True for row in measured)
        counts = f"{len(measured)} of {len(judged)} printed figures were measured"
        print(f"{counts}; {near} are within {within:g} points")
    else:
        print(f"report: {out / 'report.html'}")
    if any(row["within"] is False for row in judged):
        raise typer.Exit(1)


def _cell(value: object) -> str:
    words = {None: "-", True: "yes", False: "NO"}
    if isinstance(value, float):
        return f"{value:.2f}"
    return words[value] if value is None or isinstance(value, bool) else str(value)


def _rewrite_page(run: Path, out: Path | None, of_bench: bool, as_json: bool) -> None:
    from rmadapter.artifacts.page import rewrite_page

    if out is not None or of_bench:
        raise UserError(
            f"{run}: a run's report is written into its own folder: leave out --out, --paper, "
            "--backbones and --reference"
        )
    page = rewrite_page(run)
    print(json.dumps({"report": str(page)}) if as_json else f"report: {page}")
