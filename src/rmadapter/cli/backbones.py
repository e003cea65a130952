"""The verbs `backbones` and `convert`; slow imports happen inside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rmadapter.errors import UserError
from rmadapter.support.terminal import Json, note, table


def backbones(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[get NAME]", help="Download one now.")
    ] = None,
    speed: Annotated[
        bool,
        typer.Option("--speed", help="Measure the speed of the listed ones; takes about a minute."),
    ] = False,
    as_json: Json = False,
) -> None:
    """List the backbones on this disk, and what others would download; most open_clip models can be
    named."""
    from rmadapter.backbones import load_backbone
    from rmadapter.backbones.choice import KNOWN, images_per_second
    from rmadapter.backbones.listing import listed
    from rmadapter.backbones.pocket import POCKET
    from rmadapter.support.machine import find_device

    if words:
        if len(words) != 2 or words[0] != "get":
            raise UserError(
                f"{' '.join(words)[:100]!r}: write `rmadapter backbones get NAME`, as in get pocket"
            )
        got = load_backbone(words[1])
        print(
            json.dumps({"name": got.name, "digest": got.digest})
            if as_json
            else f"{got.name} is ready"
        )
        return
    found = listed()
    for one in found if speed else ():
        if one["name"] in KNOWN or (one["name"] == POCKET and one["mb"] is not None):
            one["images_per_second"] = round(images_per_second(one["name"], find_device("auto")), 1)
    if as_json:
        print(json.dumps(found))
        return
    rows = [
        [one["name"], one["state"], "" if one["mb"] is None else f"{one['mb']} MB", one["about"]]
        for one in found
    ]
    if speed:
        rows = [
            [*row, str(one.get("images_per_second", ""))]
            for row, one in zip(rows, found, strict=True)
        ]
    table(["name", "state", "on disk", "about", *(["images/s here"] if speed else [])], rows)


def convert(
    file: Annotated[Path, typer.Argument(help="Pickled checkpoint: .pt, .bin, .pth or .ckpt.")],
    architecture: Annotated[
        str, typer.Option(help="open_clip architecture, such as ViT-B-16 or ViT-B-16-quickgelu.")
    ],
    out: Annotated[Path, typer.Option("--out", help="New folder, to open with --backbone FOLDER.")],
    digest: Annotated[str, typer.Option(help="SHA-256 that the file must have, in hex.")] = "",
    as_json: Json = False,
) -> None:
    """Convert weights in a pickle to a folder of safetensors, without running what the pickle asks
    for."""
    from rmadapter.backbones.convert import convert as convert_file

    done = convert_file(file, architecture, out, digest)
    if as_json:
        print(json.dumps(done))
        return
    if done["left_out"]:
        note(f"left out, not weights: {', '.join(done['left_out'][:5])}")
    print(f"{out} is ready: --backbone {out}; made from the file with SHA-256 {done['sha256']}")
