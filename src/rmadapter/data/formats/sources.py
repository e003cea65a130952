"""Finds out which format the data at a path has, and reads it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from rmadapter.data.decode_limits import ignored_note
from rmadapter.data.formats.annotations import Marks, rows_of
from rmadapter.data.formats.archives import inner, is_packed, place, unpacked
from rmadapter.data.formats.coco import coco_files, is_coco, read_coco
from rmadapter.data.formats.columns import SUFFIXES
from rmadapter.data.formats.fiftyone import (
    SAMPLES,
    is_fiftyone,
    is_samples,
    read_fiftyone,
    read_samples,
)
from rmadapter.data.formats.hf_datasets import (
    hub_parquets,
    is_hub_parquet,
    is_library,
    is_saved,
    read_parquets,
    read_saved,
)
from rmadapter.data.formats.imagefolder import metadata, read_imagefolder
from rmadapter.data.formats.label_studio import is_label_studio, read_label_studio
from rmadapter.data.formats.scan import Source, image_files, scan_folder, scan_table
from rmadapter.data.formats.webdataset import class_names, is_sampled, read_shards, samples, shards
from rmadapter.data.formats.yolo import read_yolo, yolo_file
from rmadapter.errors import UserError
from rmadapter.support.files import cache_folder, read_json, user_path

YAML = (".yaml", ".yml")
ANNOTATED = (".json", *YAML)
LARGEST = 2**29  # most bytes of a JSON file of labels; COCO's train2017 is smaller
UNREAD = ("segmentation", "mask", "rle")  # most of a COCO file; dropped while reading
LISTS = (*SUFFIXES, *ANNOTATED, ".txt")  # files that may hold labels
KNOWN = (
    "a folder of class folders; a table of path,label[,split] (.csv, .tsv, .parquet, .jsonl); a COCO, "
    "Label Studio or FiftyOne JSON file; a YOLO data.yaml; a .zip or .tar file; or a folder saved by `datasets`"
)


def is_source(path: Path) -> bool:
    """Whether a file's suffix is one of a data format."""
    return path.suffix.lower() in (*SUFFIXES, *ANNOTATED) or is_packed(path)


def open_source(
    data: str | Path,
    outside: bool = False,
    columns: Mapping[str, str] | None = None,
    crops: bool = False,
) -> Source:
    """List the images of a folder or file in any format of docs/data.md; decodes images only for
    `crops`.

    outside: whether lists may name images outside their folder. columns: as in `read_images`.
    crops: the boxes of COCO, YOLO, Label Studio and FiftyOne instead of whole images. Raises
    UserError for unknown formats and broken data.
    """
    path = user_path(data)
    if os.path.isdir(path):  # never raises, even for overlong names
        return _folder(path, outside, columns, crops)
    if not os.path.isfile(path) or not is_source(path):
        what = "unknown format" if os.path.exists(path) else "no such file or folder"
        raise UserError(f"{path}: {what}; give {KNOWN}")
    if path.suffix.lower() in SUFFIXES:
        only_boxes(path, crops)
        if is_hub_parquet(path):
            return read_parquets({"all": [path]}, columns)
        return Source(path.parent, scan_table(path, outside, columns), Counter())
    if is_packed(path):
        return _archive(path, outside, columns, crops)
    _no_columns(path, columns)
    return _source(_beside(path), annotated(path, outside), crops, whole=False)


def images_root(data: str | Path, crops: bool = False) -> Path:
    """The folder that a data set's image names are relative to, the root of `open_source`'s result;
    unpacks nothing. crops: as in `open_source`."""
    path = user_path(data)
    if crops:
        return cache_folder() / "crops"
    if is_library(path):
        return cache_folder() / "images"
    if os.path.isdir(path):
        return cache_folder() / "unpacked" if shards(path) and not metadata(path) else path
    if not os.path.isfile(path):
        return path
    if is_packed(path):
        folder = place(path)
        return folder if not folder.is_dir() or is_sampled(folder) else images_root(inner(folder))
    return _beside(path) if path.suffix.lower() in ANNOTATED else path.parent


def annotated(path: Path, outside: bool = False) -> dict[str, Marks]:
    """Split -> images and labels of an annotation file (suffix in `ANNOTATED`). Raises UserError as
    `open_source`."""
    return read_yolo(path, outside) if path.suffix.lower() in YAML else _json(path, outside)


def _archive(path: Path, outside: bool, columns: Mapping[str, str] | None, crops: bool) -> Source:
    folder = unpacked(path)
    if is_sampled(folder):
        only_boxes(path, crops)
        ignored: Counter[str] = Counter()
        names = class_names(path.parent) or class_names(folder)
        return Source(folder, {"all": samples(folder, names, ignored)}, ignored)
    return _folder(inner(folder), outside, columns, crops)


