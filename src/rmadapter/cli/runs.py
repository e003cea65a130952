"""The verbs `add` and `compare`; slow imports wait until a verb runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rmadapter.data.formats.columns import SUFFIXES
from rmadapter.errors import UserError
from rmadapter.support.hub import run_folder
from rmadapter.support.terminal import (
    Crops,
    GroupColumn,
    ImageColumn,
    Its,
    Json,
    LabelColumn,
    Name,
    Outside,
    Quiet,
    SkipBad,
    SplitColumn,
    command,
    named_columns,
    note,
    table,
)


def add(
    run: Annotated[
        Path, typer.Argument(help="Folder written by `fit`, or hf:OWNER/NAME; it stays unchanged.")
    ],
    what: Annotated[
        list[str],
        typer.Argument(help="Names of new classes; or a folder or table of images of any classes."),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the new run.")],
    image_column: ImageColumn = "",
    label_column: LabelColumn = "",
    split_column: SplitColumn = "",
    group_column: GroupColumn = "",
    crops: Crops = False,
    old_data: Annotated[
        Path | None,
        typer.Option("--old-data", "--data", help="Where the run's own images are now."),
    ] = None,
    shots: Annotated[
        int | None, typer.Option(min=0, help="New images per class; by default as for the run.")
    ] = None,
    method: Name = "",
    backbone: Its = None,
    skip_bad: SkipBad = False,
    outside: Outside = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Extend a run: with classes by name alone, or trained again with more images."""
    from rmadapter.artifacts.checkpoint import load
    from rmadapter.artifacts.summary import show
    from rmadapter.data.formats.sources import is_source
    from rmadapter.runs.add import add_images, add_names

    run = run_folder(run)
    saved, data = load(run, backbone, method=method), Path(what[0])
    columns = named_columns(image_column, label_column, split_column, group_column)
    if len(what) == 1 and (data.is_dir() or is_source(data)):
        record = add_images(
            run, saved, data, out, old_data, shots, skip_bad, outside, command(), columns, crops
        )
        for text in record.notes:
            note(text)
        show(record, as_json, out)
        if not as_json:
            print(f"report: {out / 'report.html'}")
        return
    if lost := next((word for word in what if Path(word).exists() or _is_place(word)), None):
        raise UserError(
            f"{lost}: give one folder or table that exists, or names of classes that are no files here"
        )
    labels = add_names(saved, what, out)
    if as_json:
        print(json.dumps({"run": str(out), "labels": labels}))
    else:
        print(
            f"{out}: {len(labels)} classes, {len(what)} of them new and known by name alone: {', '.join(what)}"
        )


def _is_place(word: str) -> bool:
    """Whether a word is written as the path of a folder or a table, and not as the name of a class."""
    return word.startswith(("/", "./", "../", "~/")) or word.endswith(("/", *SUFFIXES))


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Folders written by `fit`; all are compared with the first."),
    ],
    data: Annotated[
        Path, typer.Option("--data", help="Folder or table of images that no run was trained on.")
    ],
    split: Annotated[str, typer.Option(help="Split of the data.")] = "test",
    crops: Crops = False,
    method: Name = "",
    backbone: Its = None,
    skip_bad: SkipBad = False,
    outside: Outside = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compare runs on one test set, image by image: accuracies, differences and whether they may be
    chance."""
    from rmadapter.artifacts.checkpoint import load
    from rmadapter.data.read import read_images
    from rmadapter.runs.compare import compare as compared
    from rmadapter.runs.fit import trained_on

    if len(runs) < 2:
        raise UserError("only one run: give at least two to compare")
    splits = read_images(data, skip_bad=skip_bad, outside=outside, crops=crops)
    if split not in splits:
        raise UserError(f"the data has no {split} split: give --split one of {', '.join(splits)}")
    images = splits[split]
    if images.ignored:
        note(images.ignored)
    for run in runs:
        if known := trained_on(run_folder(run), splits, split, images):
            note(
                f"{run}: {known} of these {len(images)} images were trained on, so its accuracy says little"
            )
    lines = compared([(run, load(run, backbone, method=method)) for run in runs], images)
    if as_json:
        facts = {
            "images": len(images),
            "classes": len(images.classes),
            "runs": [line.json() for line in lines],
        }
        print(json.dumps(facts))
        return
    table(
        ["run", "method", "accuracy in %", "difference", "95 % interval", "p"],
        [line.row() for line in lines],
    )
    print(f"{len(images):,} images of {len(images.classes):,} classes; p by McNemar's exact test")
