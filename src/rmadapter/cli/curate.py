"""The verbs `suspects`, `suggest` and `labels`, which look at images before training; slow imports
wait until a verb runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rmadapter.cli.options import (
    Backbone,
    Columns,
    Device,
    FileOptions,
    ImageColumn,
    Json,
    Outside,
    Quiet,
    Seed,
    Sets,
    parts,
)
from rmadapter.errors import UserError
from rmadapter.support.files import check_new, user_path
from rmadapter.support.terminal import note, table

if TYPE_CHECKING:
    from rmadapter.curate.apply import Cleaned
    from rmadapter.curate.suggest import Suggestions
    from rmadapter.curate.suspects import Suspects

SHOWN = 20  # images in a table
METHOD = "linear-probe"
Judge = Annotated[
    str,
    typer.Option(
        "--method",
        help="Name from `rmadapter methods`, package:Class or file.py:Class; it judges labels.",
    ),
]
Rule = Annotated[
    str,
    typer.Option(
        "--rule",
        metavar="typicality | margin | entropy | coverage | mix | random | balanced",
        help="typicality is the default; no rule was shown to be better than random. balanced "
        "only with --start; typicality, coverage and random also with it.",
    ),
]
SomeBackbone = Annotated[
    str | None,
    typer.Option(
        help="Name or folder of the backbone; with --start any, else the run's, if a folder."
    ),
]


def suspects(
    data: Annotated[
        Path, typer.Argument(help="Folder of class folders, or table of path,label[,split].")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder or .csv file for the list and its page."),
    ] = None,
    apply: Annotated[
        Path | None,
        typer.Option(
            "--apply",
            help="suspects.csv with your decisions: write a cleaned copy or list to --out.",
        ),
    ] = None,
    method: Judge = METHOD,
    backbone: Backbone = None,
    device: Device = None,
    table_columns: Columns = Columns(),
    sets: Sets = None,
    outside: Outside = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Find wrong labels, copies, and broken or odd images.

    With --apply: write a data set without them.
    """
    from rmadapter.cli.checks import check_backbones
    from rmadapter.data.formats.registry import check_source
    from rmadapter.settings import parse_overrides

    columns = table_columns.named()
    check_source(data, columns)
    if apply:
        if method != METHOD or backbone or sets:
            raise UserError("--apply trains nothing: remove --method, --backbone and --set")
        _apply(data, apply, out, columns, outside, as_json)
        return
    files = _suspects_files(out, data) if out else None
    check_backbones(backbone, sets)
    from rmadapter.curate.apply import cleaned_name
    from rmadapter.curate.suspects import find_suspects

    flags = {"backbone": backbone, "device": device}
    settings = {name: value for name, value in flags.items() if value} | parse_overrides(sets or [])
    result = find_suspects(
        data, method, settings, columns=columns, outside=outside, progress=not quiet
    )
    if not result.judged:
        note("no label was judged: judging takes two images per class that are not copies")
    if files:
        more = ["--allow-outside"] * outside + ["--out", cleaned_name(data, columns, outside)]
        for kind, name in reversed(columns.items()):
            more = [f"--{kind}-column", name, *more]
        _write_suspects(result, files, data, method, as_json, more)
    else:
        _show_suspects(result, as_json)


