"""All formats: which one the data at a path has, its images, and their labels if it has any; and
which ones labels can be written in."""

from __future__ import annotations

import dataclasses
import difflib
import glob
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rmadapter.data.archives import (
    ARCHIVE_SUFFIXES,
    inner,
    is_packed,
    unpack_once,
    unpacked_folder,
)
from rmadapter.data.decode import image_formats
from rmadapter.data.formats import (
    annotated,
    class_folders,
    coco,
    hf_datasets,
    imagefolder,
    label_studio,
    tables,
    webdataset,
)
from rmadapter.data.formats.base import (
    URL,
    Format,
    Inputs,
    Listing,
    ReadOptions,
    Rows,
    in_order,
    search,
)
from rmadapter.errors import UserError, did_you_mean
from rmadapter.support.files import cache_folder, check_new, user_path

KNOWN_FORMATS = (
    "a folder of class folders; a table of path,label[,split] (.csv, .tsv, .parquet, .jsonl); a "
    "COCO, Label Studio or FiftyOne JSON file; a YOLO data.yaml; a .zip or .tar file; or a folder "
    "saved by `datasets`"
)


def _read_archive(path: Path, options: ReadOptions) -> Listing:
    """List the images of a zip or tar file, whose data may have any format; it is unpacked once."""
    folder = unpack_once(path, options.budget)
    if not webdataset.is_sampled(folder):
        return _located(inner(folder), options).read()
    if options.crops:
        refuse_crops(path)
    ignored: Counter[str] = Counter()
    names = webdataset.class_names(path.parent) or webdataset.class_names(folder)
    rows = webdataset.samples(folder, names, ignored, options.budget)
    return Listing(folder, {"all": rows}, ignored)


def _archive_root(path: Path) -> Path:
    folder = unpacked_folder(path)
    if not folder.is_dir() or webdataset.is_sampled(folder):
        return folder
    return images_root(inner(folder))


ARCHIVE = Format(
    "archive",
    lambda path: is_packed(path) and os.path.isfile(path),
    _read_archive,
    lambda path, options: search(unpack_once(path, options.budget)),
    _archive_root,
    suffixes=ARCHIVE_SUFFIXES,
    has_boxes=True,
    has_columns=True,
)
FORMATS: tuple[Format, ...] = (  # the first that detects a path reads it
    hf_datasets.FORMAT,
    imagefolder.FORMAT,
    annotated.FORMAT,
    webdataset.FORMAT,
    tables.FORMAT,
    ARCHIVE,
    class_folders.FORMAT,
)


def is_data_file(path: Path) -> bool:
    """Return whether a path names a file of a data format, which need not exist."""
    suffixes = [suffix for known in FORMATS for suffix in known.suffixes]
    return path.name.lower().endswith(tuple(suffixes))


# Labelled images


@dataclass(frozen=True)
class Located:
    """A file or folder of data whose format is known.

    Args:
        path: Where it is.
        format: Its format.
        options: How to read it.
    """

    path: Path
    format: Format
    options: ReadOptions

    def check(self) -> Located:
        """Return the same, once it has passed what can be seen without a search for images.

        Raises:
            UserError: A folder that cannot hold class folders, or an unreadable table.
        """
        self.format.check(self.path)
        return self

    def read(self) -> Listing:
        """List the labelled images; decodes images only to cut out boxes.

        Raises:
            UserError: Broken data, or data that takes too much memory, disk or time.
        """
        return self.format.read(self.path, self.options)


def locate(
    data: str | Path,
    columns: Mapping[str, str] | None = None,
    crops: bool = False,
    outside: bool = False,
) -> Located:
    """Find the format of a file or folder, which may be any of docs/reference/formats.md.

    Args:
        data: The path.
        columns: As for `read_images`.
        crops: Whether to list the boxes of COCO, YOLO, Label Studio and FiftyOne instead of images.
        outside: Whether lists may name images outside their folder.

    Raises:
        UserError: A web address, missing data, an unknown format, or options that the format lacks.
    """
    return _located(data, ReadOptions(outside, columns, crops))


