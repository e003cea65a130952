"""The images of one visitor by class: limited in number and size, decoded once as a check, and
renamed."""

from __future__ import annotations

import os
import re
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from rmadapter.artifacts.checkpoint import MOST_CLASSES, UPLOADED
from rmadapter.artifacts.page import SMALL, small_jpeg
from rmadapter.data.archives import inner, listing_size, unpack
from rmadapter.data.budget import Budget
from rmadapter.data.decode import image_error, load_image
from rmadapter.data.formats.base import ignored_note
from rmadapter.data.formats.class_folders import scan_folder
from rmadapter.data.formats.tables import scan_table
from rmadapter.data.names import key, typed_name
from rmadapter.errors import UserError, quoted
from rmadapter.support.files import csv_text, write_text

IMAGES, FILES, THUMBNAILS = UPLOADED, "files", "thumbnails"
MOST_IMAGES, MOST_BYTES = 20_000, 4_000_000_000  # per visitor
MOST_LISTING = 2**24  # bytes of a zip's list of files
MOST_ZIP = 2_000_000_000  # bytes, packed or not
SHOWN = 5  # images of a class that the page shows


class StoredImage(NamedTuple):
    """file: relative to the visitor's folder. split: "train", "val", "test", or "" if unknown.
    size: in bytes."""

    file: str
    split: str = ""
    size: int = 0


