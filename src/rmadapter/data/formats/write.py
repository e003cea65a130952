"""Write labelled images in formats that other programs read: a table, COCO, Label Studio, or a
folder of class folders. The readers of this package read all of them back."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from rmadapter.data.decode import open_header, reading
from rmadapter.data.formats.base import CLASSNAMES, Row, Rows, order
from rmadapter.data.names import default_name
from rmadapter.errors import UserError, did_you_mean
from rmadapter.support.files import (
    JsonObject,
    atomic,
    check_new,
    csv_text,
    folder_name,
    inert_path,
    path_from,
    plain_file,
    write_json,
    write_text,
)
from rmadapter.support.locks import staged_folder

FOLDERS = "folders"
SUFFIXES = {"csv": ".csv", "coco": ".json", "label-studio": ".json", FOLDERS: ""}
LOCAL = "/data/local-files/?d="  # of Label Studio: a path below its folder of local files


def write_labels(
    splits: Mapping[str, Rows],
    to: str,
    out: Path,
    home: Path | None = None,
    replace: bool = False,
) -> int:
    """Write rows to a file or folder, and return the number of images.

    Args:
        splits: Rows by split, as in `Source`.
        to: A key of SUFFIXES.
        out: New file, or for class folders a new folder or a .zip.
        home: Folder that paths in a file are relative to, by default the file's own.
        replace: Whether a file may be replaced.

    Raises:
        UserError: An unknown format, a file of another suffix, or one that exists; several splits
            for COCO and Label Studio, which have none here; an unreadable image.
    """
    if to not in SUFFIXES:
        raise UserError(f"--to {to!r:.80}: unknown{did_you_mean(to, SUFFIXES)}")
    suffix = SUFFIXES[to]
    if suffix and out.suffix.lower() != suffix:
        raise UserError(f"{out}: give --out a name that ends in {suffix}")
    if not replace:
        check_new(out)
    home = home or out.parent
    rows = [row for part in splits.values() for row in part]
    if to == FOLDERS and out.suffix.lower() == ".zip":
        with atomic(out) as part:
            _zip_folders(splits, part)
    elif to == FOLDERS:
        _write_folders(splits, out)
    elif to == "csv":
        write_text(out, table(splits, home))
    elif len(splits) > 1:
        raise UserError(f"--to {to}: one file has no splits; write them as csv or {FOLDERS}")
    else:
        write_json(out, coco(rows, home) if to == "coco" else label_studio(rows, home))
    return len(rows)


def table(splits: Mapping[str, Rows], home: Path) -> str:
    """Return a CSV table of path and label, and of split and group if there are any. home: the
    folder that paths are relative to, as in all of these."""
    has_splits = "all" not in splits
    has_groups = any(row.group for rows in splits.values() for row in rows)
    header = ["path", "label", *["split"] * has_splits, *["group"] * has_groups]
    lines = [
        [
            inert_path(path_from(home, row.image)), row.label,
            *[split] * has_splits, *[row.group] * has_groups,
        ]
        for split, rows in splits.items()
        for row in rows
    ]  # fmt: skip
    return csv_text(header, lines)


def coco(rows: Sequence[Row], home: Path) -> JsonObject:
    """Return the content of a COCO file, with a box around each whole image. Raises UserError for
    an unreadable image."""
    labels = _labels(rows)
    number = {label: i for i, label in enumerate(labels, 1)}
    images, annotations = [], []
    for i, row in enumerate(rows, 1):
        width, height = _size(row.image)
        name = path_from(home, row.image)
        images.append({"id": i, "file_name": name, "width": width, "height": height})
        annotations.append({
            "id": i, "image_id": i, "category_id": number[row.label], "iscrowd": 0,
            "bbox": [0, 0, width, height], "area": width * height, "segmentation": [],
        })  # fmt: skip
    categories = [{"id": number[label], "name": label} for label in labels]
    return {"images": images, "annotations": annotations, "categories": categories}


def label_studio(rows: Sequence[Row], home: Path) -> list[JsonObject]:
    """Return tasks of Label Studio with one choice each, for a template of image classification."""
    tasks = []
    for i, row in enumerate(rows, 1):
        choice = {
            "from_name": "choice", "to_name": "image", "type": "choices",
            "value": {"choices": [row.label]},
        }  # fmt: skip
        image = LOCAL + quote(path_from(home, row.image))
        tasks.append({"id": i, "data": {"image": image}, "annotations": [{"result": [choice]}]})
    return tasks


def placed(splits: Mapping[str, Rows]) -> Iterator[tuple[str, Path]]:
    """Yield where each image goes in a folder of class folders, below folders of splits if there
    are any, and the image. Names are unique and valid on any system."""
    folders = _class_folders([row for rows in splits.values() for row in rows])
    taken: set[str] = set()
    for split, rows in splits.items():
        for row in rows:
            stem, suffix = folder_name(row.image.stem), row.image.suffix
            parts = [*([] if split == "all" else [split]), folders[row.label]]
            place = "/".join([*parts, f"{stem}{suffix}"])
            turn = 1
            while place.casefold() in taken:
                turn += 1
                place = "/".join([*parts, f"{stem}-{turn}{suffix}"])
            taken.add(place.casefold())
            yield place, row.image


def names_of_folders(splits: Mapping[str, Rows]) -> dict[str, str]:
    """Return the content of classnames.json: the names of the classes whose folders do not say
    them."""
    folders = _class_folders([row for rows in splits.values() for row in rows])
    return {
        folder: default_name(label)
        for label, folder in folders.items()
        if default_name(label) != default_name(folder)
    }


def _zip_folders(splits: Mapping[str, Rows], file: Path) -> None:
    """Write a zip of class folders. Raises UserError for a missing image."""
    with zipfile.ZipFile(file, "w", strict_timestamps=False) as archive:  # images are compressed
        for place, image in placed(splits):
            with reading(str(image)):
                archive.write(image, place)
        names = names_of_folders(splits)
        if names:
            archive.writestr(CLASSNAMES, json.dumps(names, ensure_ascii=False))


def _write_folders(splits: Mapping[str, Rows], out: Path) -> None:
    with staged_folder(out) as folder:
        for place, image in placed(splits):
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(image, folder / place)
        names = names_of_folders(splits)
        if names:
            write_json(folder / CLASSNAMES, names)


def _class_folders(rows: Sequence[Row]) -> dict[str, str]:
    """Return the folder of each label."""
    folders: dict[str, str] = {}
    taken: set[str] = set()
    for label in _labels(rows):
        first = folder = folder_name(label).lstrip(".") or "_"
        turn = 1
        while folder.casefold() in taken:
            turn += 1
            folder = f"{first}-{turn}"
        taken.add(folder.casefold())
        folders[label] = folder
    return folders


def _labels(rows: Sequence[Row]) -> list[str]:
    return sorted({row.label for row in rows}, key=order)


def _size(image: Path) -> tuple[int, int]:
    """Return width and height as the file says, before it is turned by its EXIF tag."""
    with reading(str(image)), plain_file(image) as file:
        return open_header(file).size
