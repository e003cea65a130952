"""The commands `export` and `push`; slow imports wait until a command runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rmadapter.support.files import user_path
from rmadapter.support.hub import is_remote, run_folder
from rmadapter.support.terminal import Its, Json, Name, Outside, Quiet, command, table

SEARCHED = [
    "weights in 8 bits",
    "MB",
    "same %",
    "differs",
    "images/s",
    "taken",
]  # by `int8.search`, in 80 columns


def export(
    run: Annotated[Path, typer.Argument(help="Folder written by `fit`, or hf:OWNER/NAME.")],
    to: Annotated[
        str, typer.Option("--to", help="onnx, openvino, torch, litert (phones) or web (a page).")
    ] = "onnx",
    precision: Annotated[
        str, typer.Option(help="fp32, fp16, int8 (onnx, openvino) or bf16 (openvino).")
    ] = "fp32",
    out: Annotated[
        Path | None, typer.Option("--out", help="New folder; by default RUN-onnx and so on.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Images to compare on; by default the run's own.")
    ] = None,
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="Output image features, too.")
    ] = False,
    text: Annotated[
        bool,
        typer.Option("--text", help="Allow classes to be added by name; outputs features, too."),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Keep a model that differs by more than allowed.")
    ] = False,
    method: Name = "",
    backbone: Its = None,
    outside: Outside = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Export a run to a folder that answers as the run does, without this package; compared before
    it is written."""
    from rmadapter.artifacts.checkpoint import load
    from rmadapter.deploy.export import folder as exporting
    from rmadapter.deploy.export.parity import HEADER, Parity

    folder = run_folder(run)
    where = folder.resolve() if folder.name in ("", "..") else folder  # "." has no name of its own
    out = out or (
        Path(f"{run.name}-{to}") if is_remote(run) else where.with_name(f"{where.name}-{to}")
    )
    exporting.check_wishes(out, to, precision, text, embeddings)
    saved = load(folder, backbone, method=method, device="cpu")
    facts = exporting.export(
        folder, saved, out, precision, data,
        to=to, outside=outside, force=force, command=command(), embeddings=embeddings, text=text,
    )  # fmt: skip
    if as_json:
        print(json.dumps({"export": str(out), **facts}))
        return
    if facts["search"]:
        table(
            SEARCHED,
            [[*map(str, list(row.values())[:-1]), "*" * row["chosen"]] for row in facts["search"]],
        )
    table(HEADER, [Parity(**facts["parity"]).row()])
    for what, title in (
        ("features", "features differ"),
        ("added", "with a class added by name, probabilities differ"),
    ):
        if facts["parity"][what] is not None:
            print(f"{title} by at most {facts['parity'][what]:.1e}")
    print(f"export: {out}, {facts['bytes'] / 1e6:.1f} MB in {precision}")


def push(
    run: Annotated[Path, typer.Argument(help="Folder written by `fit`.")],
    repository: Annotated[
        str,
        typer.Argument(
            metavar="OWNER/NAME",
            help="Repository on the Hugging Face hub: new, or one that holds a run.",
        ),
    ],
    private: Annotated[
        bool, typer.Option("--private", help="Make the repository private.")
    ] = False,
    to: Annotated[
        Path | None,
        typer.Option("--to", help="New folder for what would be sent; nothing is sent."),
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Store weights in 16 bits.")] = False,
    examples: Annotated[
        bool,
        typer.Option(
            "--examples",
            help="Include features of the training images, for `predict --unfamiliar`.",
        ),
    ] = False,
    licence: Annotated[
        str, typer.Option(help="Licence of what was trained, as the hub calls it: apache-2.0.")
    ] = "unknown",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Push a run to the Hugging Face hub, with a model card and no file names; `hf:OWNER/NAME` then
    works as a run."""
    from rmadapter.deploy.hub.push import Wishes
    from rmadapter.deploy.hub.push import push as pushed

    facts = pushed(
        user_path(run), repository, Wishes(half, examples, licence), private=private, to=to
    )
    if as_json:
        print(json.dumps(facts))
        return
    table(["file", "bytes"], [[name, f"{size:,}"] for name, size in facts["files"].items()])
    if to:
        print(f"folder: {to}; nothing was sent")
    else:
        print(f"{facts['url']}: rmadapter predict {facts['load']} IMAGES")
