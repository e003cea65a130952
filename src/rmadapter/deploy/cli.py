"""The verbs `export` and `push`; every import that costs time waits for its verb."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rmadapter.console import Its, Json, Name, Outside, Quiet, command, table
from rmadapter.remote import run_folder

SEARCHED = ["weights in 8 bits", "MB", "same %", "differs", "images/s", "taken"]  # of `int8.search`, within 80 columns


def export(
    run: Annotated[Path, typer.Argument(help="Folder that `fit` wrote, or hf:OWNER/NAME.")],
    to: Annotated[str, typer.Option("--to", help="onnx, openvino, torch, litert (phones), or web: a page.")] = "onnx",
    precision: Annotated[str, typer.Option(help="fp32, fp16, int8 (onnx, openvino), bf16 (openvino).")] = "fp32",
    out: Annotated[Path | None, typer.Option("--out", help="New folder, by default RUN-onnx and so on.")] = None,
    data: Annotated[Path | None, typer.Option(help="Images to compare on, by default the run's own.")] = None,
    embeddings: Annotated[bool, typer.Option("--embeddings", help="Give the features of images, too.")] = False,
    text: Annotated[bool, typer.Option("--text", help="Let classes be added by name; gives features, too.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Keep a model that differs by more than it may.")] = False,
    method: Name = "",
    backbone: Its = None,
    outside: Outside = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """A folder that answers as the run does, without torch; compared before it is written."""
    from rmadapter.checkpoint import load
    from rmadapter.deploy import export as exporting
    from rmadapter.deploy.parity import HEADER, Parity

    folder = run_folder(run)
    where = run.resolve() if run.name in ("", "..") else run  # "." has no name of its own
    out = out or (where.with_name(f"{where.name}-{to}") if folder == run else Path(f"{run.name}-{to}"))
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
        table(SEARCHED, [[*map(str, list(row.values())[:-1]), "*" * row["chosen"]] for row in facts["search"]])
    table(HEADER, [Parity(**facts["parity"]).row()])
    for what, title in (("features", "features differ"), ("added", "with a class added by name, probabilities differ")):
        if facts["parity"][what] is not None:
            print(f"{title} by at most {facts['parity'][what]:.1e}")
    print(f"export: {out}, {facts['bytes'] / 1e6:.1f} MB in {precision}")


def push(
    run: Annotated[Path, typer.Argument(help="Folder that `fit` wrote.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="On the Hugging Face hub, new or a run's.")],
    private: Annotated[bool, typer.Option("--private", help="Make it one that nobody else sees.")] = False,
    to: Annotated[Path | None, typer.Option("--to", help="New folder for what would go; nothing is sent.")] = None,
    half: Annotated[bool, typer.Option("--half", help="Weights in 16 bits.")] = False,
    examples: Annotated[
        bool, typer.Option("--examples", help="Features of the training images, too: for `predict --unfamiliar`.")
    ] = False,
    licence: Annotated[str, typer.Option(help="Of what was trained, as the hub calls it: apache-2.0.")] = "unknown",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """A run on the Hugging Face hub, with a model card and without file names; `hf:OWNER/NAME` is a run, too."""
    from rmadapter.deploy.push import Wishes
    from rmadapter.deploy.push import push as pushed

    facts = pushed(run, repository, Wishes(half, examples, licence), private=private, to=to)
    if as_json:
        print(json.dumps(facts))
        return
    table(["file", "bytes"], [[name, f"{size:,}"] for name, size in facts["files"].items()])
    if to:
        print(f"folder: {to}; nothing was sent")
    else:
        print(f"{facts['url']}: rmadapter predict {facts['load']} IMAGES")
