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

from rmadapter.data.catalog.fetch import unpack
from rmadapter.data.decode import image_error
from rmadapter.data.decode_limits import ignored_note
from rmadapter.data.formats.archives import inner
from rmadapter.data.formats.class_folders import scan_folder
from rmadapter.data.formats.tables import scan_table
from rmadapter.data.names import key, prompt_names
from rmadapter.errors import UserError, is_text, quoted
from rmadapter.support.files import csv_text, write_text

IMAGES, FILES = "images.csv", "files"
MOST_IMAGES, MOST_BYTES, MOST_CLASSES = 20_000, 4_000_000_000, 1_000  # per visitor
MOST_LISTING = 2**24  # bytes of a zip's list of files
MOST_ZIP = 2_000_000_000  # bytes, packed or not
LONGEST = 100  # characters of a class's name


class Shot(NamedTuple):
    """file: relative to the visitor's folder. split: "train", "val", "test", or "" if not given.
    size: in bytes."""

    file: str
    split: str = ""
    size: int = 0


class Shelf:
    """folder: the visitor's, with the images in `FILES`, and their list in `IMAGES` once written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.classes: dict[str, list[Shot]] = {}  # by label, in order of arrival
        self._count = self._bytes = 0

    def __len__(self) -> int:
        return sum(map(len, self.classes.values()))

    def add_class(self, written: str) -> str:
        """Add a class; returns its label, or that of a class that is there already and is the same
        in a prompt.

        Raises UserError for an empty or very long name, and for too many classes.
        """
        label = spelled(written)
        label = next((known for known in self.classes if key(known) == key(label)), label)
        if label not in self.classes and len(self.classes) == MOST_CLASSES:
            raise UserError(
                f"this page takes at most {MOST_CLASSES:,} classes: use the command line for more"
            )
        self.classes.setdefault(label, [])
        return label

    def remove(self, label: str) -> None:
        """Remove a class with its images. Raises UserError if there is none."""
        if label not in self.classes:
            raise UserError(f"{quoted(label)}: no such class")
        for shot in self.classes.pop(label):
            (self.folder / shot.file).unlink(missing_ok=True)
            self._bytes -= shot.size

    def clear(self) -> None:
        for label in [*self.classes]:
            self.remove(label)

    def take(self, path: Path, label: str, name: str, split: str = "", kept: str = "") -> None:
        """Take an image by moving its file here. name: what its owner called it, also used in
        errors. kept: its file on another shelf, a name that stays, since the run's record of its
        images has it.

        Raises UserError if it cannot be read, and if there are too many images or bytes.
        """
        if bad := image_error(path):
            raise UserError(bad.replace(str(path), name))
        size = path.stat().st_size
        if len(self) >= MOST_IMAGES or self._bytes + size > MOST_BYTES:
            raise UserError(
                f"{name}: this page takes at most {MOST_IMAGES:,} images and {MOST_BYTES / 1e9:.0f} GB: use the "
                f"command line for more"
            )
        label = self.add_class(label)
        named = re.fullmatch(rf"{FILES}/(\d{{6}})-(.+)", kept)
        if named and plain(named[2]) == named[2] and not (self.folder / kept).exists():
            file, self._count = kept, max(self._count, int(named[1]))
        else:
            self._count += 1
            file = f"{FILES}/{self._count:06}-{plain(name)}"
        self._bytes += size
        (self.folder / FILES).mkdir(parents=True, exist_ok=True)
        os.replace(path, self.folder / file)
        self.classes[label].append(Shot(file, split, size))

    def take_folder(self, folder: Path, start: Callable[[], None] = lambda: None) -> list[str]:
        """Take all images in class folders, or listed in `IMAGES`; returns a sentence for each that
        is left out.

        start: called once the folder has proved readable, before the first image is taken. Raises
        UserError as `scan_folder` and `scan_table`.
        """
        ignored: Counter[str] = Counter()
        listed = (folder / IMAGES).is_file()
        rows = scan_table(folder / IMAGES) if listed else scan_folder(folder, ignored)
        start()
        bad = []
        for split, some in rows.items():
            for row in some:
                try:
                    ours = listed and row.image.is_relative_to(folder)
                    kept = row.image.relative_to(folder).as_posix() if ours else ""
                    name = shown(row.image, folder, listed)
                    self.take(row.image, row.label, name, "" if split == "all" else split, kept)
                except UserError as error:
                    bad.append(str(error).replace(f"{folder}/", ""))
        return [*bad, *filter(None, [ignored_note(ignored)])]

    def write(self) -> None:
        """Write the list that `fit` reads. Raises UserError if fewer than two classes have images
        to learn from."""
        learnt = [
            label
            for label, shots in self.classes.items()
            if any(shot.split in ("", "train") for shot in shots)
        ]
        if len(learnt) < 2:
            raise UserError(
                "give images of at least two classes: a classifier needs something to tell apart"
            )
        splits = any(shot.split for shots in self.classes.values() for shot in shots)
        shots = [(shot, label) for label in learnt for shot in self.classes[label]]
        rows = [[shot.file, label, *[shot.split or "train"] * splits] for shot, label in shots]
        write_text(self.folder / IMAGES, csv_text(["path", "label", *["split"] * splits], rows))

    def files(self) -> Iterable[str]:
        return (shot.file for shots in self.classes.values() for shot in shots)


def spelled(written: str) -> str:
    """A class name without odd spaces. Raises UserError if it is empty, very long, or no text to a
    tokenizer."""
    label = " ".join(written.split())
    if not is_text(label) or len(label) > LONGEST:
        raise UserError(
            f"{quoted(label)}: a class name must be text of at most {LONGEST} characters"
        )
    prompt_names([label])
    return label


def plain(name: str) -> str:
    """A name that is safe in any file system and archive."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", Path(name).name)[-60:].lstrip("._-") or "image"


