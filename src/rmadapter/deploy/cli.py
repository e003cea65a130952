"""The verb `export`; every import that costs time waits for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rmadapter.console import Its, Json, Name, Outside, Quiet, command, table


def export(
    run: Annotated[Path, typer.Argument(help="Folder that `fit` wrote.")],
    to: Annotated[str, typer.Option("--to", help="onnx, openvino, or web: a page.")] = "onnx",
    precision: Annotated[str, typer.Option(help="fp32, fp16, int8 (onnx), bf16 (openvino).")] = "fp32",
    out: Annotated[Path | None, typer.Option("--out", help="New folder, by default RUN-onnx and so on.")] = None,
    data: Annotated[Path | None, typer.Option(help="Images to compare on, by default the run's own.")] = None,
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

    out = out or run.with_name(f"{run.resolve().name}-{to}")
    exporting.check_wishes(out, to, precision)
    saved = load(run, backbone, method=method, device="cpu")
    facts = exporting.export(run, saved, out, precision, data, to=to, outside=outside, force=force, command=command())
    if as_json:
        print(json.dumps({"export": str(out), **facts}))
        return
    if facts["search"]:
        table(list(facts["search"][0]), [[str(value) for value in row.values()] for row in facts["search"]])
    table(HEADER, [Parity(**facts["parity"]).row()])
    print(f"export: {out}, {facts['bytes'] / 1e6:.1f} MB in {precision}")
