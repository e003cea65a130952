"""Images to predict: turns files, folders, patterns, tables and stdin into one list of paths; opens
no image."""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rmadapter.data.decode_limits import URL, formats, ignored_note, listed_image
from rmadapter.data.formats.archives import is_packed, unpacked
from rmadapter.data.formats.columns import SUFFIXES, read_rows
from rmadapter.data.formats.hf_datasets import all_images, is_library
from rmadapter.data.formats.scan import image_files, in_order
from rmadapter.data.formats.sources import ANNOTATED, annotated, open_source
from rmadapter.data.formats.webdataset import shards
from rmadapter.errors import UserError
from rmadapter.support.files import user_path


@dataclass
class Inputs:
    """files: in the order given, those of a folder sorted. folders: those searched. ignored: number
    of other files in them, by suffix."""

    files: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)

    @property
    def note(self) -> str:
        """ "5 files ignored: .heic 3, .txt 2", or nothing."""
        return ignored_note(self.ignored)


def find_images(
    words: Sequence[str],
    column: str = "",
    outside: bool = False,
    none: bool = False,
    crops: bool = False,
) -> Inputs:
    """Find the images that `words` name.

    words: files, folders (searched to any depth), patterns such as "photos/*.jpg", tables (CSV,
    TSV, parquet, JSON lines), archives, folders saved by `datasets`, annotations (JSON of COCO,
    Label Studio or FiftyOne, YOLO's data.yaml), and - for paths on stdin, one per line. A named
    file is included whatever it holds. column: a table's image column; its paths are relative to
    the table's folder. outside: whether paths may leave that folder. none: allow finding no images,
    since all of them may have been moved. crops: use the boxes of annotations as images. Raises
    UserError for a web address, an unreadable table, and if there are no images.
    """
    found = Inputs()
    for word in words:
        for name in _lines() if word == "-" else [word]:
            if URL.match(name):
                raise UserError(
                    f"{name!r:.200}: a web address; fetch the image first, for example with `curl -O`"
                )
            _add(found, name, column, outside, none, crops)
    if not found.files and not none:
        why = f" ({found.note})" if found.note else ""
        raise UserError(f"{', '.join(words)[:200]}: no images in a supported format{why}")
    return found


def _add(found: Inputs, name: str, column: str, outside: bool, none: bool, crops: bool) -> None:
    path = user_path(name)
    if is_library(path) and not crops:
        found.files += all_images(path, column, outside)
    elif crops:
        source = open_source(path, outside, crops=crops)
        found.files += dict.fromkeys(row.image for rows in source.splits.values() for row in rows)
        found.ignored += source.ignored
    elif os.path.isdir(path):
        inside = [file for files in shards(path).values() for file in files]
        found.files += [image for shard in inside for image in image_files(unpacked(shard), set())]
        _search(found, path)
        found.ignored -= Counter(shard.suffix.lower() for shard in inside)
    elif os.path.isfile(path) and path.suffix.lower() in ANNOTATED:
        found.files += dict.fromkeys(
            image for marks in annotated(path, outside).values() for image in marks
        )
    elif os.path.isfile(path) and is_packed(path):
        _search(found, unpacked(path))
    elif path.suffix.lower() in SUFFIXES:
        found.files += _of_table(path, column, outside)
    elif glob.has_magic(name) and not os.path.lexists(path):
        if not _match(found, path) and not none:
            raise UserError(f"{name!r:.200}: no file matches this pattern")
    else:
        found.files.append(path)


def _search(found: Inputs, folder: Path) -> None:
    found.files += image_files(folder, set(), found.ignored)
    found.folders.append(folder)


def _match(found: Inputs, path: Path) -> bool:
    """Add matching files, and matching folders unless ** has already searched them; whether
    anything matched."""
    deep, matches = (
        "**" in path.parts,
        in_order(Path(match) for match in glob.iglob(str(path), recursive=True)),
    )
    for match in matches:
        if not match.is_dir():
            taken = match.suffix.lower() in formats()
            found.files += [match] * taken
            found.ignored[match.suffix.lower() or "no suffix"] += not taken
        elif not deep:
            _search(found, match)
    found.ignored += Counter()  # drops zero counts
    if deep:
        found.folders.append(Path(*path.parts[: path.parts.index("**")]))
    return bool(matches)


def _lines() -> Iterator[str]:
    """Lines of stdin without line ends; names need not be UTF-8."""
    data = b"" if sys.stdin is None else sys.stdin.buffer.read()
    return (os.fsdecode(line) for line in data.splitlines() if line)


def _of_table(path: Path, column: str, outside: bool) -> list[Path]:
    rows = read_rows(path, ["image"], named={"image": column})
    return [listed_image(path, where, cells["image"], outside) for where, cells in rows]