def _apply(
    data: Path, decisions: Path, out: Path | None, columns: Mapping[str, str], outside: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Write a copy of the data, cleaned as a file of decisions says."""
    if out is None:
        raise UserError("--apply: name the cleaned copy with --out")
    check_new(out)
    if not user_path(decisions).is_file():
        raise UserError(f"--apply {decisions}: no such file; `rmadapter suspects --out` writes one")
    from rmadapter.curate.apply import apply_decisions

    cleaned = apply_decisions(data, decisions, out, columns=columns, outside=outside)
    _show_cleaned(out, cleaned, as_json)


def _suspects_files(out: Path, data: Path) -> tuple[Path, Path]:
    """Return the paths of the list and its page. Raises UserError if one exists, because it may
    hold decisions, and for a folder that would be read as a class."""
    listed = out if out.suffix.lower() == ".csv" else out / "suspects.csv"
    if data.is_dir() and data.resolve() in listed.resolve().parent.parents:
        raise UserError(f"{out}: lies in {data}, whose folders are classes; choose another --out")
    files = listed, listed.with_suffix(".html")
    check_new(*files)
    return files


def _write_suspects(
    result: Suspects,
    files: tuple[Path, Path],
    data: Path,
    method: str,
    as_json: bool,
    more: list[str],
) -> None:
    """Write the list and its page. more: options of the command that applies the list."""
    from rmadapter.curate.suspects import write_csv, write_page

    write_page(files[1], result, str(data), method, files[0], more)
    write_csv(files[0], result)
    facts = {
        "suspects": str(files[0]),
        "page": str(files[1]),
        "images": result.total,
        "found": result.counts(),
    }
    if as_json:
        print(json.dumps(facts))
        return
    print(f"{len(result.suspects):,} of {result.total:,} images: {_counted(result)}")
    print(f"suspects: {files[0]}\npage: {files[1]}")


def _counted(result: Suspects) -> str:
    counts = ", ".join(f"{kind} {count}" for kind, count in result.counts().items())
    return counts or "nothing to look at"


def _show_suspects(result: Suspects, as_json: bool) -> None:
    """Print suspects: all of them as JSON, or the first ones in a table."""
    if as_json:
        print(json.dumps([one.json() for one in result.suspects]))
        return
    rows = []
    for one in result.suspects[:SHOWN]:
        sure = "" if one.confidence is None else f"{100 * one.confidence:.0f} %"
        suggested = "" if one.suggested is None else str(one.suggested)
        rows.append([one.image, str(one.given), suggested, sure, "; ".join(one.reasons)])
    if rows:
        table(["image", "given", "suggested", "confidence", "reasons"], rows)
    print(f"{len(result.suspects):,} of {result.total:,} images: {_counted(result)}")
    if result.suspects:
        print("--out FOLDER writes all of them to suspects.csv, and a page with the images")


def _show_cleaned(out: Path, cleaned: Cleaned, as_json: bool) -> None:
    for label in cleaned.without:
        note(f"class {label!r} has no training image left")
    if as_json:
        print(json.dumps({"cleaned": str(out), **vars(cleaned)}))
        return
    counts = f"{cleaned.relabelled:,} with another label; {cleaned.dropped:,} left out"
    print(f"{out}: {cleaned.images:,} images, {counts}")


def labels(
    data: Annotated[
        Path, typer.Argument(help="Labelled images in any format, such as a labelled folder.")
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="csv | coco | label-studio | folders", help="Format to write."
        ),
    ] = "csv",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="New file, or folder of copied images.")
    ] = None,
    table_columns: Columns = Columns(),
    outside: Outside = False,
    as_json: Json = False,
) -> None:
    """Count the labels of images, or write them in another format."""
    from rmadapter.data.formats.registry import check_source, open_source
    from rmadapter.data.formats.write import write_labels

    columns = table_columns.named()
    check_source(data, columns)
    splits = open_source(data, outside, columns).splits
    if out:
        count = write_labels(splits, to, user_path(out))
        facts = {"labels": str(out), "format": to, "images": count}
        print(json.dumps(facts) if as_json else f"labels: {out}, {_images(count)}")
        return
    counts = {split: Counter(row.label for row in rows) for split, rows in splits.items()}
    if as_json:
        print(json.dumps(counts))
        return
    names = sorted({label for one in counts.values() for label in one})
    rows = [[name, *(f"{one[name]:,}" for one in counts.values())] for name in names]
    table(["label", *("images" if split == "all" else split for split in counts)], rows)


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
        str, typer.Option("--names", help='Class names, such as "cat,dog,zebra"; with --start.')
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help=".csv file for the list; its page is written beside it."),
    ] = None,
    rule: Rule = "",
    seed: Seed = None,
    backbone: SomeBackbone = None,
    device: Device = None,
    image_column: ImageColumn = "",
    reading: FileOptions = FileOptions(),
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Suggest which unlabelled images to label next, or first."""
    from rmadapter.cli.checks import check_backbones
    from rmadapter.data.formats.registry import check_words

    files = _suggest_files(out) if out else None
    pool = words if start else _pool(words, names)
    check_words(pool)
    check_backbones(backbone)
    from rmadapter.curate.suggest import first_images, suggest_images

    chosen = 1 if seed is None else seed
    if start:
        result = first_images(
            pool, n, names=parts(names), rule=rule, seed=chosen, backbone=backbone or "pocket",
            skip_bad=reading.skip_bad, column=image_column, outside=reading.outside,
            device=device or "auto",
        )  # fmt: skip
    else:
        result = suggest_images(
            words[0], pool, n, rule=rule, seed=chosen, backbone=backbone,
            skip_bad=reading.skip_bad, column=image_column, outside=reading.outside,
            device=device or "auto",
        )  # fmt: skip
    if len(result.suggestions) < n:
        note(f"{len(result.suggestions)} images instead of {n}: the pool has no more new ones")
    _show_suggested(result, files, " ".join(pool), as_json)


def _pool(words: Sequence[str], names: str) -> Sequence[str]:
    """Return the words after the run. Raises UserError unless the words are a run and images to
    choose from."""
    from rmadapter.cli.checks import check_runs

    if names:
        raise UserError("--names needs --start: a run has its own classes")
    if len(words) < 2:
        raise UserError("name a run and the images to choose from, or give --start")
    check_runs(words[0])
    return words[1:]


def _suggest_files(out: Path) -> tuple[Path, Path]:
    """Return the paths of the list and its page. Raises UserError if one exists, or if `out` is no
    .csv."""
    if out.suffix.lower() != ".csv":
        raise UserError(f"{out}: give --out a name that ends in .csv")
    files = out, out.with_suffix(".html")
    check_new(*files)
    return files


def _show_suggested(
    result: Suggestions, files: tuple[Path, Path] | None, pool: str, as_json: bool
) -> None:
    from rmadapter.curate.suggest import UNPROVEN, write_csv, write_page

    if files:
        write_page(files[1], result, pool, files[0])
        write_csv(files[0], result)
    if as_json:
        facts = {**vars(result), "suggestions": [one.json() for one in result.suggestions]}
        where = {"list": str(files[0]), "page": str(files[1])} if files else {}
        print(json.dumps({**facts, **where}))
        return
    if not files:
        rows = []
        for one in result.suggestions[:SHOWN]:
            best = ", ".join(f"{label} {100 * share:.0f} %" for label, share in one.best)
            score = [] if one.score is None else [f"{one.score:.3f}"]
            rows.append([str(one.rank), str(one.image), *score, best])
        table(["rank", "image", *["score"] * result.scored, "looks like"], rows)
    how = f"chosen by the rule {result.rule}" if result.scored else "drawn at random"
    print(f"{len(result.suggestions):,} of {_images(result.pool)}, {how}{_left_out(result)}")
    if result.scored:
        print(UNPROVEN)
    if files:
        print(f"list: {files[0]}\npage: {files[1]}")
    elif len(result.suggestions) > SHOWN:
        print("--out suggest.csv writes all of them, and a page with the images")


def _left_out(result: Suggestions) -> str:
    """Say which images of the pool could not be suggested."""
    known, copies = _images(result.known), _images(result.copies)
    parts = [f"{known} that the model was trained on"] if result.known else []
    parts += [f"{copies} nearly identical to another"] if result.copies else []
    return f"; left out: {' and '.join(parts)}" if parts else ""


def _images(count: int) -> str:
    return f"{count:,} image{'' if count == 1 else 's'}"