def _located(data: str | Path, options: ReadOptions) -> Located:
    refuse_address(str(data))
    path = user_path(data)
    known = _format_of(path) if os.path.exists(path) else None
    if known is None:
        what = "unknown format" if os.path.exists(path) else "no such file or folder"
        raise UserError(f"{path}: {what}; give {KNOWN_FORMATS}")
    if options.crops and not known.has_boxes:
        refuse_crops(path)
    if any((options.columns or {}).values()) and not known.has_columns:
        raise UserError(f"{path}: has no columns; --image-column and the like are for tables")
    return Located(path, known, options)


def _format_of(path: Path) -> Format | None:
    return next((known for known in FORMATS if known.detects(path)), None)


def refuse_crops(path: Path) -> None:
    """Raise UserError for data without boxes."""
    raise UserError(
        f"{path}: --crops (crops=True) needs boxes (COCO, YOLO, Label Studio, FiftyOne); there are "
        "none here"
    )


def open_class_folders(folder: Path) -> Listing:
    """List the images of class folders, whatever else the folder holds. Raises UserError for any
    other layout, and for a folder that cannot be read."""
    return class_folders.read(folder, ReadOptions())


def check_unlabelled(folder: Path, table: str) -> None:
    """Raise UserError for a folder of the system, and for one whose images have labels already.

    Args:
        folder: A folder.
        table: Name of a table in it for Hugging Face's ImageFolder, which may have the labels.
    """
    if folder.resolve().parts[:2] in class_folders.ENDLESS:
        raise UserError(f"{folder}: a folder of the system, which holds no images")
    known = _format_of(folder)
    is_own = known is imagefolder.FORMAT and os.path.lexists(folder / table)
    if not (is_own or known is class_folders.FORMAT):
        raise UserError(
            f"{folder}: already holds labels, which every command reads; give a folder of images "
            "without labels"
        )


def images_root(data: str | Path, crops: bool = False) -> Path:
    """Return the folder that a data set's image names are relative to, the root of its `Listing`;
    unpacks nothing.

    Args:
        data: The path.
        crops: As for `locate`.
    """
    path = user_path(data)
    if crops:
        return cache_folder() / "crops"
    known = _format_of(path) if os.path.exists(path) else None
    return path if known is None else known.image_root(path)


# Any images


def list_images(path: Path, options: ReadOptions) -> Inputs | None:
    """List all images of a file or folder, labelled or not; None for an unknown format."""
    if options.crops:
        listing = _located(path, dataclasses.replace(options, columns=None)).read()
        return Inputs(list(dict.fromkeys(listing.images)), [], listing.ignored)
    known = _format_of(path)
    return None if known is None else known.list_images(path, options)


def find_images(
    words: Sequence[str],
    column: str = "",
    outside: bool = False,
    none: bool = False,
    crops: bool = False,
) -> Inputs:
    """Find the images that some words name.

    Args:
        words: Files, folders (searched to any depth), patterns such as "photos/*.jpg", data in any
            other format of docs/reference/formats.md, and - for paths on stdin, one per line. A
            named file is included whatever it holds, and one on stdin even if it is missing.
        column: A table's image column; its paths are relative to the table's folder.
        outside: Whether paths may leave that folder.
        none: Whether no images may be found, since all of them may have been moved.
        crops: Whether to use the boxes of annotations as images.

    Raises:
        UserError: A web address, a missing file, an unreadable table, or no images.
    """
    inputs = Inputs()
    options = ReadOptions(outside, {"image": column}, crops)
    check_words(words, none)
    for word in words:
        for name in _lines() if word == "-" else [word]:
            refuse_address(name)
            path = user_path(name)
            images = list_images(path, options)
            if images is None and glob.has_magic(name) and not os.path.lexists(path):
                images = _matches(path)
                if images is None and not none:
                    raise UserError(f"{name!r:.200}: no file matches this pattern")
            elif images is None:
                images = Inputs([path])
            inputs.add(images or Inputs())
    if not inputs.files and not none:
        why = f" ({inputs.note})" if inputs.note else ""
        raise UserError(f"{', '.join(words)[:200]}: no images in a supported format{why}")
    return inputs


