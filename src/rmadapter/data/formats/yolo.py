"""YOLO's detection folders: a data.yaml of splits and class names, and one text file of boxes per
image.

Format: https://docs.ultralytics.com/datasets/detect. YOLO's classification folders are plain class
folders.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rmadapter.data.budget import Budget
from rmadapter.data.formats.base import (
    ALLOW_OUTSIDE,
    Mark,
    Marks,
    image_files,
    listed_image,
    parsing,
)
from rmadapter.errors import UserError, quoted
from rmadapter.settings import read_yaml
from rmadapter.support.files import JsonObject, read_text

KIND = "a YOLO data.yaml"


def yaml_file(folder: Path) -> Path | None:
    """Return data.yaml, or another YAML file that names classes and a folder to train on."""
    files = [*folder.glob("*.yaml"), *folder.glob("*.yml")]
    for file in sorted(files, key=lambda path: (path.stem != "data", path.name)):
        try:
            if {"names", "train"} <= read_yaml(file).keys():
                return file
        except UserError:  # another program's file
            continue
    return None


def read_yolo(file: Path, budget: Budget, outside: bool = False) -> dict[str, Marks]:
    """Return split -> images in order.

    Raises:
        UserError: A malformed file, labels of unknown classes, folders that do not exist, or
            folders outside the data unless `outside` is set.
    """
    values = read_yaml(file)
    home = Path(os.path.abspath(file.parent))
    marks: dict[str, Marks] = {}
    with parsing(file, KIND):
        classes = _classes(file, values["names"])
        box_first = "kpt_shape" in values
        for split in ("train", "val", "test"):
            paths = values.get(split)
            if paths:
                marks[split] = {
                    image: _marks(image, classes, home, box_first, budget)
                    for path in (paths if isinstance(paths, list) else [paths])
                    for image in _images(file, values, split, str(path), outside, budget)
                }
    if not marks:
        raise UserError(f"{file}: not {KIND} (it has no train, val or test)")
    return marks


def _classes(file: Path, names: Mapping[str | int, object] | Sequence[object]) -> dict[int, str]:
    numbered = names.items() if isinstance(names, Mapping) else enumerate(names)
    classes = {int(key): name for key, name in numbered}
    for name in classes.values():
        if isinstance(name, bool) or name is None:
            raise UserError(f"{file}: a class is {name}: write its name in quotes, as 'yes'")
    return {key: str(name) for key, name in classes.items()}


def _images(
    file: Path, values: JsonObject, split: str, path: str, outside: bool, budget: Budget
) -> Iterator[Path]:
    place = _place(file, values, split, path, outside)
    if place.is_dir():
        yield from image_files(place)
        return
    for number, line in enumerate(budget.lines(read_text(place), place), 1):
        name = line.strip()
        budget.take("rows", 1, place)
        if name:
            where = f"{place}, line {number}"
            yield listed_image(place.parent, where, name.removeprefix("./"), outside)


def _place(file: Path, values: JsonObject, split: str, path: str, outside: bool) -> Path:
    """Return the path of a split, relative to `path` of the file or to its folder; Roboflow writes
    one ../ too many."""
    home = Path(os.path.abspath(file.parent))
    for base in (home / str(values.get("path") or ""), home):
        for name in (path, path.removeprefix("../")):
            place = Path(os.path.normpath(base / name))
            if os.path.exists(place) and (outside or place.is_relative_to(home)):
                return place
    elsewhere = f"; {ALLOW_OUTSIDE} allows images elsewhere" if not outside else ""
    raise UserError(
        f"{file}: {split} is {quoted(path)}, which was not found in its folder: delete that line "
        f"if there is no such split{elsewhere}"
    )


def _marks(
    image: Path, classes: Mapping[int, str], home: Path, box_first: bool, budget: Budget
) -> list[Mark]:
    """Return the boxes of images/a.jpg from labels/a.txt, or of a.jpg elsewhere from a.txt beside
    it; none without that file.

    Args:
        image: The image.
        classes: Number -> class.
        home: The data's folder, which may itself be in a folder called images.
        box_first: Whether keypoints follow each box.
        budget: What reading may still take.
    """
    above = len(home.parts) if image.is_relative_to(home) else 0
    parts = image.parts
    file = image.with_suffix(".txt")
    if "images" in parts[above:-1]:
        last = len(parts) - 1 - parts[::-1].index("images")
        file = Path(*parts[:last], "labels", *parts[last + 1 :]).with_suffix(".txt")
    if not file.is_file():
        return []
    marks = []
    for number, line in enumerate(budget.lines(read_text(file), file), 1):
        budget.take("rows", 1, file)
        cells = line.split()
        if not cells:
            continue
        where = f"{file}, line {number}"
        try:
            name = classes[int(cells[0])]
            points = [float(cell) for cell in cells[1:]]
        except (KeyError, ValueError):
            raise UserError(f"{where}: {quoted(line)} is not a class number and a box") from None
        marks.append(Mark(name, where, _box(points[:4] if box_first else points, where)))
    return marks


def _box(points: list[float], where: str) -> tuple[float, ...]:
    """Return left, top, width, height from [x, y, width, height] centred at x, y, or from the
    corners of a polygon."""
    if len(points) == 4:
        x, y, width, height = points
        return x - width / 2, y - height / 2, width, height
    if len(points) < 6 or len(points) % 2:
        raise UserError(
            f"{where}: {len(points)} numbers after the class are neither a box nor a polygon"
        )
    left, top = min(points[::2]), min(points[1::2])
    return left, top, max(points[::2]) - left, max(points[1::2]) - top
