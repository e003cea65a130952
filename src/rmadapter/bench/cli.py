"""The commands of the bench: thin verbs, and every import that costs time waits for its verb."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rmadapter.errors import UserError

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def bench(
    protocol: Annotated[str, typer.Argument(help="base-to-novel, cross-dataset, domain-generalization, few-shot, ...")],
    datasets: Annotated[str, typer.Option(help="Names or folders below --root, as a,b; pacs/photo; paper: its 11.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of results; the same command goes on where it was.")],
    methods: Annotated[str, typer.Option(help="As `rmadapter methods` lists them.")] = "",
    backbone: Annotated[str, typer.Option(help="pocket, ViT-B-16/openai, hf-hub:..., or a local folder.")] = "pocket",
    seeds: Annotated[str, typer.Option(help="Seeds of draw, initialisation and batches.")] = "1,2,3",
    shots: Annotated[str, typer.Option(help="Images per class; by default 16, of few-shot 1,2,4,8,16.")] = "",
    root: Annotated[Path, typer.Option(help="Folder of datasets.")] = Path(),
    templates: Annotated[str, typer.Option(help='"dataset" for each dataset\'s own, or one prompt with {}.')] = "",
    augmentation: Annotated[str, typer.Option(help="none, or standard with --views.")] = "none",
    views: Annotated[int, typer.Option(help="Augmented views per image.")] = 0,
    axes: Annotated[str, typer.Option(help="Of sensitivity: rank,alpha,...")] = "",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="[METHOD.]FIELD=VALUE", help="A method's setting, or one common to all."),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes; they share the processor's cores.")] = 1,
    as_json: Json = False,
) -> None:
    """Run one of the paper's experiments; finished runs are kept."""
    from rmadapter.bench.protocols import expand
    from rmadapter.bench.runner import run_all
    from rmadapter.bench.settings import split_settings
    from rmadapter.config import Config, parse_overrides
    from rmadapter.data.catalog import CATALOG

    if datasets == "paper":
        datasets = ",".join(list(CATALOG)[:11])  # Table 1's, ImageNet first
    flags: dict[str, Any] = {"backbone": backbone, "augmentation": augmentation, "views": views}
    if templates not in ("", "dataset"):
        flags["templates"] = templates
    shared, values = split_settings(parse_overrides(settings or []))
    runs = expand(
        protocol, _list(datasets), _list(methods), _numbers("seeds", seeds), _numbers("shots", shots),
        axes=_list(axes), root=root,
    )  # fmt: skip
    records = run_all(
        runs,
        out,
        root=root,
        settings=Config.make({**flags, **shared}),
        values=values,
        own_templates=templates == "dataset",
        jobs=jobs,
    )
    if as_json:
        print(json.dumps([{k: v for k, v in record.items() if k != "history"} for record in records]))
    else:
        _show(records)
    failed = [record for record in records if record["status"] == "failed"]
    if failed:
        first = f"{failed[0]['dataset']}, {failed[0]['method']}, seed {failed[0]['seed']}: {failed[0]['reason']}"
        raise UserError(f"{len(failed)} of {len(records)} runs failed ({first}); the same command tries them again")


def report(
    results: Annotated[Path, typer.Argument(help="Folder that `bench` wrote.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the report.")],
    check: Annotated[bool, typer.Option("--check", help="Compare with the paper's figures; 1 if one is off.")] = False,
    tolerance: Annotated[float, typer.Option(help="Points that a figure may be off.")] = 1.0,
    as_json: Json = False,
) -> None:
    """Tables, figures and one page of everything that was measured."""
    from rmadapter.bench import paper
    from rmadapter.bench.report import write_reports

    written = write_reports(results, out)
    judged = paper.check(results, tolerance) if check else []
    if as_json:
        print(json.dumps(judged if check else written))
    elif check:
        from rmadapter.cli import _table

        names = ["table", "row", "figure", "paper", "ours", "difference", "within", "status"]
        cells = {None: "-", True: "yes", False: "NO"}
        _table(
            names,
            [[f"{v:.2f}" if isinstance(v := r[n], float) else cells.get(v, str(v)) for n in names] for r in judged],
        )
        measured = [row for row in judged if row["within"] is not None]
        near = sum(row["within"] for row in measured)
        print(f"{len(measured)} of {len(judged)} printed figures were measured; {near} are within {tolerance:g} points")
    else:
        print(f"report: {out / 'report.html'}")
    if any(row["within"] is False for row in judged):
        raise typer.Exit(1)


def methods(
    backbone: Annotated[str, typer.Option(help="Whose parameters are counted.")] = "ViT-B-16/none",
    as_json: Json = False,
) -> None:
    """Every method, its published settings and its number of trainable parameters."""
    from rmadapter.bench.settings import describe_methods

    classes, shots = 100, 16
    found = describe_methods(backbone, classes, shots)
    if as_json:
        print(json.dumps(found))
        return
    from rmadapter.cli import _table

    rows = [
        [m["name"], m["title"], "-" if m["parameters"] is None else f"{m['parameters']:,}", m["source"]] for m in found
    ]
    _table(["method", "title", "trainable parameters", "source"], rows)
    print(f"Parameters for {backbone}, {classes} classes and {shots} shots.")


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(name: str, text: str) -> list[int]:
    try:
        return [int(part) for part in _list(text)]
    except ValueError:
        raise UserError(f"--{name} {text}: write whole numbers, as 1,2,3") from None


def _show(records: list[dict[str, Any]]) -> None:
    """Means over seeds; one row a dataset, method, variant and number of shots."""
    from statistics import fmean

    from rmadapter.cli import _table

    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for record in records:
        key = (record["dataset"], record["variant"] or record["title"], record["shots"])
        groups.setdefault(key, []).append(record)
    names = list(dict.fromkeys(name for record in records for name in _flat(record)))
    rows = []
    for (dataset, method, shots), group in groups.items():
        cells = []
        for name in names:
            values = [value for record in group if (value := _flat(record).get(name)) is not None]
            cells.append(f"{fmean(values):.2f}" if values else "-")
        done = sum(record["status"] == "finished" for record in group)
        rows.append([dataset, method, str(shots), f"{done} of {len(group)}", *cells])
    _table(["dataset", "method", "shots", "seeds", *names], rows)
    for reason in dict.fromkeys(f"{r['method']}: {r['reason']}" for r in records if r["reason"]):
        print(f"note: {reason}", file=sys.stderr)


def _flat(record: dict[str, Any]) -> dict[str, float | None]:
    """Metrics by column."""
    metrics = dict(record.get("metrics") or {})
    targets = metrics.pop("targets", {})
    average = {"average": metrics.pop("average")} if "average" in metrics else {}
    return {**metrics, **targets, **average}