def check_words(words: Sequence[str], none: bool = False) -> None:
    """Raise UserError for a web address or a missing file among the words of `find_images`, without
    a search.

    Args:
        words: The words.
        none: Whether files may be missing, since they may have been moved.
    """
    for word in words:
        refuse_address(word)
        path = user_path(word)
        found = word == "-" or os.path.lexists(path) or glob.has_magic(word)
        if not (found or none):
            raise UserError(f"{path}: no such file or folder{_near(path)}")


def refuse_address(name: str) -> None:
    """Raise UserError for a web address."""
    if URL.match(name):
        advice = "fetch the images first, for example with `curl -O`"
        address = name if "://" in name else name.replace(":/", "://", 1)  # was a Path
        raise UserError(f"{address!r:.200}: a web address; {advice}")


def _near(path: Path) -> str:
    """Return a question with the name in the same folder that is most like a missing one, or ""."""
    names = os.listdir(path.parent) if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {str(path.parent / close[0])!r}?" if close else ""


def _matches(pattern: Path) -> Inputs | None:
    """Return the matching files, and the images of matching folders unless ** has already searched
    them; None if nothing matches."""
    deep = "**" in pattern.parts
    matches = in_order(Path(match) for match in glob.iglob(str(pattern), recursive=True))
    inputs = Inputs()
    for match in matches:
        if match.is_dir():
            inputs.add(Inputs() if deep else search(match))
        elif match.suffix.lower() in image_formats():
            inputs.files.append(match)
        else:
            inputs.ignored[match.suffix.lower() or "no suffix"] += 1
    if deep:
        inputs.folders.append(Path(*pattern.parts[: pattern.parts.index("**")]))
    return inputs if matches else None


def _lines() -> Iterator[str]:
    """Yield the lines of stdin without line ends; names need not be UTF-8."""
    data = b"" if sys.stdin is None else sys.stdin.buffer.read()
    return (os.fsdecode(line) for line in data.splitlines() if line)


# Writing


class Writer(NamedTuple):
    """How labels are written in a format.

    Args:
        write: Writes split -> rows to a new file or folder, with paths relative to a folder.
        suffix: Of the file; "" for a folder.
        has_splits: Whether the format says of which split an image is.
    """

    write: Callable[[Mapping[str, Rows], Path, Path], None]
    suffix: str
    has_splits: bool


WRITERS = {
    "csv": Writer(tables.write, ".csv", True),
    "coco": Writer(coco.write, ".json", False),
    "label-studio": Writer(label_studio.write, ".json", False),
    "folders": Writer(class_folders.write, "", True),
}


def write_labels(
    splits: Mapping[str, Rows],
    to: str,
    out: Path,
    home: Path | None = None,
    replace: bool = False,
) -> int:
    """Write labelled images in a format that `locate` finds, and return their number.

    Args:
        splits: Split -> rows, as in `Listing`.
        to: A key of `WRITERS`; for "folders" images are copied, into a zip if `out` is called so.
        out: A new file or folder.
        home: The folder that paths are relative to, by default that of the file.
        replace: Whether a file may be replaced.

    Raises:
        UserError: An unknown format, a file of another suffix, one that exists, splits in a format
            that has none, or an unreadable image.
    """
    writer = WRITERS.get(to)
    if writer is None:
        raise UserError(f"--to {to!r:.80}: unknown{did_you_mean(to, WRITERS)}")
    if writer.suffix and out.suffix.lower() != writer.suffix:
        raise UserError(f"{out}: give --out a name that ends in {writer.suffix}")
    if not replace:
        check_new(out)
    if len(splits) > 1 and not writer.has_splits:
        others = " or ".join(name for name, other in WRITERS.items() if other.has_splits)
        raise UserError(f"--to {to}: one file has no splits; write them as {others}")
    writer.write(splits, out, home or out.parent)
    return sum(map(len, splits.values()))
