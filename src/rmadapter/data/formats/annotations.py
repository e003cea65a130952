"""From annotations of images, each a class with or without a box, to labels of images or of
cut-out boxes."""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from PIL import Image

from rmadapter.data.decode import ORIENTATION, load_image
from rmadapter.data.formats.base import Row, Rows, only_label
from rmadapter.errors import UserError, is_text, quoted
from rmadapter.support.files import atomic, cache_folder, shortened

Box: TypeAlias = tuple[float, float, float, float]  # left, top, right, bottom; of 0 to 1
UPRIGHT: dict[int, Callable[[float, float, float, float], Box]] = {
    1: lambda left, top, right, bottom: (left, top, right, bottom),
    5: lambda left, top, right, bottom: (top, left, bottom, right),
    6: lambda left, top, right, bottom: (1 - bottom, left, 1 - top, right),
    7: lambda left, top, right, bottom: (1 - bottom, 1 - right, 1 - top, 1 - left),
    8: lambda left, top, right, bottom: (top, 1 - right, bottom, 1 - left),
}  # the other orientations keep the size, from which they cannot be recognised
UNLABELLED = "images without a label"
MOST = 1000  # characters of a class name


class Mark(NamedTuple):
    """One annotation. label: class name. where: its place, for messages. box: left, top, width,
    height. size: width and height of the whole image, in the unit of the box."""

    label: str
    where: str
    box: Sequence[Any] = ()
    size: Sequence[Any] = (1, 1)


Marks: TypeAlias = dict[Path, list[Mark]]  # includes listed images without annotations


@contextmanager
def parsing(path: Path, kind: str) -> Iterator[None]:
    """Convert errors of missing or malformed values of a parsed file into a UserError."""
    try:
        yield
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = f"{type(error).__name__}: {quoted(str(error))}"
        raise UserError(f"{path}: not {kind} ({reason})") from None


def rows_of(
    marks: Mapping[Path, Sequence[Mark]], root: Path, crops: bool, ignored: Counter[str]
) -> Rows:
    """Return rows of the images in order; with `crops`, of their boxes, grouped by image (its path
    relative to `root`).

    ignored: counts images without a label, and labels without a box. Raises UserError for an
    invalid class name or box, and without `crops` for an image with several labels.
    """
    rows: Rows = []
    for image, labels in marks.items():
        if not labels:
            ignored[UNLABELLED] += 1
        elif crops:
            rows += _crop_rows(image, labels, root, ignored)
        else:
            names = [class_name(mark.label, mark.where) for mark in labels]
            rows.append(Row(only_label(names, str(image)) or "", image))
    ignored += Counter()  # drops zero counts
    return rows


def _crop_rows(image: Path, marks: Sequence[Mark], root: Path, ignored: Counter[str]) -> Rows:
    boxed = [mark for mark in marks if len(mark.box)]
    ignored["labels without a box"] += len(marks) - len(boxed)
    solid = [mark for mark in boxed if 0 not in mark.box[2:]]
    ignored["boxes without width or height"] += len(boxed) - len(solid)
    labels = [class_name(mark.label, mark.where) for mark in solid]
    turn = UPRIGHT[_orientation(image, solid[0].size) if solid else 1]
    crops = cut(image, [turn(*_shares(mark)) for mark in solid])
    group = Path(os.path.relpath(image, root)).as_posix()
    return [Row(label, crop, group) for label, crop in zip(labels, crops, strict=True)]


def _orientation(image: Path, size: Sequence[Any]) -> int:
    """Return the orientation in a JPEG's EXIF if its boxes, by the size they are for, are of the
    pixels as stored; 1 if of the upright image."""
    with suppress(Exception):  # an unreadable file is reported later
        if os.path.isfile(image):
            with Image.open(image, formats=["JPEG", "MPO"]) as photo:  # reads the header alone
                if photo.width != photo.height and photo.size == tuple(map(float, size)):
                    turn = photo.getexif().get(ORIENTATION, 1)
                    return int(turn) if turn in UPRIGHT else 1
    return 1


def class_name(name: str, where: str) -> str:
    """Return a class name from an annotation file, stripped. Raises UserError if it is invalid."""
    if not name.strip() or len(name) > MOST or not is_text(name):
        advice = f"use plain text of 1 to {MOST} characters"
        raise UserError(f"{where}: {quoted(name)} is not a class name: {advice}")
    return name.strip()


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
    what = f"the box {box} (left, top, width, height) covers nothing in an image of {size}"
    raise UserError(f"{mark.where}: {what}")


def cut(image: Path, boxes: Sequence[Box]) -> list[Path]:
    """Return the paths of the cut-out boxes, PNG files in the cache, made if missing. For an
    unreadable image return its own path for every box, to be reported as a bad file."""
    try:
        facts = os.stat(image)
    except (OSError, ValueError):  # ValueError: a NUL in its name
        return [image] * len(boxes)
    crops: list[Path] = []
    photo: Image.Image | None = None
    for box in boxes:
        word = f"{image.resolve()} {facts.st_size} {facts.st_mtime_ns} {box}"
        key = hashlib.sha256(word.encode(errors="surrogateescape")).hexdigest()[:24]
        path = cache_folder() / "crops" / key[:2] / f"{shortened(image.stem)}-{key}.png"
        if not path.exists():
            try:
                photo = load_image(image) if photo is None else photo
            except UserError:
                return [image] * len(boxes)
            with atomic(path, sync=False) as temporary:
                photo.crop(_pixels(box, photo)).save(temporary, "PNG", compress_level=1)
        crops.append(path)
    return crops


def _pixels(box: Box, photo: Image.Image) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom in pixels, at least one pixel apart."""
    sides = (*photo.size, *photo.size)
    left, top, right, bottom = (round(x * side) for x, side in zip(box, sides, strict=True))
    left = min(left, photo.width - 1)
    top = min(top, photo.height - 1)
    return left, top, max(right, left + 1), max(bottom, top + 1)
