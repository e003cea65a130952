"""Annotations of images, each a class with or without a box, become labels of images or of cut-out
boxes."""

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

from rmadapter.data.decode import load_image
from rmadapter.data.formats.scan import Row, Rows, only_label
from rmadapter.errors import UserError, is_text, quoted
from rmadapter.support.files import atomic, cache_folder, shortened

ORIENTATION = 0x0112  # tag of EXIF
UPRIGHT: dict[int, Callable[[float, float, float, float], tuple[float, float, float, float]]] = {
    1: lambda left, top, right, bottom: (left, top, right, bottom),
    5: lambda left, top, right, bottom: (top, left, bottom, right),
    6: lambda left, top, right, bottom: (1 - bottom, left, 1 - top, right),
    7: lambda left, top, right, bottom: (1 - bottom, 1 - right, 1 - top, 1 - left),
    8: lambda left, top, right, bottom: (top, 1 - right, bottom, 1 - left),
}  # the other orientations keep the size, and so nothing tells
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
def shaped(path: Path, kind: str) -> Iterator[None]:
    """Turn errors from missing or malformed values of a parsed file into a UserError."""
    try:
        yield
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{path}: not {kind} ({type(error).__name__}: {quoted(str(error))})"
        ) from None


def rows_of(
    marks: Mapping[Path, Sequence[Mark]], root: Path, crops: bool, ignored: Counter[str]
) -> Rows:
    """Rows of the images in order; with `crops`, of their boxes, grouped by image (its path
    relative to `root`).

    ignored: counts images without a label, and labels without a box. Raises UserError for an
    invalid class name or box, and without `crops` for an image with several labels.
    """
    rows: Rows = []
    for image, own in marks.items():
        if not own:
            ignored[UNLABELLED] += 1
        elif crops:
            some = [mark for mark in own if len(mark.box)]
            boxed = [mark for mark in some if 0 not in mark.box[2:]]
            ignored["labels without a box"] += len(own) - len(some)
            ignored["boxes without width or height"] += len(some) - len(boxed)
            labels = [class_name(mark.label, mark.where) for mark in boxed]
            turn = _turn(image, boxed[0].size) if boxed else 1
            pieces = cut(image, [UPRIGHT[turn](*_shares(mark)) for mark in boxed])
            group = Path(os.path.relpath(image, root)).as_posix()
            rows += [Row(label, piece, group) for label, piece in zip(labels, pieces, strict=True)]
        else:
            names = [class_name(mark.label, mark.where) for mark in own]
            rows.append(Row(only_label(names, str(image)) or "", image))
    ignored += Counter()  # drops zero counts
    return rows


def _turn(image: Path, size: Sequence[Any]) -> int:
    """The orientation in a JPEG's EXIF if its boxes, by the size they are for, are of the pixels as
    stored; 1 if of the upright image."""
    with suppress(Exception):  # an unreadable file is told later
        if os.path.isfile(image):
            with Image.open(image, formats=["JPEG", "MPO"]) as photo:  # reads their header alone
                if photo.width != photo.height and photo.size == tuple(map(float, size)):
                    turn = photo.getexif().get(ORIENTATION, 1)
                    return int(turn) if turn in UPRIGHT else 1
    return 1


def class_name(written: str, where: str) -> str:
    """A class name from an annotation file, stripped. Raises UserError for an invalid one."""
    if not written.strip() or len(written) > MOST or not is_text(written):
        raise UserError(
            f"{where}: {quoted(written)} is not a class name: use plain text of 1 to {MOST} characters"
        )
    return written.strip()


def _shares(mark: Mark) -> tuple[float, float, float, float]:
    """Left, top, right and bottom as fractions of the image, clipped to it. Raises UserError for an
    empty box."""
    with suppress(TypeError, ValueError, OverflowError):
        left, top, width, height = (float(value) for value in mark.box)
        across, down = (float(value) for value in mark.size)
        if (
            all(map(math.isfinite, (left, top, width, height, across, down)))
            and min(width, height, across, down) > 0
        ):
            box = (left / across, top / down, (left + width) / across, (top + height) / down)
            inside = tuple(min(max(share, 0.0), 1.0) for share in box)
            if inside[0] < inside[2] and inside[1] < inside[3]:
                return inside  # type: ignore[return-value]
    box_, size = quoted(list(mark.box)), " x ".join(str(side)[:20] for side in mark.size)
    raise UserError(
        f"{mark.where}: the box {box_} (left, top, width, height) covers nothing in an image of {size}"
    )


def cut(image: Path, boxes: Sequence[tuple[float, float, float, float]]) -> list[Path]:
    """Paths of the cut-out boxes, PNG files in the cache, made if missing. For an unreadable image
    returns its own path for every box, to be reported as a bad file."""
    try:
        facts = os.stat(image)
    except (OSError, ValueError):  # ValueError: a NUL in its name
        return [image] * len(boxes)
    found, whole = [], None
    for box in boxes:
        word = f"{image.resolve()} {facts.st_size} {facts.st_mtime_ns} {box}"
        key = hashlib.sha256(word.encode(errors="surrogateescape")).hexdigest()[:24]
        path = cache_folder() / "crops" / key[:2] / f"{shortened(image.stem)}-{key}.png"
        if not path.exists():
            try:
                whole = load_image(image) if whole is None else whole
            except UserError:
                return [image] * len(boxes)
            sides = (*whole.size, *whole.size)
            left, top, right, bottom = (
                round(share * side) for share, side in zip(box, sides, strict=True)
            )
            left, top = min(left, whole.width - 1), min(top, whole.height - 1)
            with atomic(path, sync=False) as temporary:
                whole.crop((left, top, max(right, left + 1), max(bottom, top + 1))).save(
                    temporary, "PNG", compress_level=1
                )
        found.append(path)
    return found
