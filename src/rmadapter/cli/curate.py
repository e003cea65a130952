"""The verb `suspects`, which looks at images before training; slow imports wait until it runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rmadapter.cli.options import (
    Backbone,
    Columns,
    Device,
    Json,
    Outside,
    Quiet,
    Sets,
)
from rmadapter.errors import UserError
from rmadapter.support.files import check_new, user_path
from rmadapter.support.terminal import note, table

if TYPE_CHECKING:
    from rmadapter.curate.suspects import Suspects

MAX_ROWS = 20  # images in a table
Judge = Annotated[
    str,
    typer.Option(
        "--method",
        help="Name from `rmadapter methods`, package:Class or file.py:Class; it judges labels, by "
        "default block-ridge.",
    ),
]


def suspects(
    data: Annotated[
        Path, typer.Argument(help="Folder of class folders, or table of path,label[,split].")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder or .csv file for the list and its page."),
    ] = None,
    apply: Annotated[
        Path | None,
        typer.Option(
            "--apply",
            help="suspects.csv with your decisions: write a cleaned copy or list to --out.",
        ),
    ] = None,
    method: Judge = "",
    backbone: Backbone = None,
    device: Device = None,
    table_columns: Columns = Columns(),
    sets: Sets = None,
    outside: Outside = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Find wrong labels, copies, and broken or odd images.

    With --apply: write a data set without them.
    """
    from rmadapter.cli.checks import check_backbones
    from rmadapter.data.formats.registry import locate
    from rmadapter.settings import parse_overrides

    columns = table_columns.named()
    locate(data, columns).check()
    if apply:
        if method or backbone or sets:
            raise UserError("--apply trains nothing: remove --method, --backbone and --set")
        _apply(data, apply, out, columns, outside, as_json)
        return
    files = _suspects_files(out, data) if out else None
    check_backbones(backbone, sets)
    from rmadapter.backbones.packaged import POCKET_3
    from rmadapter.cli.checks import note_caveats
    from rmadapter.curate.apply import cleaned_name
    from rmadapter.curate.suspects import find_suspects
    from rmadapter.methods import DEFAULT

    method = method or DEFAULT
    flags = {"backbone": backbone, "device": device}
    settings = {name: value for name, value in flags.items() if value} | parse_overrides(sets or [])
    result = find_suspects(
        data, method, settings, columns=columns, outside=outside, progress=not quiet
    )
    note_caveats(str(settings.get("backbone", POCKET_3)))
    if not result.judged:
        note("no label was judged: judging takes two images per class that are not copies")
    if files:
        more = ["--allow-outside"] * outside + ["--out", cleaned_name(data, columns, outside)]
        for kind, name in reversed(columns.items()):
            more = [f"--{kind}-column", name, *more]
        _write_suspects(result, files, data, method, as_json, more)
    else:
        _show_suspects(result, as_json)


def _apply(
    data: Path,
    decisions: Path,
    out: Path | None,
    columns: Mapping[str, str],
    outside: bool,
    as_json: bool,
) -> None:
    """Write a copy of the data, cleaned as a file of decisions says, and print what changed."""
    if out is None:
        raise UserError("--apply: name the cleaned copy with --out")
    check_new(out)
    if not user_path(decisions).is_file():
        raise UserError(f"--apply {decisions}: no such file; `rmadapter suspects --out` writes one")
    from rmadapter.curate.apply import apply_decisions

    cleaned = apply_decisions(data, decisions, out, columns=columns, outside=outside)
    for label in cleaned.without:
        note(f"class {label!r} has no training image left")
    if as_json:
        print(json.dumps({"cleaned": str(out), **vars(cleaned)}))
        return
    counts = f"{cleaned.relabelled:,} with another label; {cleaned.dropped:,} left out"
    print(f"{out}: {cleaned.images:,} images, {counts}")


def _suspects_files(out: Path, data: Path) -> tuple[Path, Path]:
    """Return the paths of the list and its page. Raises UserError if one exists, because it may
    hold decisions, and for a folder that would be read as a class."""
    listed = out if out.suffix.lower() == ".csv" else out / "suspects.csv"
    if data.is_dir() and data.resolve() in listed.resolve().parent.parents:
        raise UserError(f"{out}: lies in {data}, whose folders are classes; choose another --out")
    files = listed, listed.with_suffix(".html")
    check_new(*files)
    return files


def _write_suspects(
    result: Suspects,
    files: tuple[Path, Path],
    data: Path,
    method: str,
    as_json: bool,
    more: list[str],
) -> None:
    """Write the list and its page, which names the command that applies the list, with the options
    `more`."""
    from rmadapter.curate.suspects import write_csv, write_page

    write_page(files[1], result, str(data), method, files[0], more)
    write_csv(files[0], result)
    facts = {
        "suspects": str(files[0]),
        "page": str(files[1]),
        "images": result.total,
        "found": result.counts(),
    }
    if as_json:
        print(json.dumps(facts))
        return
    _print_counts(result)
    print(f"suspects: {files[0]}\npage: {files[1]}")


def _print_counts(result: Suspects) -> None:
    """Print how many images there are to look at, and how far to trust alarms about labels."""
    from rmadapter.curate.suspects import RIGHT_ALARMS, WRONG

    counts = result.counts()
    listed = ", ".join(f"{kind} {count}" for kind, count in counts.items())
    total = f"{len(result.suspects):,} of {result.total:,} images"
    print(f"{total}: {listed or 'nothing to look at'}")
    if WRONG in counts:
        print(f"{WRONG}: {RIGHT_ALARMS}")


def _show_suspects(result: Suspects, as_json: bool) -> None:
    """Print suspects: all of them as JSON, or the first ones in a table."""
    if as_json:
        print(json.dumps([one.json() for one in result.suspects]))
        return
    rows = []
    for one in result.suspects[:MAX_ROWS]:
        sure = "" if one.confidence is None else f"{100 * one.confidence:.0f} %"
        suggested = "" if one.suggested is None else str(one.suggested)
        rows.append([one.image, str(one.given), suggested, sure, "; ".join(one.reasons)])
    if rows:
        table(["image", "given", "suggested", "confidence", "reasons"], rows)
    _print_counts(result)
    if result.suspects:
        print("--out FOLDER writes all of them to suspects.csv, and a page with the images")