def shown(image: Path, folder: Path, ours: bool) -> str:
    """The name of an image as its owner knows it. ours: whether `Shelf.take` named the file."""
    name = image.relative_to(folder).as_posix() if image.is_relative_to(folder) else image.name
    return own_name(name) if ours else name


def own_name(file: str) -> str:
    """What an image was called before `Shelf.take` renamed it."""
    return re.sub(rf"^{FILES}/\d+-", "", file)


def listing(archive: Path) -> int:
    """Bytes of the list of files at a zip's end, as its end says, before any of them is read; 0 if
    it has no end."""
    with open(archive, "rb") as file:
        file.seek(max(0, archive.stat().st_size - 2**16 - 100))
        tail = file.read()
        place = len(tail) - 22 if tail[-22:-18] == b"PK\5\6" else tail.rfind(b"PK\5\6")
        if place < 0:
            return 0
        size, before = (
            int.from_bytes(tail[place + 12 : place + 16], "little"),
            tail[max(0, place - 20) : place],
        )
        if before[:4] == b"PK\6\7":  # of a large one: where its own end is
            file.seek(int.from_bytes(before[8:16], "little"))
            size = max(size % (2**32 - 1), int.from_bytes(file.read(48)[40:], "little"))
        return size


def unzipped(archive: Path, folder: Path) -> Path:
    """Unpack a zip into a folder; returns its `inner` one. Raises UserError as `unpack`, and for
    too many members."""
    if listing(archive) > MOST_LISTING:
        raise UserError(
            f"{archive.name}: lists far more files than the {2 * MOST_IMAGES:,} that are allowed"
        )
    try:
        with zipfile.ZipFile(archive) as opened:
            count = len(opened.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"{archive.name}: not a readable zip file ({error})") from None
    if count > 2 * MOST_IMAGES:
        raise UserError(
            f"{archive.name}: holds {count:,} files, and at most {2 * MOST_IMAGES:,} are allowed"
        )
    folder.mkdir(parents=True)
    try:
        unpack(archive, folder, MOST_ZIP)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return inner(folder)
