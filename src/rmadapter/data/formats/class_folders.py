"""A folder of class folders, with or without split folders above them."""

from __future__ import annotations

import difflib
import json
import os
import shutil
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from rmadapter.data.decode import reading
from rmadapter.data.formats.base import (
    SYSTEM_FOLDERS,
    Format,
    Listing,
    ReadOptions,
    Row,
    Rows,
    entries_of,
    file_kind,
    has_run,
    image_files,
    is_image_name,
)
from rmadapter.data.names import CLASSNAMES, SPLITS, default_name, order, split_named
from rmadapter.errors import UserError
from rmadapter.support.files import RUNS, atomic, folder_name, write_json
from rmadapter.support.locks import staged_folder

ENDLESS = {("/", name) for name in ("dev", "proc", "sys")}  # their "files" may never end


def read(path: Path, options: ReadOptions) -> Listing:
    """List the images, sorted by split, class and file.

    Raises:
        UserError: An unreadable folder, or any other layout.
    """
    ignored: Counter[str] = Counter()
    return Listing(path, _scan(path, ignored), ignored)


def _scan(root: Path, ignored: Counter[str]) -> dict[str, Rows]:
    """Return split -> rows; {"all": ...} if there are no split folders above the class folders."""
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
        raise UserError(
            f"{root}: holds {splits[0].name!r} beside {others[0].name!r}{meant}: keep either "
            "splits or classes there"
        )
    rows: dict[str, Rows] = {}
    _count_files(root, ignored)
    for folder in splits:
        name = SPLITS[folder.name.casefold()]
        if name in rows:
            raise UserError(
                f"{root}: {folder.name!r} is a second folder for the split {name!r}: merge the two"
            )
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
    around = _data_around(root) if _holds_image(root) else None
    meant = f"; did you mean {str(around)!r}?" if around else ""
    if not folders:
        raise UserError(
            f"{root}: holds no class folders; images belong in {root}/CLASS NAME/{meant}"
        )
    if meant:
        raise UserError(
            f"{root}: holds images beside its only folder {folders[0].name!r}, as a class "
            f"does{meant}"
        )


def _data_around(root: Path) -> Path | None:
    """Return the data set that a folder seems to be a class of: what holds it and other folders of
    images, or None."""
    home = root.resolve() if root.name in ("", "..") else root
    with suppress(UserError):  # a folder above may be closed
        others = [folder for folder in _folders(home.parent) if folder.resolve() != home.resolve()]
        # folders of folders beside it are other data sets, not classes
        if any(_holds_image(folder) for folder in others):
            return home.parent.parent if home.parent.name.casefold() in SPLITS else home.parent
    return None


def _holds_image(folder: Path) -> bool:
    """Return whether an image lies in a folder itself."""
    return any(map(is_image_name, folder.glob("*")))


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
            raise UserError(
                f"{folder}: holds splits, so it is a data set, not a class: give that folder "
                "instead"
            )
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
    return has_run(folder) and not any(map(is_image_name, entries_of(folder)))


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
        raise UserError(
            f"{root}: {train.name!r} and {test.name!r} seem to be splits, not classes: rename them "
            "to train and test, and move other folders out of it"
        )


def _count_files(folder: Path, ignored: Counter[str]) -> None:
    """Count the files of a folder that should only hold folders, and the images in hidden folders
    there, which may be meant as classes (.net)."""
    for path in entries_of(folder):
        if path.is_file() and path.name != CLASSNAMES:
            kind = "images outside class folders" if is_image_name(path) else file_kind(path)
            ignored[kind] += 1
        elif path.name.startswith(".") and path.is_dir():
            with suppress(UserError):  # such as that of a trash may be closed
                hidden = sum(map(is_image_name, entries_of(path)))
                ignored.update({"images in hidden folders": hidden} if hidden else {})


FORMAT = Format("class folders", os.path.isdir, read, check=check_layout)


# Images of one class


def is_one_class(folder: Path) -> bool:
    """Return whether a folder holds images and no class folders."""
    return folder.is_dir() and _holds_image(folder) and not _folders(folder)


def _read_class(folder: Path, options: ReadOptions) -> Listing:
    """List the images of a folder as one class, which has the folder's name."""
    ignored: Counter[str] = Counter()
    images = image_files(folder, ignored=ignored)
    return Listing(folder, {"all": [Row(folder.resolve().name, one) for one in images]}, ignored)


ONE_CLASS = Format("images of one class", is_one_class, _read_class)  # where a class is added


# Writing


def write(splits: Mapping[str, Rows], out: Path, home: Path) -> None:
    """Write copies of images into class folders, below folders of splits if there are any.

    Args:
        splits: Split -> rows, as in `Listing`.
        out: A new folder, or a zip.
        home: Not used, as nothing refers to the images where they are.

    Raises:
        UserError: An image is missing.
    """
    folders = _folder_names(splits)
    names = {folder: default_name(label) for label, folder in folders.items()}
    custom = {folder: name for folder, name in names.items() if name != default_name(folder)}
    if out.suffix.lower() == ".zip":
        # images are compressed already
        with (
            atomic(out, sync=False) as part,
            zipfile.ZipFile(part, "w", strict_timestamps=False) as archive,
        ):
            for place, image in _places(splits, folders):
                with reading(str(image)):
                    archive.write(image, place)
            if custom:
                archive.writestr(CLASSNAMES, json.dumps(custom, ensure_ascii=False))
        return
    with staged_folder(out) as folder:
        for place, image in _places(splits, folders):
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(image, folder / place)
        if custom:
            write_json(folder / CLASSNAMES, custom)


def _folder_names(splits: Mapping[str, Rows]) -> dict[str, str]:
    """Return the folder of each label, valid on any system."""
    taken: dict[str, int] = {}
    labels = sorted({row.label for rows in splits.values() for row in rows}, key=order)
    return {label: free_name(folder_name(label).lstrip(".") or "_", "", taken) for label in labels}


def _places(splits: Mapping[str, Rows], folders: Mapping[str, str]) -> Iterator[tuple[str, Path]]:
    """Yield where each image goes, and the image."""
    taken: dict[str, int] = {}
    for split, rows in splits.items():
        above = "" if split == "all" else f"{split}/"
        for row in rows:
            stem = f"{above}{folders[row.label]}/{folder_name(row.image.stem)}"
            yield free_name(stem, row.image.suffix, taken), row.image


def free_name(stem: str, suffix: str, taken: dict[str, int]) -> str:
    """Return a name that is not taken, and take it.

    Args:
        stem: The name without its suffix; a number follows where the name is taken.
        suffix: Suffix of the name.
        taken: The names that are taken, case-folded -> the last number that followed each.
    """
    first = name = f"{stem}{suffix}"
    while name.casefold() in taken:
        taken[first.casefold()] += 1
        name = f"{stem}-{taken[first.casefold()]}{suffix}"
    taken[name.casefold()] = 1
    return name
