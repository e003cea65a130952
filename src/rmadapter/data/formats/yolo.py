"""YOLO's detection folders: a data.yaml of splits and class names, and one text file of boxes per
image.

Format: https://docs.ultralytics.com/datasets/detect. YOLO's classification folders are plain class
folders.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rmadapter.data.decode_limits import ALLOW, listed_image
from rmadapter.data.formats.annotations import Mark, Marks, shaped
from rmadapter.data.formats.scan import image_files
from rmadapter.errors import UserError, quoted
from rmadapter.settings import read_yaml
from rmadapter.support.files import read_text

KIND = "a YOLO data.yaml"


def yolo_file(folder: Path) -> Path | None:
    """data.yaml, or another YAML file that names classes and a folder to train on."""
    files = sorted(
        [*folder.glob("*.yaml"), *folder.glob("*.yml")],
        key=lambda path: (path.stem != "data", path.name),
    )
    for file in files:
        try:
            if {"names", "train"} <= read_yaml(file).keys():
                return file
        except UserError:  # another program's file
            continue
    return None


def read_yolo(file: Path, outside: bool = False) -> dict[str, Marks]:
    """Split -> images in order. Raises UserError for a malformed file, labels of unknown classes,
    folders that do not exist, and folders outside the data unless `outside` is set."""
    values, found = read_yaml(file), {}
    with shaped(file, KIND):
        names = values["names"]
        classes = {
            int(key): name
            for key, name in (names.items() if isinstance(names, dict) else enumerate(names))
        }
        if odd := [name for name in classes.values() if isinstance(name, bool) or name is None]:
            raise UserError(f"{file}: a class is {odd[0]}: write its name in quotes, as 'yes'")
        classes, box_first = (
            {key: str(name) for key, name in classes.items()},
            "kpt_shape" in values,
        )
        for split in ("train", "val", "test"):
            if given := values.get(split):
                paths = given if isinstance(given, list) else [given]
                images = [
                    image
                    for path in paths
                    for image in _images(file, values, split, str(path), outside)
                ]
                home = Path(os.path.abspath(file.parent))
                found[split] = {image: _marks(image, classes, home, box_first) for image in images}
    if not found:
        raise UserError(f"{file}: not {KIND} (it has no train, val or test)")
    return found


def _images(
    file: Path, values: Mapping[str, Any], split: str, written: str, outside: bool
) -> Iterator[Path]:
    place = _place(file, values, split, written, outside)
    if place.is_dir():
        yield from image_files(place, set())
        return
    for number, line in enumerate(read_text(place).splitlines(), 1):
        if line.strip():
            yield listed_image(
                place, f"{place}, line {number}", line.strip().removeprefix("./"), outside
            )


def _place(file: Path, values: Mapping[str, Any], split: str, written: str, outside: bool) -> Path:
    """Path of a split, relative to `path` or to the file's folder; Roboflow writes one ../ too
    many."""
    home = Path(os.path.abspath(file.parent))
    for base in (home / str(values.get("path") or ""), home):
        for name in (written, written.removeprefix("../")):
            path = Path(os.path.normpath(base / name))
            if os.path.exists(path) and (outside or path.is_relative_to(home)):
                return path
    there = f"; {ALLOW} allows images elsewhere" if not outside else ""
    raise UserError(
        f"{file}: {split} is {quoted(written)}, which was not found in its folder: delete that line if there is no "
        f"such split{there}"
    )


def _marks(image: Path, classes: Mapping[int, str], home: Path, box_first: bool) -> list[Mark]:
    """Boxes of images/a.jpg from labels/a.txt, or of a.jpg elsewhere from a.txt beside it; none
    without that file.

    home: the data's folder, which may itself be in a folder called images. box_first: keypoints
    follow each box.
    """
    above = len(home.parts) if image.is_relative_to(home) else 0
    parts = image.parts
    if "images" in parts[above:-1]:
        last = len(parts) - 1 - parts[::-1].index("images")
        file = Path(*parts[:last], "labels", *parts[last + 1 :]).with_suffix(".txt")
    else:
        file = image.with_suffix(".txt")
    if not file.is_file():
        return []
    found = []
    for number, line in enumerate(read_text(file).splitlines(), 1):
        if cells := line.split():
            where = f"{file}, line {number}"
            try:
                name, points = classes[int(cells[0])], [float(cell) for cell in cells[1:]]
            except (KeyError, ValueError):
                raise UserError(
                    f"{where}: {quoted(line)} is not a class number and a box"
                ) from None
            found.append(Mark(name, where, _box(points[:4] if box_first else points, where)))
    return found


def _box(points: list[float], where: str) -> tuple[float, ...]:
    """Left, top, width, height from [x, y, width, height] centred at x, y, or from the corners of a
    polygon."""
    if len(points) == 4:
        x, y, width, height = points
        return x - width / 2, y - height / 2, width, height
    if len(points) < 6 or len(points) % 2:
        raise UserError(
            f"{where}: {len(points)} numbers after the class are neither a box nor a polygon"
        )
    across, down = points[::2], points[1::2]
    return min(across), min(down), max(across) - min(across), max(down) - min(down)