def _folder(folder: Path, outside: bool, columns: Mapping[str, str] | None, crops: bool) -> Source:
    if is_saved(folder):
        only_boxes(folder, crops)
        return read_saved(folder, outside, columns)
    if parquets := hub_parquets(folder):
        only_boxes(folder, crops)
        return read_parquets(parquets, columns)
    ignored: Counter[str] = Counter()
    if tables := metadata(folder):
        only_boxes(folder, crops)
        splits = read_imagefolder(tables, outside, columns)
        _unlisted(folder, {row.image for rows in splits.values() for row in rows}, ignored)
        return Source(folder, splits, ignored)
    _no_columns(folder, columns)
    if yaml := yolo_file(folder):
        return _source(folder, read_yolo(yaml, outside), crops)
    if files := coco_files(folder):
        found = {
            split: marks for split, file in files.items() for marks in _json(file, outside).values()
        }
        return _source(folder, found, crops)
    if (folder / "labels.json").is_file() and (folder / "data").is_dir():
        return _source(folder, _json(folder / "labels.json", outside), crops)
    if (folder / "metadata.json").is_file():
        if (folder / SAMPLES).is_file():
            return _source(folder, _json(folder / SAMPLES, outside), crops)
        if each := sorted(folder.glob("samples/*.json")):
            value = {"samples": [read_json(file, LARGEST, UNREAD) for file in each]}
            return _source(folder, read_samples(folder / "samples", value, outside), crops)
    only_boxes(folder, crops)
    if parts := shards(folder):
        return Source(cache_folder() / "unpacked", read_shards(folder, parts, ignored), ignored)
    if is_sampled(folder):
        return Source(folder, {"all": samples(folder, class_names(folder), ignored)}, ignored)
    return Source(folder, scan_folder(folder, ignored), ignored)


def _json(file: Path, outside: bool) -> dict[str, Marks]:
    if os.path.isfile(file) and (size := os.path.getsize(file)) > LARGEST:
        raise UserError(
            f"{file}: has {size:,} bytes, and labels may have {LARGEST:,}; leave out what is not needed, as with "
            f"`jq -c 'del(.annotations[].segmentation)' {file.name} > small.json`"
        )
    value = read_json(file, LARGEST, UNREAD)
    if is_coco(value):
        return {"all": read_coco(file, value, outside)}
    if is_fiftyone(value):
        return {"all": read_fiftyone(file, value)}
    if is_samples(value):
        return read_samples(file, value, outside)
    if is_label_studio(value):
        return {"all": read_label_studio(file, value, outside)}
    what = "not a COCO file, a Label Studio export, or FiftyOne's labels.json or samples.json"
    raise UserError(f"{file}: {what}")


def _beside(labels: Path) -> Path:
    """The folder that holds the images of an annotation file."""
    return labels.parent.parent if labels.parent.name == "annotations" else labels.parent


def _source(root: Path, marks: Mapping[str, Marks], crops: bool, whole: bool = True) -> Source:
    """whole: whether a folder was given, so that its images without an entry are counted as
    ignored."""
    ignored: Counter[str] = Counter()
    splits = {split: rows_of(own, root, crops, ignored) for split, own in marks.items()}
    splits = {split: rows for split, rows in splits.items() if rows}
    if not splits:
        raise UserError(f"{root}: no labelled images ({ignored_note(ignored) or 'nor any others'})")
    if whole:
        _unlisted(root, {image for own in marks.values() for image in own}, ignored)
    return Source(cache_folder() / "crops" if crops else root, splits, ignored)


def _unlisted(root: Path, listed: set[Path], ignored: Counter[str]) -> None:
    """Count a folder's unlisted images, and its other files except those that may hold labels."""
    others: Counter[str] = Counter()
    known = {os.path.abspath(image) for image in listed}
    if count := sum(
        os.path.abspath(image) not in known for image in image_files(root, set(), others)
    ):
        ignored["images without an entry"] = count
    ignored.update({kind: count for kind, count in others.items() if kind not in LISTS})


def only_boxes(path: Path, crops: bool) -> None:
    if crops:
        raise UserError(
            f"{path}: --crops (crops=True) needs boxes (COCO, YOLO, Label Studio); there are none here"
        )


def _no_columns(path: Path, columns: Mapping[str, str] | None) -> None:
    if any((columns or {}).values()):
        raise UserError(f"{path}: has no columns; --image-column and the like are for tables")
