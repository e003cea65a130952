"""Reads a folder of class folders or a table as rows of class and path, as written, without opening
images."""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn, TypeAlias, TypeVar

from rmadapter.data.decode_limits import formats, listed_image
from rmadapter.data.formats.columns import BETWEEN, read_rows
from rmadapter.errors import UserError, quoted

T = TypeVar("T")


class Row(NamedTuple):
    """One image. label: as written on disk. group: shared by images that belong together, "" for
    none."""

    label: str
    image: Path
    group: str = ""


Rows: TypeAlias = list[Row]


class Source(NamedTuple):
    """The images of a data set. root: the folder that their names are relative to. splits: "train",
    "val" and "test", or "all" -> rows. ignored: number of files not read, by suffix or other
    reason."""

    root: Path
    splits: dict[str, Rows]
    ignored: Counter[str]


CLASSNAMES = "classnames.json"
SYSTEM = {("/", name) for name in ("dev", "proc", "sys")}  # their "files" may be endless
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
OTHERS = (
    "$RECYCLE.BIN",
    "@eaDir",
    "lost+found",
    "System Volume Information",
)  # folders of systems, with no data


def order(written: str) -> tuple[str, str]:
    """Sort key of names: case-insensitive, and the same on file systems that decompose accents."""
    return unicodedata.normalize("NFC", written).casefold(), written


def _folders(path: Path) -> list[Path]:
    """Visible subfolders, except runs and those of systems; __MACOSX is left behind by the zip
    program of macOS."""
    shown = (entry for entry in listed(path) if not entry.name.startswith((".", "__MACOSX")))
    inside = [entry for entry in shown if entry.name not in OTHERS and entry.is_dir()]
    return sorted(
        (entry for entry in inside if not _is_run(entry)), key=lambda entry: order(entry.name)
    )


def _is_run(folder: Path) -> bool:
    """Whether it was written by `fit --out DATA/run`, finished or not."""
    written = any(os.path.isfile(folder / name) for name in ("run.json", "split.json"))
    return written and not any(path.suffix.lower() in formats() for path in listed(folder))


def listed(folder: Path) -> list[Path]:
    """The entries of a folder. Raises UserError if it may not be read."""
    try:
        return [*folder.iterdir()]
    except OSError as error:
        _refuse(error)


def _refuse(error: OSError) -> NoReturn:
    raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from None


def split_named(name: str) -> str:
    """The split in the name of a file or folder: "instances_val2017" -> "val"; "all" if there is
    none. Raises UserError if there are two."""
    found = dict.fromkeys(
        SPLITS[word] for word in re.findall("[a-z]+", name.casefold()) if word in SPLITS
    )
    if len(found) > 1:
        raise UserError(
            f"{name}: its name says {' and '.join(found)}: rename it, so that it is in one split"
        )
    return next(iter(found), "all")


def scan_folder(root: Path, ignored: Counter[str] | None = None) -> dict[str, Rows]:
    """Split -> rows sorted by class and file; {"all": ...} if there are no split folders above the
    class folders.

    ignored: counts other files by suffix. Raises UserError for unreadable folders and any other
    layout.
    """
    ignored = Counter() if ignored is None else ignored
    if (real := root.resolve()).parts[:2] in SYSTEM:
        raise UserError(f"{root}: {real.parts[1]} is a system folder, which holds no images")
    inside = _folders(root)
    splits = [folder for folder in inside if folder.name.casefold() in SPLITS]
    if not splits or (len(splits) < len(inside) and not any(_folders(folder) for folder in splits)):
        _check_classes(root, inside)
        return {"all": _scan_classes(root, ignored)}  # "train" may well be a class of vehicles
    if len(splits) < len(inside):
        other = next(folder for folder in inside if folder not in splits)
        close = difflib.get_close_matches(other.name.casefold(), SPLITS, n=1)
        meant = f" (did you mean {close[0]!r}?)" if close else ""
        where = f"{root}: holds {splits[0].name!r} beside {other.name!r}{meant}"
        raise UserError(f"{where}: keep either splits or classes there")
    found: dict[str, Rows] = {}
    _count(root, ignored)
    for folder in splits:
        name = SPLITS[folder.name.casefold()]
        if name in found:
            raise UserError(
                f"{root}: {folder.name!r} is a second folder for the split {name!r}: merge the two"
            )
        found[name] = _scan_classes(folder, ignored)
    return {name: found[name] for name in ("train", "val", "test") if name in found}


def _check_classes(root: Path, inside: Sequence[Path]) -> None:
    """Raise UserError if all folders, each of folders, are splits by a part of their names:
    seg_train, seg_test."""
    found = [split_named(folder.name) for folder in inside]
    if {"train", "test"} <= {*found} and "all" not in found and all(map(_folders, inside)):
        raise UserError(
            f"{root}: {inside[0].name!r} and the others seem to be splits: rename them to train and test"
        )