class ImageStore:
    """The images of a visitor, in `FILES` of their folder; `IMAGES` lists them once written. The
    first `SHOWN` of a class have small copies in `THUMBNAILS`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.classes: dict[str, list[StoredImage]] = {}  # by label, in order of arrival
        self.bytes = 0
        self._count = 0

    def __len__(self) -> int:
        return sum(map(len, self.classes.values()))

    def add_class(self, name: str) -> str:
        """Add a class, and return its label, or that of an existing class that is the same in a
        prompt.

        Raises UserError for an empty or very long name, and for too many classes.
        """
        label = typed_name(name)
        label = next((known for known in self.classes if key(known) == key(label)), label)
        if label not in self.classes and len(self.classes) == MOST_CLASSES:
            raise UserError(f"this page takes at most {MOST_CLASSES:,} classes; remove some first")
        self.classes.setdefault(label, [])
        return label

    def remove(self, label: str) -> None:
        """Remove a class with its images. Raises UserError if there is none."""
        if label not in self.classes:
            raise UserError(f"{quoted(label)}: no such class")
        for image in self.classes.pop(label):
            (self.folder / image.file).unlink(missing_ok=True)
            self._thumbnail(image.file).unlink(missing_ok=True)
            self.bytes -= image.size

    def clear(self) -> None:
        for label in [*self.classes]:
            self.remove(label)

    def add(self, path: Path, label: str, name: str, split: str = "", file: str = "") -> None:
        """Add an image by moving its file here.

        name: what its owner called it, also used in errors. file: its name in another store, which
        stays, since the run's record of its images has it. Raises UserError if it cannot be read,
        and if there are too many images or bytes.
        """
        try:
            error = image_error(path, header=True)
            if error:
                raise UserError(error)
            image = load_image(path)
        except UserError as error:
            raise UserError(str(error).replace(str(path), name)) from None
        size = path.stat().st_size
        if len(self) >= MOST_IMAGES or self.bytes + size > MOST_BYTES:
            raise UserError(
                f"{name}: this page takes at most {MOST_IMAGES:,} images and "
                f"{MOST_BYTES / 1e9:.0f} GB; remove a class first"
            )
        label = self.add_class(label)
        match = re.fullmatch(rf"{FILES}/(\d{{6}})-(.+)", file)
        if match and safe_name(match[2]) == match[2] and not (self.folder / file).exists():
            self._count = max(self._count, int(match[1]))
        else:
            self._count += 1
            file = f"{FILES}/{self._count:06}-{safe_name(name)}"
        self.bytes += size
        if len(self.classes[label]) < SHOWN:
            (self.folder / THUMBNAILS).mkdir(parents=True, exist_ok=True)
            self._thumbnail(file).write_bytes(small_jpeg(image, SMALL))
        (self.folder / FILES).mkdir(parents=True, exist_ok=True)
        os.replace(path, self.folder / file)
        self.classes[label].append(StoredImage(file, split, size))

    def add_folder(self, folder: Path, start: Callable[[], None] = lambda: None) -> list[str]:
        """Add all images in class folders, or listed in `IMAGES`; return a sentence for each image
        that is left out.

        start: called once the folder has proved readable, before the first image is added. Raises
        UserError as `scan_folder` and `scan_table`.
        """
        ignored: Counter[str] = Counter()
        is_listed = (folder / IMAGES).is_file()
        splits = scan_table(folder / IMAGES) if is_listed else scan_folder(folder, ignored)
        start()
        bad = []
        for split, rows in splits.items():
            split_name = "" if split == "all" else split
            for row in rows:
                is_inside = row.image.is_relative_to(folder)
                file = row.image.relative_to(folder).as_posix() if is_inside else row.image.name
                name = original_name(file) if is_listed else file
                earlier = file if is_listed and is_inside else ""
                try:
                    self.add(row.image, row.label, name, split_name, earlier)
                except UserError as error:
                    bad.append(str(error).replace(f"{folder}/", ""))
        note = ignored_note(ignored)
        return [*bad, note] if note else bad

    def shown(self, label: str) -> list[str]:
        """Return the names of a class's images that have a thumbnail."""
        return [Path(image.file).name for image in self.classes[label][:SHOWN]]

    def thumbnail(self, name: str) -> bytes:
        """Return the thumbnail of an image that `shown` names, a JPEG. Raises UserError if there is
        none."""
        try:
            return self._thumbnail(name).read_bytes()
        except (OSError, ValueError):
            raise UserError(f"{quoted(name)}: no such image") from None

    def _thumbnail(self, file: str) -> Path:
        return self.folder / THUMBNAILS / Path(file).name

    def write(self) -> None:
        """Write the list that `fit` reads. Raises UserError if fewer than two classes have images
        to learn from."""
        labels = [
            label
            for label, images in self.classes.items()
            if any(image.split in ("", "train") for image in images)
        ]
        if len(labels) < 2:
            raise UserError(
                "add images of at least two classes: a classifier needs something to tell apart"
            )
        has_splits = any(image.split for images in self.classes.values() for image in images)
        rows = []
        for label in labels:
            for image in self.classes[label]:
                split = [image.split or "train"] if has_splits else []
                rows.append([image.file, label, *split])
        header = ["path", "label", *["split"] * has_splits]
        write_text(self.folder / IMAGES, csv_text(header, rows))

    def files(self) -> Iterable[str]:
        return (image.file for images in self.classes.values() for image in images)


def safe_name(name: str) -> str:
    """Return a name that is safe in any file system and archive."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", Path(name).name)[-60:].lstrip("._-") or "image"


def original_name(file: str) -> str:
    """Return what an image was called before `ImageStore.add` renamed it."""
    return re.sub(rf"^{FILES}/\d+-", "", file)


# Zips


def unzip(archive: Path, folder: Path) -> Path:
    """Unpack a zip into a folder, and return its `inner` one. Raises UserError as `unpack`, and for
    too many members."""
    most = 2 * MOST_IMAGES
    if listing_size(archive) > MOST_LISTING:
        raise UserError(f"{archive.name}: lists far more files than the {most:,} that are allowed")
    try:
        with zipfile.ZipFile(archive) as file:
            count = len(file.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"{archive.name}: not a readable zip file ({error})") from None
    if count > most:
        raise UserError(f"{archive.name}: holds {count:,} files, and at most {most:,} are allowed")
    folder.mkdir(parents=True)
    try:
        unpack(archive, folder, Budget.of_disk(MOST_ZIP))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return inner(folder)
