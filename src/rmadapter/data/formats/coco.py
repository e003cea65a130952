"""COCO's JSON: images, annotations and categories (cocodataset.org/#format-data), also from
Roboflow and FiftyOne.

An annotation without a box labels the whole image.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rmadapter.data.decode_limits import listed_image
from rmadapter.data.formats.annotations import Mark, Marks, shaped
from rmadapter.data.formats.scan import SPLITS, split_named
from rmadapter.errors import UserError, quoted

KIND = "a COCO file"
TRIED = 20  # images by which their folder is found


def is_coco(value: Any) -> bool:
    return isinstance(value, dict) and {"images", "annotations", "categories"} <= value.keys()


def coco_files(folder: Path) -> dict[str, Path]:
    """Split -> annotation file of a folder laid out like COCO
    (annotations/instances_train2017.json) or a Roboflow export (train/_annotations.coco.json).
    Raises UserError for two files of one split."""
    found: dict[str, Path] = {}
    files = sorted((folder / "annotations").glob("instances_*.json"))
    files += [
        file
        for file in sorted(folder.glob("*/_annotations.coco.json"))
        if file.parent.name.casefold() in SPLITS
    ]
    files += sorted(folder.glob("_annotations.coco.json"))
    for file in files:
        split = split_named(
            file.parent.name if file.name.startswith("_") and file.parent != folder else file.stem
        )
        if (other := found.setdefault(split, file)) is not file:
            raise UserError(
                f"{folder}: {other.name} and {file.name} are both for the split {split!r}: keep one"
            )
    return found


def read_coco(path: Path, value: Mapping[str, Any], outside: bool = False) -> Marks:
    """The images in the order of the file. Raises UserError for a malformed file, duplicate ids,
    annotations of unlisted images or categories, and paths that leave the folder unless `outside`
    is set."""
    with shaped(path, KIND):
        names: dict[Any, str] = {}
        for row in value["categories"]:
            if names.setdefault(row["id"], str(row["name"])) != str(row["name"]):
                raise UserError(f"{path}: two categories have the id {quoted(row['id'])}")
        listed: dict[Any, Mapping[str, Any]] = {}
        for row in value["images"]:
            if listed.setdefault(row["id"], row) is not row:
                raise UserError(f"{path}: two images have the id {quoted(row['id'])}")
        base = _base(path, [str(row["file_name"]) for row in listed.values()])
        files = {
            number: listed_image(
                base / path.name, f"{path}: image {quoted(number)}", str(row["file_name"]), outside
            )
            for number, row in listed.items()
        }
        marks: Marks = {file: [] for file in files.values()}
        for number, row in enumerate(value["annotations"]):
            where = f"{path}: annotation {quoted(row.get('id', number))}"
            image, category = row["image_id"], row["category_id"]
            if image not in listed or category not in names:
                what = (
                    f"image {quoted(image)}"
                    if image not in listed
                    else f"category {quoted(category)}"
                )
                raise UserError(f"{where} refers to {what}, which the file does not list")
            crowd = row.get("iscrowd")  # its box surrounds many objects
            box, sides = () if crowd else row.get("bbox") or (), listed[image]
            if not isinstance(box, (list, tuple)):
                raise UserError(f"{where}: bbox {quoted(box)} is not a list of four numbers")
            size = (sides.get("width"), sides.get("height"))
            marks[files[image]].append(Mark(names[category], where, box, size))
    return marks


def _base(path: Path, names: list[str]) -> Path:
    """The folder that file names are relative to: that of the file, or where COCO and FiftyOne put
    images."""
    home, split = path.parent, path.stem.rpartition("_")[2]
    places = [home, home / "images", home / "data"]
    if home.name == "annotations":
        places += [
            home.parent / split,
            home.parent / "images" / split,
            home.parent / "images",
            home.parent,
        ]
    some = names[:TRIED]  # one may be missing
    return max(places, key=lambda place: sum(os.path.exists(place / name) for name in some))
