"""The commands that list the methods and data sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from rmadapter.cli.bench import _numbers
from rmadapter.errors import UserError
from rmadapter.support.terminal import Json, table


def methods(
    backbone: Annotated[
        str, typer.Option(help="Backbone to count the parameters on.")
    ] = "ViT-B-16/none",
    as_json: Json = False,
) -> None:
    """List the methods: published settings, number of trained parameters, and what each uses beyond
    the shots."""
    from rmadapter.backbones import load_backbone
    from rmadapter.methods import METHODS, entry_points, load_method
    from rmadapter.methods.uses import UNKNOWN, Uses, uses_of
    from rmadapter.settings import settings_of

    loaded, classes, shots = load_backbone(backbone), 100, 16
    found: list[dict[str, Any]] = []
    for name in [*METHODS, *entry_points()]:
        method, count, reason = load_method(name), None, ""
        try:
            count = method.parameters(loaded, classes, shots).trained
        except UserError as error:  # the published settings do not fit the backbone
            reason = str(error)
        facts = {
            "name": name,
            "title": method.title,
            "source": method.source,
            "parameters": count,
            "reason": reason,
        }
        settings = settings_of(method)
        uses = uses_of(name, settings, method.traits.uses)
        found.append({**facts, "settings": settings, "uses": uses and uses.model_dump()})
    if as_json:
        print(json.dumps(found))
        return
    rows = [
        [m["name"], m["title"], "-" if m["parameters"] is None else f"{m['parameters']:,}",
         *((m["uses"]["track"], Uses(**m["uses"]).words) if m["uses"] else (UNKNOWN, "")), m["source"]]
        for m in found
    ]  # fmt: skip
    table(["method", "title", "trained parameters", "track", "uses", "source"], rows)
    print(f"Parameters for {backbone}, {classes} classes and {shots} shots.")


def data(
    name: Annotated[
        str | None, typer.Argument(help="One data set; all of them by default.")
    ] = None,
    root: Annotated[Path, typer.Option(help="Folder of all data sets.")] = Path("data"),
    check: Annotated[
        Path | None, typer.Option(help="Report what is there below this folder.")
    ] = None,
    download: Annotated[bool, typer.Option("--download", help="Download NAME.")] = False,
    shots: Annotated[
        str, typer.Option("--list", help="16,1: write 2SFS's list of 16 shots, seed 1, as a table.")
    ] = "",
    as_json: Json = False,
) -> None:
    """List the paper's data sets: licence, size, how to get each, and whether what is there is
    complete."""
    from dataclasses import asdict

    from rmadapter.data.catalog import lists
    from rmadapter.data.catalog import sets as catalog

    chosen = [catalog.get(name)] if name else list(catalog.CATALOG.values())
    place = check or root
    if (download or shots) and not name:
        raise UserError(f"{'--download' if download else '--list'} needs the name of one data set")
    if shots:
        if len(drawn := _numbers("list", shots)) != 2:
            raise UserError(f"--list {shots}: write shots and seed, such as 16,1")
        if download:
            catalog.download(chosen[0], place)
        written = str(lists.write_list(chosen[0], place, *drawn))
        print(json.dumps({"table": written}) if as_json else f"table: {written}")
        return
    if check and not check.is_dir():
        raise UserError(f"{check}: no such folder")
    if name and not as_json:
        print(catalog.describe(chosen[0], place), end="\n\n")
    if download:
        catalog.download(chosen[0], place)
    if name or check:
        facts = [asdict(catalog.check(dataset, place)) for dataset in chosen]
        columns = ["name", "status", "missing", "how"]
    else:
        facts = [dataset.model_dump() for dataset in chosen]
        columns = ["key", "classes", "size", "licence"]
    if as_json:
        print(json.dumps(facts))
    else:
        rows = [[fact[column] for column in columns] for fact in facts]
        table(
            columns,
            [["\n".join(v) if isinstance(v, tuple) else str(v) for v in row] for row in rows],
        )
