"""COCO's JSON: images, annotations and categories (cocodataset.org/#format-data), also from
Roboflow and FiftyOne.

An annotation without a box labels the whole image.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from rmadapter.data.decode import image_size
from rmadapter.data.formats.base import Mark, Marks, Row, Rows, listed_image, parsing
from rmadapter.data.names import SPLITS, order, split_named
from rmadapter.errors import UserError, quoted
from rmadapter.support.files import JsonObject, path_from, write_json

SAMPLE_IMAGES = 20  # by which the folder of images is recognised


def is_coco(value: object) -> bool:
    """Return whether a parsed file is one of COCO's."""
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
            raise UserError(
                f"{folder}: {other.name} and {file.name} are both for the split {split!r}: keep one"
            )
    return files


def read_coco(path: Path, value: JsonObject, outside: bool = False) -> Marks:
    """Return the images in the order of the file.

    Raises:
        UserError: A malformed file, duplicate ids, annotations of unlisted images or categories, or
            paths that leave the folder unless `outside` is set.
    """
    with parsing(path, "a COCO file"):
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
            files[number] = listed_image(base, where, str(row["file_name"]), outside)
        marks: Marks = {file: [] for file in files.values()}
        for number, row in enumerate(value["annotations"]):
            where = f"{path}: annotation {quoted(row.get('id', number))}"
            image = row["image_id"]
            category = row["category_id"]
            for what, key, known in (("image", image, images), ("category", category, names)):
                if key not in known:
                    raise UserError(
                        f"{where} refers to {what} {quoted(key)}, which the file does not list"
                    )
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
    tried = names[:SAMPLE_IMAGES]  # one may be missing
    return max(places, key=lambda place: sum(os.path.exists(place / name) for name in tried))


# Writing


def write(splits: Mapping[str, Rows], out: Path, home: Path) -> None:
    """Write a COCO file of images without splits, with a box around each whole image.

    Args:
        splits: Split -> rows.
        out: The file.
        home: The folder that paths are relative to.

    Raises:
        UserError: An image is unreadable.
    """
    write_json(out, coco_json([row for rows in splits.values() for row in rows], home))


def coco_json(rows: Sequence[Row], home: Path) -> JsonObject:
    """Return the content of a COCO file; arguments as for `write`."""
    labels = sorted({row.label for row in rows}, key=order)
    numbers = {label: number for number, label in enumerate(labels, 1)}
    images, annotations = [], []
    for number, row in enumerate(rows, 1):
        width, height = image_size(row.image)
        name = path_from(home, row.image)
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        annotation = {
            "id": number,
            "image_id": number,
            "category_id": numbers[row.label],
            "iscrowd": 0,
            "bbox": [0, 0, width, height],
            "area": width * height,
            "segmentation": [],
        }
        annotations.append(annotation)
    categories = [{"id": number, "name": label} for label, number in numbers.items()]
    return {"images": images, "annotations": annotations, "categories": categories}
