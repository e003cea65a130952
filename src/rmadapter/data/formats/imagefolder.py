"""Hugging Face's ImageFolder with metadata: file_name and a label in metadata.csv, .jsonl or
.parquet (huggingface.co/docs/datasets/image_dataset), in the folder or in each of its split
folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from rmadapter.data.formats.base import (
    Format,
    Listing,
    ReadOptions,
    Rows,
    count_unlisted,
    entries_of,
)
from rmadapter.data.formats.tables import NO_SPLITS, header, scan_table
from rmadapter.data.names import SPLITS, only_split
from rmadapter.errors import UserError
from rmadapter.support.files import csv_text, inert_path, write_text

FILE_COLUMN = "file_name"


def detects(path: Path) -> bool:
    if not os.path.isdir(path):
        return False
    try:
        return bool(metadata(path))
    except UserError:  # `read` reports it
        return True


def read(path: Path, options: ReadOptions) -> Listing:
    """List the images of all tables. Raises UserError as `read_imagefolder`."""
    listing = Listing(path, read_imagefolder(metadata(path), options), Counter())
    count_unlisted(path, listing.images, listing.ignored)
    return listing


def metadata(folder: Path) -> dict[str, Path]:
    """Return split -> its table, or {"": table} for one of the whole folder; empty if no table has
    the column file_name.

    Raises UserError for two folders of one split.
    """
    table = _table(folder)
    if table:
        return {"": table}
    tables: dict[str, Path] = {}
    for below in sorted(entries_of(folder)):
        split = SPLITS.get(below.name.casefold())
        table = _table(below) if split and below.is_dir() else None
        if split and table and tables.setdefault(split, table) is not table:
            raise UserError(
                f"{folder}: {below.name!r} is a second folder for the split {split!r}: merge the "
                "two"
            )
    return tables


def _table(folder: Path) -> Path | None:
    for suffix in (".csv", ".jsonl", ".parquet"):
        file = folder / f"metadata{suffix}"
        names = header(file) if os.path.isfile(file) else []
        if FILE_COLUMN in (name.strip().casefold() for name in names):
            return file
    return None


def read_imagefolder(tables: Mapping[str, Path], options: ReadOptions) -> dict[str, Rows]:
    """Return split -> rows in the order of its table.

    In a table for the whole folder, a column gives the split, or else a folder of each path, unless
    the user says that there are no splits.

    Raises:
        UserError: As for `scan_table`, and for contradictory or missing splits.
    """
    columns = options.columns or {}
    undivided = columns.get("split") == NO_SPLITS
    named = {**columns, "image": columns.get("image") or FILE_COLUMN}
    splits: dict[str, Rows] = {}
    for split, table in tables.items():
        for part, rows in scan_table(table, options.outside, named, options.budget).items():
            if split and part not in ("all", split):
                raise UserError(
                    f"{table}: lists images of the split {part!r}; move them out of the folder of "
                    f"{split!r}"
                )
            for row in rows:
                name = split or part
                if name == "all" and not undivided:
                    name = _split_above(row.image, table)
                splits.setdefault(name, []).append(row)
    if "all" in splits and len(splits) > 1:
        count = len(splits["all"])
        raise UserError(
            f"{tables['']}: {count} of its images are in no split folder, but others are"
        )
    return splits


def _split_above(image: Path, table: Path) -> str:
    """Return the split that folders of a listed image are called by, at any depth as in `datasets`;
    "all" if there is none. Raises UserError if there are two."""
    home = table.parent
    parts = image.relative_to(home).parts[:-1] if image.is_relative_to(home) else ()
    return only_split(
        parts, f"{table}: the folders of {image}", "rename one, or add a column split"
    )


FORMAT = Format("imagefolder", detects, read, has_columns=True)


def write_imagefolder(table: Path, labels: Mapping[str, str]) -> None:
    """Write metadata.csv of a folder of images.

    Args:
        table: The file.
        labels: Labels by the paths of images in its folder; there must be some, since a table
            without rows is refused.
    """
    parts = {part.casefold() for name in labels for part in name.split("/")[:-1]}
    # a folder called test would be taken for a split, unless a column says otherwise
    width = 3 if parts & SPLITS.keys() else 2
    rows = [(inert_path(name), label, "train")[:width] for name, label in sorted(labels.items())]
    write_text(table, csv_text((FILE_COLUMN, "label", "split")[:width], rows))
