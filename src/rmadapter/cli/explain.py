"""The verb `explain`; slow imports wait until it runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from rmadapter.cli.options import Json, Outside, Quiet, Run, RunData, RunOptions, SkipBad
from rmadapter.cli.predict import Error, ImageOptions, TurnAway
from rmadapter.support.files import check_new
from rmadapter.support.terminal import table

PAGE = "explain.html"


def explain(
    run: Run,
    images: Annotated[
        list[str], typer.Argument(help="Files, folders, patterns, tables, archives, COCO, YOLO ...")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help=f"Folder for {PAGE}, which shows the images.")
    ] = None,
    run_data: RunData = None,
    error: Error = 0.0,
    turn_away: TurnAway = 0.0,
    reading: ImageOptions = ImageOptions(),
    outside: Outside = False,
    options: RunOptions = RunOptions(),
    skip_bad: SkipBad = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Explain answers by the nearest training images.

    The two best classes stand beside them.
    """
    from rmadapter.data.formats.registry import check_words

    options.check(run)
    page = out / PAGE if out else None
    if page:
        check_new(page)
    check_words([*images, *([str(run_data)] if run_data else [])])
    inputs = reading.find(images, outside)
    from rmadapter.predict.explain import explain_images, write_page

    explained = explain_images(
        run,
        inputs.files,
        data=run_data,
        backbone=options.backbone,
        method=options.code,
        device=options.device or "auto",
        skip_bad=skip_bad,
        error=error,
        turn_away=turn_away,
    )
    if page:
        write_page(page, explained, run.resolve().name)
    if as_json:
        listed = [one.json() for one in explained]
        print(json.dumps({"page": str(page), "images": listed} if page else listed))
        return
    rows, decides = [], bool(error or turn_away)
    untouched = any(one.zero_shot for one in explained)
    for one in explained:
        near = "\n".join(f"{n.image} ({n.label}, {n.similarity:.2f})" for n in one.neighbours)
        parts = [one.decision, one.answer.parent, ", ".join(one.labels)]
        decision = [": ".join(part for part in parts if part)]
        cells = [
            _shares(one.best),
            *decision * decides,
            *[_shares(one.zero_shot)] * untouched,
            near,
        ]
        rows.append([str(one.image), *cells])
    decided = ["decision"] * decides
    named = ["zero-shot"] * untouched
    table(["image", "adapted", *decided, *named, "nearest training images"], rows)
    if page:
        print(f"page: {page}")


def _shares(best: Sequence[tuple[object, float]]) -> str:
    return ", ".join(f"{label} {100 * share:.0f} %" for label, share in best)
