"""A folder of class folders, with or without split folders above them."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rmadapter.data.decode import formats
from rmadapter.data.formats.base import (
    CLASSNAMES,
    SPLITS,
    SYSTEM_FOLDERS,
    Inputs,
    ReadOptions,
    Row,
    Rows,
    Source,
    entries_of,
    file_kind,
    has_run,
    image_files,
    order,
    search,
    split_named,
)
from rmadapter.errors import UserError
from rmadapter.support.files import RUNS

SUFFIXES = ()
HAS_BOXES = False
HAS_COLUMNS = False
ENDLESS = {("/", name) for name in ("dev", "proc", "sys")}  # their "files" may never end


def detects(path: Path) -> bool:
    return os.path.isdir(path)  # never raises, even for overlong names


def read(path: Path, options: ReadOptions) -> Source:
    ignored: Counter[str] = Counter()
    return Source(path, scan_folder(path, ignored), ignored)


def image_root(path: Path) -> Path:
    return path


def list_images(path: Path, options: ReadOptions) -> Inputs:
    return search(path)


def scan_folder(root: Path, ignored: Counter[str] | None = None) -> dict[str, Rows]:
    """Return split -> rows sorted by class and file; {"all": ...} if there are no split folders
    above the class folders.

    ignored: counts other files by suffix. Raises UserError for unreadable folders and any other
    layout.
    """
    ignored = Counter() if ignored is None else ignored
    check_layout(root)
    folders = _folders(root)
    splits = [folder for folder in folders if folder.name.casefold() in SPLITS]
    others = [folder for folder in folders if folder not in splits]
    if not splits or (others and not any(_folders(folder) for folder in splits)):
        _refuse_named_splits(root, folders)
        return {"all": _scan_classes(root, ignored)}  # "train" may well be a class of vehicles
    if others:
        close = difflib.get_close_matches(others[0].name.casefold(), SPLITS, n=1)
        meant = f" (did you mean {close[0]!r}?)" if close else ""
        where = f"{root}: holds {splits[0].name!r} beside {others[0].name!r}{meant}"
        raise UserError(f"{where}: keep either splits or classes there")
    rows: dict[str, Rows] = {}
    _count_files(root, ignored)
    for folder in splits:
        name = SPLITS[folder.name.casefold()]
        if name in rows:
            what = f"{folder.name!r} is a second folder for the split {name!r}"
            raise UserError(f"{root}: {what}: merge the two")
        rows[name] = _scan_classes(folder, ignored)
    return {name: rows[name] for name in ("train", "val", "test") if name in rows}


def check_layout(root: Path) -> None:
    """Raise UserError for a folder of the system, one without class folders, and one that seems to
    be a class itself: it has images beside its only folder, and folders of images around it."""
    real = root.resolve()
    if real.parts[:2] in ENDLESS:
        raise UserError(f"{root}: {real.parts[1]} is a system folder, which holds no images")
    folders = _folders(root)
    if len(folders) > 1 or any(folder.name.casefold() in SPLITS for folder in folders):
        return
    around = _data_around(root) if _holds_image(root, "*") else None
    meant = f"; did you mean {str(around)!r}?" if around else ""
    if not folders:
        advice = f"images belong in {root}/CLASS NAME/"
        raise UserError(f"{root}: holds no class folders; {advice}{meant}")
    if meant:
        what = f"holds images beside its only folder {folders[0].name!r}, as a class does"
        raise UserError(f"{root}: {what}{meant}")


def _data_around(root: Path) -> Path | None:
    """Return the data set that a folder seems to be a class of: what holds it and other folders of
    images, or None."""
    home = root.resolve() if root.name in ("", "..") else root
    with suppress(UserError):  # a folder above may be closed
        others = [folder for folder in _folders(home.parent) if folder.resolve() != home.resolve()]
        if any(_holds_image(folder, "*") or _holds_image(folder, "*/*") for folder in others):
            return home.parent.parent if home.parent.name.casefold() in SPLITS else home.parent
    return None


def _holds_image(folder: Path, pattern: str) -> bool:
    """Return whether an image is among what the pattern matches in a folder."""
    return any(map(_is_image, folder.glob(pattern)))


def _scan_classes(parent: Path, ignored: Counter[str]) -> Rows:
    """Return the rows of all class folders; a class folder without images gets a row of its own
    path, to be reported as unreadable."""
    classes = _folders(parent)
    if not classes:
        raise UserError(f"{parent}: holds no class folders; images belong in {parent}/CLASS NAME/")
    # A link up the tree, or to another class, would bring in images under a wrong label.
    home = parent.resolve()
    places = {folder: folder.resolve() for folder in classes if not folder.is_symlink()}
    barred = {home, *home.parents, *places.values()}
    rows: Rows = []
    for folder in classes:
        inside = {SPLITS.get(inner.name.casefold(), "") for inner in _folders(folder)}
        if {"train", "test"} <= inside or (inside and "" not in inside):
            what = "holds splits, so it is a data set, not a class"
            raise UserError(f"{folder}: {what}: give that folder instead")
        images = image_files(folder, barred - {places.get(folder)}, ignored)
        rows += [Row(folder.name, image) for image in images or [folder]]
    _count_files(parent, ignored)
    return rows


def _folders(path: Path) -> list[Path]:
    """Return the visible subfolders, except runs and those of systems; the zip program of macOS
    leaves __MACOSX behind."""
    visible = [entry for entry in entries_of(path) if not entry.name.startswith((".", "__MACOSX"))]
    folders = [entry for entry in visible if entry.name not in SYSTEM_FOLDERS and entry.is_dir()]
    data = [folder for folder in folders if not (_is_run(folder) or _holds_runs(folder))]
    return sorted(data, key=lambda folder: order(folder.name))


def _is_run(folder: Path) -> bool:
    """Return whether `fit --out DATA/run` wrote the folder, finished or not."""
    return has_run(folder) and not any(
        path.suffix.lower() in formats() for path in entries_of(folder)
    )


def _holds_runs(folder: Path) -> bool:
    """Return whether `fit` made the folder for its runs, in the data."""
    entries = entries_of(folder) if folder.name == RUNS else []
    return bool(entries) and all(
        entry.is_dir() and (_is_run(entry) or not entries_of(entry)) for entry in entries
    )


def _refuse_named_splits(root: Path, folders: Sequence[Path]) -> None:
    """Raise UserError if two folders that hold folders are train and test by a part of their names:
    seg_train and seg_test. Where the names differ in more, each of the others must hold folders,
    too: crash_test and train_set may be classes beside bus."""
    splits = {split_named(folder.name): folder for folder in reversed(folders)}
    train, test = splits.get("train"), splits.get("test")
    if not (train and test and _folders(train) and _folders(test)):
        return
    rests = (train.name.casefold().replace("train", ""), test.name.casefold().replace("test", ""))
    if len({*rests}) == 1 or all(map(_folders, folders)):
        what = f"{train.name!r} and {test.name!r} seem to be splits, not classes"
        advice = "rename them to train and test, and move other folders out of it"
        raise UserError(f"{root}: {what}: {advice}")


def _count_files(folder: Path, ignored: Counter[str]) -> None:
    """Count the files of a folder that should only hold folders, and the images in hidden folders
    there, which may be meant as classes (.net)."""
    for path in entries_of(folder):
        if path.is_file() and path.name != CLASSNAMES:
            ignored["images outside class folders" if _is_image(path) else file_kind(path)] += 1
        elif path.name.startswith(".") and path.is_dir():
            with suppress(UserError):  # such as that of a trash may be closed
                hidden = sum(map(_is_image, entries_of(path)))
                ignored.update({"images in hidden folders": hidden} if hidden else {})


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in formats() and not path.name.startswith(".")
