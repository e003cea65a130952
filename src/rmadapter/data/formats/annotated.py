"""Images with annotations: COCO, YOLO, Label Studio and FiftyOne, as a file or as a folder."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from rmadapter.data.formats import coco, fiftyone, label_studio, yolo
from rmadapter.data.formats.annotations import Marks, rows_of
from rmadapter.data.formats.base import (
    Inputs,
    ReadOptions,
    Source,
    count_unlisted,
    ignored_note,
    search,
)
from rmadapter.errors import UserError
from rmadapter.support.files import cache_folder, read_json

HAS_BOXES = True
HAS_COLUMNS = False
YAML = (".yaml", ".yml")
SUFFIXES = (".json", *YAML)
LARGEST = 2**29  # most bytes of a JSON file of labels; COCO's train2017 is smaller
UNREAD = ("segmentation", "mask", "rle")  # most of a COCO file; dropped while reading


def detects(path: Path) -> bool:
    if not os.path.isdir(path):
        return path.suffix.lower() in SUFFIXES and os.path.isfile(path)
    return bool(yolo.yaml_file(path) or coco.json_files(path) or fiftyone.is_export(path))


def read(path: Path, options: ReadOptions) -> Source:
    marks = marks_of(path, options.outside)
    root = image_root(path)
    ignored: Counter[str] = Counter()
    splits = {name: rows_of(part, root, options.crops, ignored) for name, part in marks.items()}
    splits = {name: rows for name, rows in splits.items() if rows}
    if not splits:
        note = ignored_note(ignored) or "nor any others"
        raise UserError(f"{root}: no labelled images ({note})")
    if path.is_dir():
        count_unlisted(root, {image for part in marks.values() for image in part}, ignored)
    home = path if path.is_dir() else path.parent
    if options.crops:
        return Source(cache_folder() / "crops", splits, ignored, home)
    return Source(root, splits, ignored)


def image_root(path: Path) -> Path:
    if os.path.isdir(path):
        return path
    return path.parent.parent if path.parent.name == "annotations" else path.parent


def list_images(path: Path, options: ReadOptions) -> Inputs:
    if path.is_dir():
        return search(path)
    marks = marks_of(path, options.outside)
    return Inputs(list(dict.fromkeys(image for part in marks.values() for image in part)))


def marks_of(path: Path, outside: bool = False) -> dict[str, Marks]:
    """Return split -> images with their annotations. Raises UserError for broken files."""
    if not path.is_dir():
        yaml = path.suffix.lower() in YAML
        return yolo.read_yolo(path, outside) if yaml else _json_marks(path, outside)
    data = yolo.yaml_file(path)
    if data:
        return yolo.read_yolo(data, outside)
    files = coco.split_files(path)
    if files:
        marks = {}
        for split, file in files.items():
            for part in _json_marks(file, outside).values():
                marks[split] = part
        return marks
    if fiftyone.is_classification(path):
        return _json_marks(path / fiftyone.LABELS, outside)
    if (path / fiftyone.SAMPLES).is_file():
        return _json_marks(path / fiftyone.SAMPLES, outside)
    samples = [read_json(file, LARGEST, UNREAD) for file in fiftyone.sample_files(path)]
    return fiftyone.read_samples(path / "samples", {"samples": samples}, outside)


def _json_marks(file: Path, outside: bool) -> dict[str, Marks]:
    size = os.path.getsize(file) if os.path.isfile(file) else 0
    if size > LARGEST:
        raise UserError(
            f"{file}: has {size:,} bytes, and labels may have {LARGEST:,}; leave out what is not "
            f"needed, as with `jq -c 'del(.annotations[].segmentation)' {file.name} > small.json`"
        )
    value = read_json(file, LARGEST, UNREAD)
    if coco.is_coco(value):
        return {"all": coco.read_coco(file, value, outside)}
    if fiftyone.is_fiftyone(value):
        return {"all": fiftyone.read_fiftyone(file, value)}
    if fiftyone.is_samples(value):
        return fiftyone.read_samples(file, value, outside)
    if label_studio.is_label_studio(value):
        return {"all": label_studio.read_label_studio(file, value, outside)}
    what = "not a COCO file, a Label Studio export, or FiftyOne's labels.json or samples.json"
    raise UserError(f"{file}: {what}")