def _count(folder: Path, ignored: Counter[str]) -> None:
    """Count the files of a folder that should only hold folders."""
    for path in listed(folder):
        if path.is_file() and path.name != CLASSNAMES:
            image = path.suffix.lower() in formats() and not path.name.startswith(".")
            ignored["images outside class folders" if image else _kind(path)] += 1


def _kind(path: Path) -> str:
    return "hidden" if path.name.startswith(".") else path.suffix.lower() or "no suffix"


def _scan_classes(parent: Path, ignored: Counter[str]) -> Rows:
    """Rows of all class folders; a class folder without images gets a row of its own path, to be
    reported as bad."""
    classes = _folders(parent)
    if not classes:
        raise UserError(f"{parent}: holds no class folders; images belong in {parent}/CLASS NAME/")
    # A link up the tree, or to another class, would bring in images under a wrong label.
    home = parent.resolve()
    barred = {
        home,
        *home.parents,
        *(folder.resolve() for folder in classes if not folder.is_symlink()),
    }
    rows: Rows = []
    for folder in classes:
        if (below := _folders(folder)) and all(inner.name.casefold() in SPLITS for inner in below):
            raise UserError(
                f"{folder}: holds splits, so it is a data set, not a class: give that folder instead"
            )
        seen = barred - ({folder.resolve()} if not folder.is_symlink() else set())
        rows += [
            Row(folder.name, image) for image in image_files(folder, seen, ignored) or [folder]
        ]
    _count(parent, ignored)
    return rows


def image_files(folder: Path, seen: set[Path], ignored: Counter[str] | None = None) -> list[Path]:
    """Files with an image suffix at any depth, sorted; skips folders in `seen`, and enters no
    folder twice.

    ignored: counts other files by suffix.
    """
    images: list[Path] = []
    for here, folders, files in os.walk(folder, followlinks=True, onerror=_refuse):
        real = Path(here).resolve()
        folders[:] = (
            []
            if real in seen
            else sorted(n for n in folders if not n.startswith(".") and n not in OTHERS)
        )
        for path in [Path(here, name) for name in files] if real not in seen else []:
            if path.suffix.lower() in formats() and not path.name.startswith("."):
                images.append(path)
            elif ignored is not None:
                ignored[_kind(path)] += 1
        seen.add(real)
    return in_order(images)


def in_order(paths: Iterable[Path]) -> list[Path]:
    """Sorted paths, in the same order on file systems that decompose accents."""
    return sorted(paths, key=lambda path: unicodedata.normalize("NFC", path.as_posix()))


def scan_table(
    path: Path, outside: bool = False, columns: Mapping[str, str] | None = None
) -> dict[str, Rows]:
    """Split -> rows in the order of the table, on which draws depend; {"all": ...} without a split
    column.

    outside: whether images may be outside the table's folder. columns: `named` of `read_rows`.
    Raises UserError as `read_rows`, `listed_image` and `only_label`, and for an empty label or a
    split other than train, val and test.
    """
    found: dict[str, Rows] = {}
    for where, cells in read_rows(
        path, ("image", "label"), ("label_list", "split", "group"), columns
    ):
        image, split = listed_image(path, where, cells["image"], outside), cells.get("split", "all")
        label = only_label(row_labels(cells), where)
        if label is None:
            raise UserError(f"{where}: the label is empty")
        if "split" in cells and split.casefold() not in SPLITS:
            raise UserError(f"{where}: split is {split!r:.80}: write train, val or test")
        row = Row(label, image, cells.get("group", ""))
        found.setdefault(SPLITS.get(split.casefold(), split), []).append(row)
    return found


def row_labels(cells: Mapping[str, str]) -> list[str]:
    """Return the labels of a table's row: the items of a list; in a column called `labels`, also
    the parts between ; or |."""
    if "label" in cells:
        written = cells["label"]
    else:
        written = cells["label_list"].replace(";", BETWEEN).replace("|", BETWEEN)
    return [label for label in map(str.strip, written.split(BETWEEN)) if label]


def only_label(labels: Iterable[T], where: str) -> T | None:
    """Return the label of an image, None if it has none; repeats count once. Raises UserError,
    naming `where`, for an image with several labels."""
    different: list[T] = []
    for label in labels:
        if label not in different:
            different.append(label)
    if len(different) > 1:
        first, second = map(quoted, different[:2])
        raise UserError(
            f"{where}: has the labels {first} and {second}, but one label per image is supported: use --crops "
            f"(crops=True) for boxes, or a multi-label library such as torchvision with BCE loss"
        )
    return different[0] if different else None
