"""Sort images into one folder per label: copy, move or link them, and never overwrite anything."""

from __future__ import annotations

import errno
import os
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rmadapter.errors import UserError
from rmadapter.predict.answer import Row
from rmadapter.support.files import atomic, cache_folder

# names that Windows reserves, with any suffix
RESERVED = re.compile(r"con|prn|aux|nul|(com|lpt)[0-9\u00b9\u00b2\u00b3]", re.IGNORECASE)
UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]')  # in a folder name, on some system


@dataclass(eq=False)
class Sorter:
    """Folders for the images of each label.

    root: parent of the folders. labels: all that answers may have. Raises UserError for two labels
    that would share a folder.
    """

    root: Path
    labels: Sequence[str]
    how: Literal["copy", "move", "link"] = "copy"
    # normalised path -> how many images wanted it
    _taken: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folders = {label: _folder_name(label) for label in self.labels}
        owners: dict[str, str] = {}
        for label, folder in self.folders.items():
            other = owners.setdefault(_normalised(folder), label)
            if other != label:
                raise UserError(
                    f"labels {other!r} and {label!r} would share the folder {folder!r}: rename one"
                )

    @property
    def settings(self) -> list[str]:
        return [str(self.root.resolve()), self.how]

    def check(self, searched: Sequence[Path], images: Sequence[Path]) -> None:
        """Raise UserError if the search for images would find sorted ones, if an image would be
        moved twice, or if an image from an archive, which must stay in the cache, would not be
        copied."""
        root = self.root.resolve()
        for folder in searched:
            if folder.resolve() in (root, *root.parents):
                raise UserError(
                    f"{self.root}: lies in {folder}, which is searched for images; choose another "
                    "folder to sort into"
                )
        homes = {folder: folder.resolve() for folder in {image.parent for image in images}}
        targets = {root / name for name in self.folders.values()}
        for folder in [*map(Path.resolve, searched), *homes.values()]:
            if not targets.isdisjoint((folder, *folder.parents)):
                raise UserError(
                    f"{folder}: images are sorted into it as well; choose another folder to sort "
                    "into"
                )
        if self.how == "copy":
            return
        cache = cache_folder().resolve()
        for folder, home in homes.items():
            if cache in home.parents:
                raise UserError(
                    f"{folder}: images from an archive can only be copied; remove --{self.how}"
                )
        counts = Counter(homes[image.parent] / image.name for image in images)
        if self.how == "move" and counts.total() > len(counts):
            twice = counts.most_common(1)[0][0]
            raise UserError(f"{twice}: is given twice, but can only be moved once")

    def place(self, image: Path, label: str) -> Path:
        """Return a free path for an image, with a number if its name is taken."""
        folder = self.root / self.folders[label]
        while True:
            key = _normalised(str(folder / image.name))
            count = self._taken[key] = self._taken.get(key, 0) + 1
            name = image.name if count == 1 else f"{image.stem}-{count}{image.suffix}"
            target = folder / name
            target_key = _normalised(str(target))
            if count > 1 and target_key in self._taken:
                continue
            self._taken.setdefault(target_key, 1)
            if not os.path.lexists(target):
                return target

    def resume(self, rows: Iterable[Row]) -> None:
        """Reserve the places of earlier rows, and bring images there that a killed process did
        not."""
        for row in rows:
            if "sorted_to" in row:
                image, target = str(row["image"]), str(row["sorted_to"])
                self._taken.setdefault(_normalised(target), 1)
                if os.path.lexists(image):
                    self.put(Path(image), Path(target))

    def put(self, image: Path, place: Path) -> None:
        """Bring an image to its place, completely or not at all; an existing file there is left
        alone."""
        if os.path.lexists(place):
            return
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            # the target of a link may be relative
            if self.how == "link" or (self.how == "move" and image.is_symlink()):
                os.symlink(image.resolve(), place)
            elif self.how == "copy" or not _renamed(image, place):
                with atomic(place, sync=self.how == "move") as temporary:
                    shutil.copyfile(image, temporary)  # without the mode, which may forbid writing
                    times = image.stat()
                    os.utime(temporary, ns=(times.st_atime_ns, times.st_mtime_ns))
            if self.how == "move":
                image.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(
                f"{image}: cannot be placed at {place} ({error.strerror or error})"
            ) from None


def _renamed(image: Path, place: Path) -> bool:
    """Rename the image if both places are on one file system; return whether they are."""
    try:
        os.rename(image, place)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        return False
    return True


def _folder_name(label: str) -> str:
    """Return a label as a folder name that is valid on any system."""
    name = UNSAFE.sub("_", label).strip().rstrip(". ") or "_"
    return f"{name}_" if RESERVED.fullmatch(name.partition(".")[0].rstrip()) else name


def _normalised(path: str) -> str:
    """Return a form that is equal for paths that some file system takes for the same, whatever
    their case and accents."""
    return unicodedata.normalize("NFC", path).casefold()
