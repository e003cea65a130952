"""Sorts images into one folder per label: copies, moves or links them, and never overwrites
anything."""

from __future__ import annotations

import errno
import os
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rmadapter.errors import UserError
from rmadapter.support.files import atomic, cache_folder

RESERVED = re.compile(
    r"con|prn|aux|nul|(com|lpt)[0-9\u00b9\u00b2\u00b3]", re.IGNORECASE
)  # on Windows, with any suffix
UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]')  # in a folder name, on some system


@dataclass(eq=False)
class Sorter:
    """root: parent of the folders. labels: all that answers may have."""

    root: Path
    labels: Sequence[str]
    how: Literal["copy", "move", "link"] = "copy"
    _taken: dict[str, int] = field(
        default_factory=dict
    )  # place, as by `_same` -> how often it was wanted

    def __post_init__(self) -> None:
        self.folders = {label: _folder_name(label) for label in self.labels}
        owners: dict[str, str] = {}
        for label, folder in self.folders.items():
            if (other := owners.setdefault(_same(folder), label)) != label:
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
        here = self.root.resolve()
        for folder in searched:
            if folder.resolve() in (here, *here.parents):
                raise UserError(
                    f"{self.root}: lies in {folder}, which is searched for images: choose another folder to sort into"
                )
        homes = {folder: folder.resolve() for folder in {image.parent for image in images}}
        targets = {here / name for name in self.folders.values()}
        for folder in [*map(Path.resolve, searched), *homes.values()]:
            if not targets.isdisjoint((folder, *folder.parents)):
                raise UserError(
                    f"{folder}: images are sorted into it as well: choose another folder to sort into"
                )
        if self.how == "copy":
            return
        cache = cache_folder().resolve()
        if inside := next(
            (folder for folder, home in homes.items() if cache in home.parents), None
        ):
            raise UserError(
                f"{inside}: images from an archive can only be copied: leave out --{self.how}"
            )
        every = Counter(
            homes[image.parent] / image.name for image in images
        )  # one spelling per path
        if self.how == "move" and every.total() > len(every):
            raise UserError(
                f"{every.most_common(1)[0][0]}: is given twice, but can only be moved once"
            )

    def place(self, image: Path, label: str) -> Path:
        """A free path for an image, with a number if its name is taken."""
        folder = self.root / self.folders[label]
        while True:
            key = _same(str(folder / image.name))
            count = self._taken[key] = self._taken.get(key, 0) + 1
            found = folder / (image.name if count == 1 else f"{image.stem}-{count}{image.suffix}")
            own = _same(str(found))
            if count > 1 and own in self._taken:
                continue
            self._taken.setdefault(own, 1)
            if not os.path.lexists(found):
                return found

    def resume(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Reserve the places assigned before, and bring images there that a killed process did not."""
        for row in rows:
            if "sorted_to" in row:
                self._taken.setdefault(_same(row["sorted_to"]), 1)
                if os.path.lexists(row["image"]):
                    self.put(Path(row["image"]), Path(row["sorted_to"]))

    def put(self, image: Path, place: Path) -> None:
        """Bring an image to its place, completely or not at all; an existing file there is left
        alone."""
        if os.path.lexists(place):
            return
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            if self.how == "link" or (
                self.how == "move" and image.is_symlink()
            ):  # its target may be relative
                os.symlink(image.resolve(), place)
            elif self.how == "copy" or not _renamed(image, place):
                with atomic(place, sync=self.how == "move") as temporary:
                    shutil.copyfile(image, temporary)
                    there = image.stat()
                    os.utime(
                        temporary, ns=(there.st_atime_ns, there.st_mtime_ns)
                    )  # its mode may forbid writing
            if self.how == "move":
                image.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(
                f"{image}: cannot be placed at {place} ({error.strerror or error})"
            ) from None


def _renamed(image: Path, place: Path) -> bool:
    """Rename the image if both places are on one file system; returns whether they are."""
    try:
        os.rename(image, place)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        return False
    return True


def _folder_name(label: str) -> str:
    """A label as a folder name that is valid on any system."""
    name = UNSAFE.sub("_", label).strip().rstrip(". ") or "_"
    return f"{name}_" if RESERVED.fullmatch(name.partition(".")[0].rstrip()) else name


def _same(path: str) -> str:
    """A form equal for paths that some file system may take for the same: without case and form of
    accents."""
    return unicodedata.normalize("NFC", path).casefold()
