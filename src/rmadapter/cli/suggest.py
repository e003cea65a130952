"""The verb `suggest`; slow imports happen inside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rmadapter.errors import UserError
from rmadapter.support.files import check_new
from rmadapter.support.terminal import ImageColumn, Json, Outside, Quiet, SkipBad, note, table

if TYPE_CHECKING:
    from rmadapter.curate.suggest import Suggested

FIRST = 20  # images in a table


def suggest(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN POOL...",
            help="Folder written by `fit`, then files, folders, tables, archives, COCO ...",
        ),
    ],
    n: Annotated[int, typer.Option("--n", min=1, help="Number of images to suggest.")] = 50,
    start: Annotated[
        bool, typer.Option("--start", help="Without a run: suggest the images to label first.")
    ] = False,
    names: Annotated[
        str, typer.Option("--names", help='With --start: the classes, such as "cat,dog,zebra".')
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option("--out", help=".csv file for the list; its page is written beside it."),
    ] = None,
    rule: Annotated[
        str,
        typer.Option(
            "--rule",
            help="margin, entropy, coverage, typicality, mix or random; balanced with --start.",
        ),
    ] = "",
    seed: Annotated[int, typer.Option(min=0, help="Seed for everything random.")] = 1,
    backbone: Annotated[
        str | None, typer.Option(help="With --start any; else the run's, if a folder.")
    ] = None,
    image_column: ImageColumn = "",
    skip_bad: SkipBad = False,
    outside: Outside = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Suggest which unlabelled images to label next, or first."""
    from rmadapter.curate.suggest import first_images, suggest_images

    files = _files(out) if out else None
    common: Any = {"skip_bad": skip_bad, "column": image_column, "outside": outside}
    if start:
        classes = [name.strip() for name in names.split(",") if name.strip()]
        found = first_images(
            words, n, names=classes, rule=rule, seed=seed, backbone=backbone or "pocket", **common
        )
    else:
        if names:
            raise UserError("--names needs --start: a run has its own classes")
        if len(words) < 2:
            raise UserError("name a run and the images to choose from, or give --start")
        run, *pool = words
        found = suggest_images(run, pool, n, rule=rule, seed=seed, backbone=backbone, **common)
    if len(found.suggestions) < n:
        note(f"{len(found.suggestions)} images instead of {n}: the pool has no more new ones")
    _tell(found, files, " ".join(words if start else words[1:]), as_json)


def _files(out: Path) -> tuple[Path, Path]:
    """Paths of the list and the page. Raises UserError if one exists, or if `out` is not a .csv."""
    if out.suffix.lower() != ".csv":
        raise UserError(f"{out}: give --out a name that ends in .csv")
    files = out, out.with_suffix(".html")
    check_new(*files)
    return files


def _tell(found: Suggested, files: tuple[Path, Path] | None, pool: str, as_json: bool) -> None:
    from rmadapter.curate.suggest_page import write_csv, write_page

    if files:
        write_page(files[1], found, pool, files[0])
        write_csv(files[0], found)
    if as_json:
        facts = {**vars(found), "suggestions": [one.json() for one in found.suggestions]}
        where = {"list": str(files[0]), "page": str(files[1])} if files else {}
        print(json.dumps({**facts, **where}))
        return
    if not files:
        rows = []
        for one in found.suggestions[:FIRST]:
            best = ", ".join(f"{label} {100 * share:.0f} %" for label, share in one.best)
            rows.append(
                [
                    str(one.rank),
                    str(one.image),
                    "" if found.rule == "random" else f"{one.score:.3f}",
                    best,
                ]
            )
        table(["rank", "image", "score", "looks like"], rows)
    left = f", {found.known:,} known already" * bool(
        found.known
    ) + f", {found.copies:,} copies" * bool(found.copies)
    print(f"{len(found.suggestions):,} of {found.pool:,} images by the rule {found.rule}{left}")
    if files:
        print(f"list: {files[0]}\npage: {files[1]}")
    elif len(found.suggestions) > FIRST:
        print("--out suggest.csv writes all of them, and a page with the images")
