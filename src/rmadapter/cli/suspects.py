"""The verb `suspects`; slow imports wait until it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rmadapter.errors import UserError
from rmadapter.support.files import check_new
from rmadapter.support.terminal import (
    GroupColumn,
    ImageColumn,
    Json,
    LabelColumn,
    Outside,
    Quiet,
    Sets,
    SplitColumn,
    note,
    table,
)

if TYPE_CHECKING:
    from rmadapter.curate.suspects import Suspects

FIRST = 20  # suspects in a table
METHOD = "linear-probe"


def suspects(
    data: Annotated[
        Path, typer.Argument(help="Folder of class folders, or table of path,label[,split].")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder or .csv file for the list and its page.")
    ] = None,
    apply: Annotated[
        Path | None,
        typer.Option(
            "--apply",
            help="suspects.csv with your decisions: write a cleaned copy or list to --out.",
        ),
    ] = None,
    method: Annotated[
        str, typer.Option("--method", help="What judges the labels: one of `rmadapter methods`.")
    ] = METHOD,
    backbone: Annotated[
        str | None, typer.Option(help="As for `fit`; pocket is the default.")
    ] = None,
    image_column: ImageColumn = "",
    label_column: LabelColumn = "",
    split_column: SplitColumn = "",
    group_column: GroupColumn = "",
    sets: Sets = None,
    outside: Outside = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Find training images with a wrong label, copies, and broken or odd images; or write a data
    set without them."""
    from rmadapter.curate.apply import apply_decisions, cleaned_name
    from rmadapter.curate.suspects import find_suspects
    from rmadapter.settings import parse_overrides

    columns = {
        "image": image_column,
        "label": label_column,
        "split": split_column,
        "group": group_column,
    }
    if apply:
        if out is None:
            raise UserError("--apply: name the cleaned copy with --out")
        if method != METHOD or backbone or sets:
            raise UserError("--apply: judges no label: leave out --method, --backbone and --set")
        _tell_cleaned(
            out, vars(apply_decisions(data, apply, out, columns=columns, outside=outside)), as_json
        )
        return
    files = _files(out, data) if out else None
    settings = {**({"backbone": backbone} if backbone else {}), **parse_overrides(sets or [])}
    found = find_suspects(
        data, method, settings, columns=columns, outside=outside, progress=not quiet
    )
    if not found.judged:
        note("no label was judged: judging takes two images per class that are not copies")
    if files:
        more = [
            word for kind, name in columns.items() if name for word in (f"--{kind}-column", name)
        ]
        more += ["--allow-outside"] * outside
        _write(
            found,
            files,
            data,
            method,
            as_json,
            [*more, "--out", cleaned_name(data, columns, outside)],
        )
    else:
        _show(found, as_json)


def _files(out: Path, data: Path) -> tuple[Path, Path]:
    """Paths of the list and the page. Raises UserError if one exists, as it may hold decisions, and
    for a folder that would be taken for a class."""
    listed = out if out.suffix.lower() == ".csv" else out / "suspects.csv"
    if data.is_dir() and data.resolve() in listed.resolve().parent.parents:
        raise UserError(f"{out}: lies in {data}, whose folders are classes; choose another --out")
    files = listed, listed.with_suffix(".html")
    check_new(*files)
    return files


def _write(
    found: Suspects,
    files: tuple[Path, Path],
    data: Path,
    method: str,
    as_json: bool,
    more: list[str],
) -> None:
    """more: options of the command that applies the list."""
    from rmadapter.curate.suspects import write_csv, write_page

    write_page(files[1], found, str(data), method, files[0], more)
    write_csv(files[0], found)
    facts = {
        "suspects": str(files[0]),
        "page": str(files[1]),
        "images": found.total,
        "found": found.counts(),
    }
    if as_json:
        print(json.dumps(facts))
        return
    print(f"{len(found.suspects):,} of {found.total:,} images: {_counted(found)}")
    print(f"suspects: {files[0]}\npage: {files[1]}")


def _counted(found: Suspects) -> str:
    return (
        ", ".join(f"{kind} {count}" for kind, count in found.counts().items())
        or "nothing to look at"
    )


def _show(found: Suspects, as_json: bool) -> None:
    """Print suspects: all of them as JSON, or the first ones in a table."""
    if as_json:
        print(json.dumps([one.json() for one in found.suspects]))
        return
    rows = []
    for one in found.suspects[:FIRST]:
        sure = "" if one.confidence is None else f"{100 * one.confidence:.0f} %"
        suggested = "" if one.suggested is None else str(one.suggested)
        rows.append([one.image, str(one.given), suggested, sure, "; ".join(one.reasons)])
    if rows:
        table(["image", "given", "suggested", "confidence", "reasons"], rows)
    print(f"{len(found.suspects):,} of {found.total:,} images: {_counted(found)}")
    if found.suspects:
        print("--out FOLDER writes all of them to suspects.csv, and a page with the images")


def _tell_cleaned(out: Path, facts: dict[str, Any], as_json: bool) -> None:
    for label in facts["without"]:
        note(f"class {label!r} has no training image left")
    if as_json:
        print(json.dumps({"cleaned": str(out), **facts}))
        return
    print(
        f"{out}: {facts['images']:,} images, {facts['relabelled']:,} with another label; {facts['dropped']:,} left out"
    )
