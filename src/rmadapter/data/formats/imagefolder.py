"""Hugging Face's ImageFolder with metadata: file_name and a label in metadata.csv, .jsonl or
.parquet (huggingface.co/docs/datasets/image_dataset), in the folder or in each of its split
folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePath

from rmadapter.data.formats.columns import header
from rmadapter.data.formats.scan import SPLITS, Rows, listed, scan_table
from rmadapter.errors import UserError

FILE = "file_name"


def metadata(folder: Path) -> dict[str, Path]:
    """Split -> its table, or {"": table} for one of the whole folder; empty if no table has the
    column file_name.

    Raises UserError for two folders of one split.
    """
    found = _table(folder)
    if found:
        return {"": found}
    tables: dict[str, Path] = {}
    for below in sorted(listed(folder)):
        if (
            (split := SPLITS.get(below.name.casefold()))
            and below.is_dir()
            and (table := _table(below))
        ):
            if split in tables:
                raise UserError(
                    f"{folder}: {below.name!r} is a second folder for the split {split!r}: merge the two"
                )
            tables[split] = table
    return tables


def _table(folder: Path) -> Path | None:
    for suffix in (".csv", ".jsonl", ".parquet"):
        file = folder / f"metadata{suffix}"
        if os.path.isfile(file) and FILE in (name.strip().casefold() for name in header(file)):
            return file
    return None


def read_imagefolder(
    tables: Mapping[str, Path], outside: bool = False, columns: Mapping[str, str] | None = None
) -> dict[str, Rows]:
    """Split -> rows in the order of its table. In a table for the whole folder, a column gives the
    split, or else the first folder of each path. Raises UserError as `scan_table`, and for
    contradictory or missing splits."""
    named = {**(columns or {}), "image": (columns or {}).get("image") or FILE}
    found: dict[str, Rows] = {}
    for split, table in tables.items():
        for own, rows in scan_table(table, outside, named).items():
            if split and own not in ("all", split):
                raise UserError(
                    f"{table}: lists images of the split {own!r}; move them out of the folder of {split!r}"
                )
            for row in rows:
                name = split or (own if own != "all" else _first(row.image, table.parent))
                found.setdefault(name, []).append(row)
    if "all" in found and len(found) > 1:
        counts = Counter({name: len(rows) for name, rows in found.items()})
        raise UserError(
            f"{tables['']}: {counts['all']} of its images are in no split folder, but others are"
        )
    return found


def _first(image: Path, home: Path) -> str:
    parts = PurePath(image).relative_to(home).parts if image.is_relative_to(home) else ()
    return SPLITS.get(parts[0].casefold(), "all") if len(parts) > 1 else "all"
