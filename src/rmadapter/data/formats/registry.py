"""All formats: which one the data at a path has, its images and their labels."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from rmadapter.data.formats import (
    annotated,
    archives,
    class_folders,
    hf_datasets,
    imagefolder,
    tables,
    webdataset,
)
from rmadapter.data.formats.base import Format, Inputs, ReadOptions, Source
from rmadapter.errors import UserError
from rmadapter.support.files import cache_folder, user_path

FORMATS: tuple[Format, ...] = (  # the first that detects a path reads it
    hf_datasets, imagefolder, annotated, webdataset, tables, archives, class_folders,
)  # fmt: skip
KNOWN = (
    "a folder of class folders; a table of path,label[,split] (.csv, .tsv, .parquet, .jsonl); a "
    "COCO, Label Studio or FiftyOne JSON file; a YOLO data.yaml; a .zip or .tar file; or a folder "
    "saved by `datasets`"
)


def find_format(path: Path) -> Format | None:
    """Return the format of a file or folder; None for an unknown one."""
    return next((known for known in FORMATS if known.detects(path)), None)


def is_data_file(path: Path) -> bool:
    """Return whether a path names a file of a data format, which need not exist."""
    suffixes = [suffix for known in FORMATS for suffix in known.SUFFIXES]
    return path.name.lower().endswith(tuple(suffixes))


def open_source(
    data: str | Path, outside: bool = False, columns: Mapping[str, str] | None = None,
    crops: bool = False,
) -> Source:  # fmt: skip
    """List the images of a folder or file in any format of docs/data.md; decodes images only for
    `crops`.

    outside: whether lists may name images outside their folder. columns: as in `read_images`.
    crops: the boxes of COCO, YOLO, Label Studio and FiftyOne instead of whole images. Raises
    UserError for unknown formats and broken data.
    """
    path = user_path(data)
    known = find_format(path) if os.path.exists(path) else None
    if known is None:
        what = "unknown format" if os.path.exists(path) else "no such file or folder"
        raise UserError(f"{path}: {what}; give {KNOWN}")
    if crops and not known.HAS_BOXES:
        refuse_crops(path)
    if any((columns or {}).values()) and not known.HAS_COLUMNS:
        raise UserError(f"{path}: has no columns; --image-column and the like are for tables")
    return known.read(path, ReadOptions(outside, columns, crops))


def images_root(data: str | Path, crops: bool = False) -> Path:
    """Return the folder that a data set's image names are relative to, the root of `open_source`'s
    result; unpacks nothing. crops: as in `open_source`."""
    path = user_path(data)
    if crops:
        return cache_folder() / "crops"
    known = find_format(path) if os.path.exists(path) else None
    return path if known is None else known.image_root(path)


def list_images(path: Path, options: ReadOptions) -> Inputs | None:
    """List all images of a file or folder, labelled or not; None for an unknown format."""
    if options.crops:
        source = open_source(path, options.outside, crops=True)
        images = [row.image for rows in source.splits.values() for row in rows]
        return Inputs(list(dict.fromkeys(images)), [], source.ignored)
    known = find_format(path)
    return None if known is None else known.list_images(path, options)


def refuse_crops(path: Path) -> None:
    """Raise UserError for data without boxes."""
    what = "--crops (crops=True) needs boxes (COCO, YOLO, Label Studio, FiftyOne)"
    raise UserError(f"{path}: {what}; there are none here")
