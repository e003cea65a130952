"""COCO's JSON: images, annotations and categories (cocodataset.org/#format-data), also from
Roboflow and FiftyOne.

An annotation without a box labels the whole image.
"""

from __future__ import annotations

import os
from pathlib import Path

from rmadapter.data.formats.base import SPLITS, Mark, Marks, listed_image, parsing, split_named
from rmadapter.errors import UserError, quoted
from rmadapter.support.files import JsonObject

KIND = "a COCO file"
TRIED = 20  # images by which their folder is recognised


def is_coco(value: object) -> bool:
    return isinstance(value, dict) and {"images", "annotations", "categories"} <= value.keys()


def json_files(folder: Path) -> list[Path]:
    """Return the annotation files of a folder laid out like COCO
    (annotations/instances_train2017.json) or a Roboflow export (train/_annotations.coco.json)."""
    exports = sorted(folder.glob("*/_annotations.coco.json"))
    return [
        *sorted((folder / "annotations").glob("instances_*.json")),
        *(file for file in exports if file.parent.name.casefold() in SPLITS),
        *folder.glob("_annotations.coco.json"),
    ]


def split_files(folder: Path) -> dict[str, Path]:
    """Return split -> annotation file of a folder. Raises UserError for two files of one split."""
    files: dict[str, Path] = {}
    for file in json_files(folder):
        export = file.name.startswith("_") and file.parent != folder
        split = split_named(file.parent.name if export else file.stem)
        other = files.setdefault(split, file)
        if other is not file:
            both = f"{other.name} and {file.name}"
            raise UserError(f"{folder}: {both} are both for the split {split!r}: keep one")
    return files


def read_coco(path: Path, value: JsonObject, outside: bool = False) -> Marks:
    """Return the images in the order of the file. Raises UserError for a malformed file, duplicate
    ids, annotations of unlisted images or categories, and paths that leave the folder unless
    `outside` is set."""
    with parsing(path, KIND):
        names: dict[object, str] = {}
        for row in value["categories"]:
            if names.setdefault(row["id"], str(row["name"])) != str(row["name"]):
                raise UserError(f"{path}: two categories have the id {quoted(row['id'])}")
        images: dict[object, JsonObject] = {}
        for row in value["images"]:
            if images.setdefault(row["id"], row) is not row:
                raise UserError(f"{path}: two images have the id {quoted(row['id'])}")
        base = _base(path, [str(row["file_name"]) for row in images.values()])
        files: dict[object, Path] = {}
        for number, row in images.items():
            where = f"{path}: image {quoted(number)}"
            files[number] = listed_image(base / path.name, where, str(row["file_name"]), outside)
        marks: Marks = {file: [] for file in files.values()}
        for number, row in enumerate(value["annotations"]):
            where = f"{path}: annotation {quoted(row.get('id', number))}"
            image = row["image_id"]
            category = row["category_id"]
            for what, key, known in (("image", image, images), ("category", category, names)):
                if key not in known:
                    unknown = f"{what} {quoted(key)}"
                    raise UserError(f"{where} refers to {unknown}, which the file does not list")
            crowd = row.get("iscrowd")  # its box surrounds many objects
            box = () if crowd else row.get("bbox") or ()
            if not isinstance(box, (list, tuple)):
                raise UserError(f"{where}: bbox {quoted(box)} is not a list of four numbers")
            size = (images[image].get("width"), images[image].get("height"))
            marks[files[image]].append(Mark(names[category], where, box, size))
    return marks


def _base(path: Path, names: list[str]) -> Path:
    """Return the folder that file names are relative to: the file's own, or where COCO and FiftyOne
    put images."""
    home = path.parent
    places = [home, home / "images", home / "data"]
    if home.name == "annotations":
        split = path.stem.rpartition("_")[2]
        images = home.parent / "images"
        places += [home.parent / split, images / split, images, home.parent]
    tried = names[:TRIED]  # one may be missing
    return max(places, key=lambda place: sum(os.path.exists(place / name) for name in tried))
