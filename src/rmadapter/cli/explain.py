"""The verb `explain`; slow imports happen inside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rmadapter.support.files import check_new
from rmadapter.support.terminal import (
    Crops,
    ImageColumn,
    Its,
    Json,
    Name,
    Outside,
    Quiet,
    SkipBad,
    note,
    table,
)

PAGE = "explain.html"


def explain(
    run: Annotated[Path, typer.Argument(help="Folder written by `fit`, or hf:OWNER/NAME.")],
    images: Annotated[
        list[str], typer.Argument(help="Files, folders, patterns, tables, archives, COCO, YOLO ...")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help=f"Folder for {PAGE}, which shows the images.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Where the run's training images are now.")
    ] = None,
    image_column: ImageColumn = "",
    crops: Crops = False,
    outside: Outside = False,
    method: Name = "",
    backbone: Its = None,
    skip_bad: SkipBad = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Explain a run's answers: the two best classes and the nearest training images."""
    from rmadapter.data.inputs import find_images
    from rmadapter.predict.explain import explain_images, write_page

    page = out / PAGE if out else None
    if page:
        check_new(page)
    inputs = find_images(images, image_column, outside, crops=crops)
    if inputs.note:
        note(inputs.note)
    found = explain_images(
        run, inputs.files, data=data, backbone=backbone, method=method, skip_bad=skip_bad
    )
    if page:
        write_page(page, found, run.resolve().name)
    if as_json:
        listed = [one.json() for one in found]
        print(json.dumps({"page": str(page), "images": listed} if page else listed))
        return
    rows = []
    for one in found:
        shares = [
            ", ".join(f"{label} {100 * share:.0f} %" for label, share in x)
            for x in (one.best, one.zero_shot)
        ]
        near = "; ".join(f"{n.image} ({n.label}, {n.similarity:.2f})" for n in one.neighbours)
        rows.append([str(one.image), *shares, near])
    table(["image", "adapted", "zero-shot", "nearest training images"], rows)
    if page:
        print(f"page: {page}")
