"""What a folder of class folders or a table says: rows of class and path, as written, nothing opened yet."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias

from rmadapter.data.columns import read_rows
from rmadapter.data.guard import formats, listed_image
from rmadapter.errors import UserError


class Row(NamedTuple):
    """label: as it is written on disk. group: of images that belong together; "" stands alone."""

    label: str
    image: Path
    group: str = ""


Rows: TypeAlias = list[Row]

SYSTEM = {("/", name) for name in ("dev", "proc", "sys")}  # what is a file there may never end
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def order(written: str) -> tuple[str, str]:
    """Sort key of names: case-insensitive, and the same on file systems that store accents apart."""
    return unicodedata.normalize("NFC", written).casefold(), written


def _folders(path: Path) -> list[Path]:
    """Visible folders; __MACOSX is what its zip program leaves behind."""
    inside = [entry for entry in path.iterdir() if not entry.name.startswith((".", "__MACOSX")) and entry.is_dir()]
    return sorted(inside, key=lambda entry: order(entry.name))


def scan(data: Path, outside: bool = False, columns: Mapping[str, str] | None = None) -> dict[str, Rows]:
    """Either of the two that follow."""
    return scan_table(data, outside, columns) if data.is_file() else scan_folder(data)


def scan_folder(root: Path) -> dict[str, Rows]:
    """Split -> rows sorted by class and file; {"all": ...} where no split folders lie above the class folders."""
    if (real := root.resolve()).parts[:2] in SYSTEM:
        raise UserError(f"{root}: {real.parts[1]} is a folder of the system, which holds no images")
    inside = _folders(root)
    splits = [folder for folder in inside if folder.name.casefold() in SPLITS]
    if not splits or (len(splits) < len(inside) and not any(_folders(folder) for folder in splits)):
        return {"all": _scan_classes(root)}  # "train" may well be a class of vehicles
    if len(splits) < len(inside):
        other = next(folder for folder in inside if folder not in splits)
        raise UserError(f"{root}: holds {splits[0].name!r} beside {other.name!r}: keep either splits or classes there")
    found: dict[str, Rows] = {}
    for folder in splits:
        name = SPLITS[folder.name.casefold()]
        if name in found:
            raise UserError(f"{root}: {folder.name!r} is a second folder for the split {name!r}: merge the two")
        found[name] = _scan_classes(folder)
    return {name: found[name] for name in ("train", "val", "test") if name in found}


def _scan_classes(parent: Path) -> Rows:
    """All images of all class folders; a class folder without any stands for itself, as a bad file."""
    classes = _folders(parent)
    if not classes:
        raise UserError(f"{parent}: holds no class folders; images belong in {parent}/CLASS NAME/")
    # A link up the tree, or across to another class, would bring in images under a wrong label.
    home = parent.resolve()
    barred = {home, *home.parents, *(folder.resolve() for folder in classes if not folder.is_symlink())}
    rows: Rows = []
    for folder in classes:
        if (below := _folders(folder)) and all(inner.name.casefold() in SPLITS for inner in below):
            raise UserError(f"{folder}: holds splits, so it is a data set and not a class: give that folder instead")
        seen = barred - ({folder.resolve()} if not folder.is_symlink() else set())
        rows += [Row(folder.name, image) for image in image_files(folder, seen) or [folder]]
    return rows


def image_files(folder: Path, seen: set[Path], ignored: Counter[str] | None = None) -> list[Path]:
    """Files with an image's extension at any depth, sorted; folders in `seen` are not entered, nor any twice.

    ignored: counts the other files by their suffix.
    """
    images: list[Path] = []
    for here, folders, files in os.walk(folder, followlinks=True):
        real = Path(here).resolve()
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        for path in [Path(here, name) for name in files] if real not in seen else []:
            suffix, hidden = path.suffix.lower(), path.name.startswith(".")
            if suffix in formats() and not hidden:
                images.append(path)
            elif ignored is not None:
                ignored["hidden" if hidden else suffix or "no suffix"] += 1
        seen.add(real)
    return in_order(images)


def in_order(paths: Iterable[Path]) -> list[Path]:
    """The same on file systems that store accents apart."""
    return sorted(paths, key=lambda path: unicodedata.normalize("NFC", path.as_posix()))


def scan_table(path: Path, outside: bool = False, columns: Mapping[str, str] | None = None) -> dict[str, Rows]:
    """Split -> rows in the order of the table, on which draws depend; {"all": ...} without a column of splits.

    outside: whether images may lie outside of the folder of the table. columns: as `read_rows` has `named`. Raises
    UserError as it does, and for an empty label or another split than train, val and test.
    """
    found: dict[str, Rows] = {}
    for where, cells in read_rows(path, ("image", "label"), ("split", "group"), columns):
        image, split = listed_image(path, where, cells["image"], outside), cells.get("split", "all")
        if not cells["label"]:
            raise UserError(f"{where}: the label is empty")
        if "split" in cells and split.casefold() not in SPLITS:
            raise UserError(f"{where}: split is {split!r:.80}: write train, val or test")
        row = Row(cells["label"], image, cells.get("group", ""))
        found.setdefault(SPLITS.get(split.casefold(), split), []).append(row)
    return found
