"""Images with annotations: COCO, YOLO, Label Studio and FiftyOne, as a file or as a folder.

The labels of whole images, or boxes that are cut out of them.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image

from rmadapter.data.budget import Budget
from rmadapter.data.decode import ORIENTATION_TAG, image_size, load_image
from rmadapter.data.formats import coco, fiftyone, label_studio, yolo
from rmadapter.data.formats.base import (
    UNLABELLED,
    Format,
    Inputs,
    Listing,
    Mark,
    Marks,
    Parsed,
    ReadOptions,
    Row,
    Rows,
    count_unlisted,
    ignored_note,
    search,
)
from rmadapter.data.names import listed_label, only_label
from rmadapter.errors import UserError, quoted
from rmadapter.support.files import (
    atomic,
    cache_folder,
    read_json,
    relative_path,
    shortened,
    state_of,
)

YAML_SUFFIXES = (".yaml", ".yml")
SUFFIXES = (".json", *YAML_SUFFIXES)
MAX_JSON_BYTES = 2**29  # of a file of labels; COCO's train2017 is smaller
UNREAD_KEYS = ("segmentation", "mask", "rle")  # most of a COCO file; dropped while reading
Box: TypeAlias = tuple[float, float, float, float]  # left, top, right, bottom; of 0 to 1
UPRIGHT: dict[int, Callable[[float, float, float, float], Box]] = {
    1: lambda left, top, right, bottom: (left, top, right, bottom),
    5: lambda left, top, right, bottom: (top, left, bottom, right),
    6: lambda left, top, right, bottom: (1 - bottom, left, 1 - top, right),
    7: lambda left, top, right, bottom: (1 - bottom, 1 - right, 1 - top, 1 - left),
    8: lambda left, top, right, bottom: (top, 1 - right, bottom, 1 - left),
}  # the other orientations keep the size, from which they cannot be recognised


def detects(path: Path) -> bool:
    if not os.path.isdir(path):
        return path.suffix.lower() in SUFFIXES and os.path.isfile(path)
    return bool(yolo.yaml_file(path) or coco.json_files(path) or fiftyone.is_export(path))


def read(path: Path, options: ReadOptions) -> Listing:
    """List the labelled images, or the boxes in them. Raises UserError for broken data."""
    marks = marks_of(path, options.budget, options.outside)
    root = image_root(path)
    ignored: Counter[str] = Counter()
    cutting = options.budget if options.crops else None
    splits = {name: rows_of(part, root, cutting, ignored) for name, part in marks.items()}
    splits = {name: rows for name, rows in splits.items() if rows}
    if not splits:
        note = ignored_note(ignored) or "nor any others"
        raise UserError(f"{root}: no labelled images ({note})")
    if path.is_dir():
        count_unlisted(root, (image for part in marks.values() for image in part), ignored)
    if options.crops:
        home = path if path.is_dir() else path.parent
        return Listing(cache_folder() / "crops", splits, ignored, home)
    return Listing(root, splits, ignored)


def image_root(path: Path) -> Path:
    if os.path.isdir(path):
        return path
    return path.parent.parent if path.parent.name == "annotations" else path.parent


def list_images(path: Path, options: ReadOptions) -> Inputs:
    if path.is_dir():
        return search(path)
    marks = marks_of(path, options.budget, options.outside)
    return Inputs(list(dict.fromkeys(image for part in marks.values() for image in part)))


def marks_of(path: Path, budget: Budget, outside: bool = False) -> dict[str, Marks]:
    """Return split -> images with their annotations. Raises UserError for broken files."""
    if not path.is_dir():
        yaml = path.suffix.lower() in YAML_SUFFIXES
        return yolo.read_yolo(path, budget, outside) if yaml else _json_marks(path, budget, outside)
    data = yolo.yaml_file(path)
    if data:
        return yolo.read_yolo(data, budget, outside)
    files = coco.split_files(path)
    if files:
        marks = {}
        for split, file in files.items():
            for part in _json_marks(file, budget, outside).values():
                marks[split] = part
        return marks
    if fiftyone.is_classification(path):
        return _json_marks(path / fiftyone.LABELS, budget, outside)
    if (path / fiftyone.SAMPLES).is_file():
        return _json_marks(path / fiftyone.SAMPLES, budget, outside)
    samples = [_read_json(file, budget) for file in fiftyone.sample_files(path)]
    return fiftyone.read_samples(path / "samples", {"samples": samples}, outside)


def _read_json(file: Path, budget: Budget) -> Any:
    return read_json(
        file, MAX_JSON_BYTES, UNREAD_KEYS, lambda size: budget.take("memory", size, file)
    )


def _json_marks(file: Path, budget: Budget, outside: bool) -> dict[str, Marks]:
    size = os.path.getsize(file) if os.path.isfile(file) else 0
    if size > MAX_JSON_BYTES:
        raise UserError(
            f"{file}: has {size:,} bytes, and labels may have {MAX_JSON_BYTES:,}; leave out what "
            f"is not needed, as with `jq -c 'del(.annotations[].segmentation)' {file.name} > "
            "small.json`"
        )
    value = _read_json(file, budget)
    if coco.is_coco(value):
        return {"all": coco.read_coco(file, value, outside)}
    if fiftyone.is_fiftyone(value):
        return {"all": fiftyone.read_fiftyone(file, value)}
    if fiftyone.is_samples(value):
        return fiftyone.read_samples(file, value, outside)
    if label_studio.is_label_studio(value):
        return {"all": label_studio.read_label_studio(file, value, outside)}
    raise UserError(
        f"{file}: not a COCO file, a Label Studio export, or FiftyOne's labels.json or samples.json"
    )


def rows_of(
    marks: Mapping[Path, Sequence[Mark]], root: Path, cutting: Budget | None, ignored: Counter[str]
) -> Rows:
    """Return rows of the images in order.

    Args:
        marks: Annotations by image.
        root: The folder that names of images are relative to.
        cutting: The budget for boxes, which then replace the images, grouped by image; None for
            whole images.
        ignored: Counts images without a label, and labels without a box.

    Raises:
        UserError: An invalid class name or box, or without `cutting` an image with several labels.
    """
    rows: Rows = []
    for image, labels in marks.items():
        if not labels:
            ignored[UNLABELLED] += 1
        elif cutting:
            rows += _crop_rows(image, labels, root, cutting, ignored)
        else:
            names = [listed_label(mark.label, mark.where) for mark in labels]
            rows.append(Row(only_label(names, str(image)) or "", image))
    ignored += Counter()  # drops zero counts
    return rows


def _crop_rows(
    image: Path, marks: Sequence[Mark], root: Path, budget: Budget, ignored: Counter[str]
) -> Rows:
    for mark in marks:
        if not isinstance(mark.box, (list, tuple)):
            raise UserError(f"{mark.where}: the box {quoted(mark.box)} is not a list of numbers")
    boxed = [mark for mark in marks if len(mark.box)]
    ignored["labels without a box"] += len(marks) - len(boxed)
    solid = [mark for mark in boxed if 0 not in mark.box[2:]]
    ignored["boxes without width or height"] += len(boxed) - len(solid)
    labels = [listed_label(mark.label, mark.where) for mark in solid]
    turn = UPRIGHT[_orientation(image, solid[0].size) if solid else 1]
    crops = cut(image, [turn(*_shares(mark)) for mark in solid], budget)
    group = relative_path(image, root)
    return [Row(label, crop, group) for label, crop in zip(labels, crops, strict=True)]


def _orientation(image: Path, size: Parsed) -> int:
    """Return the orientation in a JPEG's EXIF if its boxes, by the size they are for, are of the
    pixels as stored; 1 if of the upright image."""
    with suppress(Exception):  # an unreadable file is reported later
        if os.path.isfile(image):
            with Image.open(image, formats=["JPEG", "MPO"]) as photo:  # reads the header alone
                if photo.width != photo.height and photo.size == tuple(map(float, size)):
                    turn = photo.getexif().get(ORIENTATION_TAG, 1)
                    return int(turn) if turn in UPRIGHT else 1
    return 1


def _shares(mark: Mark) -> Box:
    """Return left, top, right and bottom as fractions of the image, clipped to it. Raises UserError
    for an empty box."""
    with suppress(TypeError, ValueError, OverflowError):
        left, top, width, height = (float(value) for value in mark.box)
        across, down = (float(value) for value in mark.size)
        finite = all(map(math.isfinite, (left, top, width, height, across, down)))
        if finite and min(width, height, across, down) > 0:
            corners = (left / across, top / down, (left + width) / across, (top + height) / down)
            x1, y1, x2, y2 = (min(max(share, 0.0), 1.0) for share in corners)
            if x1 < x2 and y1 < y2:
                return x1, y1, x2, y2
    box = quoted(list(mark.box))
    size = " x ".join(str(side)[:20] for side in mark.size)
    raise UserError(
        f"{mark.where}: the box {box} (left, top, width, height) covers nothing in an image of "
        f"{size}"
    )


def cut(image: Path, boxes: Sequence[Box], budget: Budget) -> list[Path]:
    """Return the paths of the cut-out boxes, PNG files in the cache, made if missing.

    For an unreadable image return its own path for every box, to be reported as a bad file.

    Raises:
        UserError: More pixels or bytes than the budget allows.
    """
    try:
        facts = os.stat(image)
        size = image_size(image)
    except (UserError, OSError, ValueError):  # ValueError: a NUL in its name
        return [image] * len(boxes)
    budget.allow_photo(size[0] * size[1], facts.st_size)
    crops: list[Path] = []
    photo: Image.Image | None = None
    for box in boxes:
        left, top, right, bottom = _pixels(box, size)
        budget.take("pixels", (right - left) * (bottom - top), image)
        word = f"{image.resolve()} {state_of(facts)} {box}"
        key = hashlib.sha256(word.encode(errors="surrogateescape")).hexdigest()[:24]
        path = cache_folder() / "crops" / key[:2] / f"{shortened(image.stem)}-{key}.png"
        if not path.exists():
            try:
                photo = load_image(image) if photo is None else photo
            except UserError:
                return [image] * len(boxes)
            file = io.BytesIO()
            photo.crop(_pixels(box, photo.size)).save(file, "PNG", compress_level=1)
            budget.take("disk", file.tell(), image)
            with atomic(path, sync=False) as temporary:
                temporary.write_bytes(file.getbuffer())
        else:
            budget.take("disk", path.stat().st_size, image)
        crops.append(path)
    return crops


def _pixels(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom in pixels of an image of width and height `size`, at least
    one pixel apart."""
    sides = (*size, *size)
    left, top, right, bottom = (round(x * side) for x, side in zip(box, sides, strict=True))
    left = min(left, size[0] - 1)
    top = min(top, size[1] - 1)
    return left, top, max(right, left + 1), max(bottom, top + 1)


FORMAT = Format(
    "annotations",
    detects,
    read,
    list_images,
    image_root,
    suffixes=SUFFIXES,
    has_boxes=True,
)
