"""The images of one visitor by class: limited in number and size, decoded once as a check, and
renamed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from rmadapter import UserError
from rmadapter.artifacts import small_jpeg
from rmadapter.data import (
    Row,
    image_error,
    image_formats,
    locate,
    open_class_folders,
    typed_name,
    write_labels,
)

IMAGES = "images.csv"  # what a run calls the list of its images
FILES, THUMBNAILS = "files", "thumbnails"  # folders of a visitor
MAX_IMAGES, MAX_BYTES = 20_000, 4_000_000_000  # per visitor
MAX_CLASSES = 1_000
MAX_ZIP_BYTES = 2_000_000_000  # packed or not
THUMBNAIL_SIDE = 96  # pixels
THUMBNAILS_PER_CLASS = 5


class StoredImage(NamedTuple):
    """An image of a visitor.

    Attributes:
        file: Path relative to the visitor's folder.
        split: "train", "val", "test", or "" if unknown.
        size: Bytes of the file.
    """

    file: str
    split: str = ""
    size: int = 0


class ImageStore:
    """The images of a visitor, in `FILES` of their folder; `IMAGES` lists them once written. The
    first `THUMBNAILS_PER_CLASS` of a class have small copies in `THUMBNAILS`."""

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
        if name in self.classes:  # as for most images; to compare it with each class takes longer
            return name
        label = typed_name(name, self.classes)
        if label not in self.classes and len(self.classes) == MAX_CLASSES:
            raise UserError(f"this page takes at most {MAX_CLASSES:,} classes; remove some first")
        self.classes.setdefault(label, [])
        return label

    def remove(self, label: str) -> None:
        """Remove a class with its images. Raises UserError if there is none."""
        if label not in self.classes:
            raise UserError(f"{label!r:.80}: no such class")
        for image in self.classes.pop(label):
            (self.folder / image.file).unlink(missing_ok=True)
            self._thumbnail(image.file).unlink(missing_ok=True)
            self.bytes -= image.size

    def clear(self) -> None:
        for label in [*self.classes]:
            self.remove(label)

    def add(self, path: Path, label: str, name: str, split: str = "", file: str = "") -> None:
        """Add an image by moving its file here.

        Args:
            path: The file.
            label: Its class, which is added if it is new.
            name: What its owner called it, also used in errors.
            split: As in `StoredImage`.
            file: Its name in another store, which stays, since the run's record of its images has
                it.

        Raises:
            UserError: An image that cannot be read; too many images or bytes.
        """
        with called((path, name)):
            reason = image_error(path, header=True)
            if reason:
                raise UserError(reason)
            thumbnail = small_jpeg(path, THUMBNAIL_SIDE)
        size = path.stat().st_size
        if len(self) >= MAX_IMAGES or self.bytes + size > MAX_BYTES:
            raise UserError(
                f"{name}: this page takes at most {MAX_IMAGES:,} images and "
                f"{MAX_BYTES / 1e9:.0f} GB; remove a class first"
            )
        label = self.add_class(label)
        match = re.fullmatch(rf"{FILES}/(\d{{6}})-(.+)", file)
        if match and safe_name(match[2]) == match[2] and not (self.folder / file).exists():
            self._count = max(self._count, int(match[1]))
        else:
            self._count += 1
            file = f"{FILES}/{self._count:06}-{safe_name(name)}"
        self.bytes += size
        if len(self.classes[label]) < THUMBNAILS_PER_CLASS:
            (self.folder / THUMBNAILS).mkdir(parents=True, exist_ok=True)
            self._thumbnail(file).write_bytes(thumbnail)
        (self.folder / FILES).mkdir(parents=True, exist_ok=True)
        os.replace(path, self.folder / file)
        self.classes[label].append(StoredImage(file, split, size))

    def add_folder(self, folder: Path, start: Callable[[], None] = lambda: None) -> list[str]:
        """Add all images in class folders, or listed in `IMAGES`; return a sentence for each image
        that is left out.

        Args:
            folder: The folder.
            start: Called once it has proved readable, before the first image is added.

        Raises:
            UserError: As `open_class_folders`, or a broken list.
        """
        is_listed = (folder / IMAGES).is_file()
        source = locate(folder / IMAGES).read() if is_listed else open_class_folders(folder)
        start()
        bad = []
        for split, rows in source.splits.items():
            for row in rows:
                is_inside = row.image.is_relative_to(folder)
                file = row.image.relative_to(folder).as_posix() if is_inside else row.image.name
                name = original_name(file) if is_listed else file
                earlier = file if is_listed and is_inside else ""
                try:
                    self.add(row.image, row.label, name, "" if split == "all" else split, earlier)
                except UserError as error:
                    bad.append(str(error).replace(f"{folder}/", ""))
        return [*bad, source.note] if source.note else bad

    def shown(self, label: str) -> list[str]:
        """Return the names of a class's images that have a thumbnail."""
        return [Path(image.file).name for image in self.classes[label][:THUMBNAILS_PER_CLASS]]

    def thumbnail(self, name: str) -> bytes:
        """Return the thumbnail of an image that `shown` names, a JPEG. Raises UserError if there is
        none."""
        try:
            return self._thumbnail(name).read_bytes()
        except (OSError, ValueError):
            raise UserError(f"{name!r:.80}: no such image") from None

    def _thumbnail(self, file: str) -> Path:
        return self.folder / THUMBNAILS / Path(file).name

    def write(self) -> None:
        """Write the list that `fit` reads. Raises UserError if fewer than two classes have images
        to learn from."""
        known = {
            label: images
            for label, images in self.classes.items()
            if any(image.split in ("", "train") for image in images)
        }
        if len(known) < 2:
            raise UserError(
                "add images of at least two classes: a classifier needs something to tell apart"
            )
        has_splits = any(image.split for images in self.classes.values() for image in images)
        splits: dict[str, list[Row]] = {}
        for label, images in known.items():
            for image in images:
                split = image.split or "train" if has_splits else "all"
                splits.setdefault(split, []).append(Row(label, self.folder / image.file))
        write_labels(splits, "csv", self.folder / IMAGES, replace=True)

    def files(self) -> Iterable[str]:
        return (image.file for images in self.classes.values() for image in images)


@contextmanager
def called(*names: tuple[object, str]) -> Iterator[None]:
    """Replace paths of this machine in errors of the block.

    Args:
        names: Paths, and what their owners call them; a path in another one comes after it.
    """
    try:
        yield
    except UserError as error:
        message = str(error)
        for path, name in names:
            message = message.replace(str(path), name)
        raise UserError(message) from None


def safe_name(name: str) -> str:
    """Return a name that is safe in any file system and archive."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", Path(name).name)[-60:].lstrip("._-") or "image"


def with_image_ending(name: str, file: Path) -> str:
    """Return a name that ends as images of the format of a file do, whatever its sender said: the
    folder is searched for images by their endings.

    Args:
        name: Safe name.
        file: Image that can be read.
    """
    with Image.open(file) as image:
        endings = [end for end, kind in image_formats().items() if kind == image.format]
    known = Path(name).suffix.lower() in endings
    return name if known else f"{name.removesuffix('.')}{min(endings, key=len)}"


def original_name(file: str) -> str:
    """Return what an image was called before `ImageStore.add` renamed it."""
    return re.sub(rf"^{FILES}/\d+-", "", file)
