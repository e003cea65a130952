"""All formats: which one the data at a path has, its images, and their labels if it has any."""

from __future__ import annotations

import difflib
import glob
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rmadapter.data.archives import ARCHIVES, inner, is_packed, unpack_once, unpacked_folder
from rmadapter.data.decode import formats
from rmadapter.data.formats import (
    annotated,
    class_folders,
    hf_datasets,
    imagefolder,
    tables,
    webdataset,
)
from rmadapter.data.formats.base import URL, Format, Inputs, ReadOptions, Source, in_order, search
from rmadapter.errors import UserError
from rmadapter.support.files import cache_folder, user_path

KNOWN = (
    "a folder of class folders; a table of path,label[,split] (.csv, .tsv, .parquet, .jsonl); a "
    "COCO, Label Studio or FiftyOne JSON file; a YOLO data.yaml; a .zip or .tar file; or a folder "
    "saved by `datasets`"
)


class _Archive:
    """The format of a zip or tar file: that of the data in it. It is unpacked once."""

    SUFFIXES = ARCHIVES
    HAS_BOXES = True
    HAS_COLUMNS = True

    def detects(self, path: Path) -> bool:
        return is_packed(path) and os.path.isfile(path)

    def read(self, path: Path, options: ReadOptions) -> Source:
        folder = unpack_once(path, options.budget)
        if not webdataset.is_sampled(folder):
            return _read(inner(folder), options)
        if options.crops:
            refuse_crops(path)
        ignored: Counter[str] = Counter()
        names = webdataset.class_names(path.parent) or webdataset.class_names(folder)
        return Source(
            folder, {"all": webdataset.samples(folder, names, ignored, options.budget)}, ignored
        )

    def image_root(self, path: Path) -> Path:
        folder = unpacked_folder(path)
        if not folder.is_dir() or webdataset.is_sampled(folder):
            return folder
        return images_root(inner(folder))

    def list_images(self, path: Path, options: ReadOptions) -> Inputs:
        return search(unpack_once(path, options.budget))


FORMATS: tuple[Format, ...] = (  # the first that detects a path reads it
    hf_datasets, imagefolder, annotated, webdataset, tables, _Archive(), class_folders,
)  # fmt: skip


def find_format(path: Path) -> Format | None:
    """Return the format of a file or folder; None for an unknown one."""
    return next((known for known in FORMATS if known.detects(path)), None)


def is_data_file(path: Path) -> bool:
    """Return whether a path names a file of a data format, which need not exist."""
    suffixes = [suffix for known in FORMATS for suffix in known.SUFFIXES]
    return path.name.lower().endswith(tuple(suffixes))


def open_source(
    data: str | Path, outside: bool = False, columns: Mapping[str, str] | None = None,
    crops: bool = False,
) -> Source:  # fmt: skip
    """List the images of a folder or file in any format of docs/reference/formats.md; decodes
    images only for `crops`.

    outside: whether lists may name images outside their folder. columns: as in `read_images`.
    crops: the boxes of COCO, YOLO, Label Studio and FiftyOne instead of whole images. Raises
    UserError for unknown formats, broken data, and data that takes too much memory, disk or time.
    """
    return _read(data, ReadOptions(outside, columns, crops))


def open_class_folders(folder: Path) -> Source:
    """List the images of class folders, whatever else the folder holds. Raises UserError for any
    other layout, and for a folder that cannot be read."""
    return class_folders.read(folder, ReadOptions())


def _read(data: str | Path, options: ReadOptions) -> Source:
    known = _known_format(data, options.columns, options.crops)
    return known.read(user_path(data), options)


def check_source(
    data: str | Path, columns: Mapping[str, str] | None = None, crops: bool = False
) -> None:
    """Raise UserError for what `open_source` refuses and can be seen without a search for images:
    a web address, missing data, an unknown format, options that the format lacks, a folder that
    cannot hold class folders, and an unreadable table."""
    known = _known_format(data, columns, crops)
    if known is class_folders:
        class_folders.check_layout(user_path(data))
    if known is tables:
        tables.header(user_path(data))


def check_unlabelled(folder: Path, table: str) -> None:
    """Raise UserError for a folder of the system, and for one whose images have labels already.

    Args:
        folder: A folder.
        table: Name of a table in it for Hugging Face's ImageFolder, which may have the labels.
    """
    if folder.resolve().parts[:2] in class_folders.ENDLESS:
        raise UserError(f"{folder}: a folder of the system, which holds no images")
    known = find_format(folder)
    is_own = known is imagefolder and os.path.lexists(folder / table)
    if not (is_own or known is class_folders):
        what = "already holds labels, which every command reads"
        raise UserError(f"{folder}: {what}; give a folder of images without labels")


def _known_format(
    data: str | Path, columns: Mapping[str, str] | None = None, crops: bool = False
) -> Format:
    """Return the format of data. Raises UserError for a web address, missing data, an unknown
    format, and options that the format lacks."""
    refuse_address(str(data))
    path = user_path(data)
    known = find_format(path) if os.path.exists(path) else None
    if known is None:
        what = "unknown format" if os.path.exists(path) else "no such file or folder"
        raise UserError(f"{path}: {what}; give {KNOWN}")
    if crops and not known.HAS_BOXES:
        refuse_crops(path)
    if any((columns or {}).values()) and not known.HAS_COLUMNS:
        raise UserError(f"{path}: has no columns; --image-column and the like are for tables")
    return known


def source_folder(path: Path, root: Path) -> Path:
    """Return what has the data's folders: the path itself, or for an archive `root`, the folder of
    its images, which `open_source` has unpacked."""
    return root if isinstance(find_format(path), _Archive) else path


def images_root(data: str | Path, crops: bool = False) -> Path:
    """Return the folder that a data set's image names are relative to, the root of `open_source`'s
    result; unpacks nothing. crops: as in `open_source`."""
    path = user_path(data)
    if crops:
        return cache_folder() / "crops"
    known = find_format(path) if os.path.exists(path) else None
    return path if known is None else known.image_root(path)


def list_images(path: Path, options: ReadOptions) -> Inputs | None:
    """List all images of a file or folder, labelled or not; None for an unknown format."""
    if options.crops:
        source = _read(path, replace(options, columns=None))
        images = [row.image for rows in source.splits.values() for row in rows]
        return Inputs(list(dict.fromkeys(images)), [], source.ignored)
    known = find_format(path)
    return None if known is None else known.list_images(path, options)


def refuse_crops(path: Path) -> None:
    """Raise UserError for data without boxes."""
    what = "--crops (crops=True) needs boxes (COCO, YOLO, Label Studio, FiftyOne)"
    raise UserError(f"{path}: {what}; there are none here")


def find_images(
    words: Sequence[str], column: str = "", outside: bool = False, none: bool = False,
    crops: bool = False,
) -> Inputs:  # fmt: skip
    """Find the images that `words` name.

    words: files, folders (searched to any depth), patterns such as "photos/*.jpg", data in any
    other format of docs/reference/formats.md, and - for paths on stdin, one per line. A named file
    is included whatever it holds, and one on stdin even if it is missing. column: a table's image
    column; its paths are relative to the table's folder. outside: whether paths may leave that
    folder. none: allow finding no images, since all of them may have been moved. crops: use the
    boxes of annotations as images. Raises UserError for a web address, a missing file, an
    unreadable table, and if there are no images.
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
    a search. none: allow missing files, which may have been moved."""
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
        elif match.suffix.lower() in formats():
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
