"""What all formats share: rows of images with labels, and the files of a folder."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, NamedTuple, NoReturn, TypeAlias

from rmadapter.data.budget import Budget
from rmadapter.data.decode import advice, image_formats
from rmadapter.errors import UserError, quoted
from rmadapter.support.files import RECORD, RUNS, SPLIT, walk

ALLOW_OUTSIDE = "--allow-outside (outside=True)"
URL = re.compile(r"[a-z][a-z0-9+.]+:/", re.IGNORECASE)  # a Path keeps one slash of two
# folders of operating systems, with no data
SYSTEM_FOLDERS = ("$RECYCLE.BIN", "@eaDir", "lost+found", "System Volume Information")
UNLABELLED = "images without a label"
# suffixes of files that may hold labels
LIST_SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl", ".json", ".yaml", ".yml", ".txt")
# what code raises for missing or malformed values, and what libraries do that read a broken file
OF_VALUES = (LookupError, TypeError, ValueError, AttributeError, OverflowError)
OF_LIBRARIES = (Exception,)


class Row(NamedTuple):
    """One labelled image.

    Args:
        label: As written on disk.
        image: Its file.
        group: Shared by images that belong together, "" for none.
    """

    label: str
    image: Path
    group: str = ""


Rows: TypeAlias = list[Row]


Parsed: TypeAlias = Sequence[Any]  # numbers as a file has them, which may be anything


class Mark(NamedTuple):
    """One annotation of an image.

    Args:
        label: Class name.
        where: Its place, for messages.
        box: Left, top, width, height.
        size: Width and height of the whole image, in the unit of the box.
    """

    label: str
    where: str
    box: Parsed = ()
    size: Parsed = (1, 1)


Marks: TypeAlias = dict[Path, list[Mark]]  # includes listed images without annotations


class Listing(NamedTuple):
    """The labelled images of a data set.

    Args:
        root: The folder that their names are relative to.
        splits: "train", "val" and "test", or "all" -> rows.
        ignored: Number of files not read, by suffix or other reason.
        home: The folder with classnames.json, if it is not `root`, which is then in the cache.
    """

    root: Path
    splits: dict[str, Rows]
    ignored: Counter[str]
    home: Path | None = None

    @property
    def note(self) -> str:
        """A note such as "5 files ignored: .cr2 3, .txt 2", or ""."""
        return ignored_note(self.ignored)

    @property
    def images(self) -> list[Path]:
        """The image of each row."""
        return [row.image for rows in self.splits.values() for row in rows]


@dataclass
class Inputs:
    """Images without labels.

    Args:
        files: In the order in which they were named, those of a folder sorted.
        folders: Folders that were searched.
        ignored: Number of other files in them, by suffix.
    """

    files: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)

    @property
    def note(self) -> str:
        """A note such as "5 files ignored: .cr2 3, .txt 2", or ""."""
        return ignored_note(self.ignored)

    def add(self, other: Inputs) -> None:
        """Append other images."""
        self.files += other.files
        self.folders += other.folders
        self.ignored += other.ignored


@dataclass(frozen=True)
class ReadOptions:
    """How to read data.

    Args:
        outside: Whether lists may name images outside their folder.
        columns: Kind -> column of a table, as for `read_images`.
        crops: Whether to use boxes instead of whole images.
        budget: What reading may still take.
    """

    outside: bool = False
    columns: Mapping[str, str] | None = None
    crops: bool = False
    budget: Budget = field(default_factory=Budget)


def search(folder: Path, options: ReadOptions | None = None) -> Inputs:
    """List the images of a folder at any depth."""
    ignored: Counter[str] = Counter()
    return Inputs(image_files(folder, ignored=ignored), [folder], ignored)


def _same(path: Path) -> Path:
    return path


@dataclass(frozen=True)
class Format:
    """A format of data; each is a module of this package, and `registry.FORMATS` lists them.

    Args:
        name: What it is called.
        detects: Tells whether a file or folder has this format, as far as formats before it do not.
        read: Lists the images with their labels. Raises UserError for broken data.
        list_images: Lists all images, labelled or not.
        image_root: Returns the `root` of what `read` returns, without reading.
        check: Raises UserError for what can be seen without a search for images.
        suffixes: Endings of its files.
        has_boxes: Whether its data may have boxes to crop.
        has_columns: Whether its data may have columns to name.
    """

    name: str
    detects: Callable[[Path], bool]
    read: Callable[[Path, ReadOptions], Listing]
    list_images: Callable[[Path, ReadOptions], Inputs] = search
    image_root: Callable[[Path], Path] = _same
    check: Callable[[Path], object] = _same
    suffixes: tuple[str, ...] = ()
    has_boxes: bool = False
    has_columns: bool = False


# Folders


def entries_of(folder: Path) -> list[Path]:
    """Return the entries of a folder. Raises UserError if it may not be read."""
    try:
        return [*folder.iterdir()]
    except OSError as error:
        refuse(error)


def refuse(error: OSError) -> NoReturn:
    """Raise the UserError for a folder that cannot be read."""
    raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from None


def image_files(
    folder: Path, skip: set[Path] | None = None, ignored: Counter[str] | None = None
) -> list[Path]:
    """Return the files with an image suffix at any depth, sorted, without those that a run holds.

    Args:
        folder: Where to search.
        skip: Folders not to enter; gets those entered, so that none is entered twice.
        ignored: Counts other files by suffix.

    Raises:
        UserError: A folder may not be read.
    """
    skip = set() if skip is None else skip
    images: list[Path] = []
    reals: dict[str, str] = {}  # folder -> its resolved path
    for name, folders, files in walk(folder, followlinks=True, onerror=refuse):
        parent = reals.get(os.path.dirname(name))
        if parent is None or os.path.islink(name):
            reals[name] = os.path.realpath(name)
        else:  # resolving each anew took over a minute at a depth of 2,000
            reals[name] = os.path.join(parent, os.path.basename(name))
        real = Path(reals[name])
        if real in skip:
            folders.clear()
            continue
        skip.add(real)
        hidden = [inner for inner in folders if inner.startswith(".") or inner in SYSTEM_FOLDERS]
        if os.path.basename(name) == RUNS:  # where `fit` and `app` keep them, in a folder of images
            hidden += [inner for inner in folders if has_run(Path(name, inner))]
        folders[:] = sorted({*folders} - {*hidden})
        for path in (Path(name, file) for file in files):
            if is_image_name(path):
                images.append(path)
            elif ignored is not None:
                ignored[file_kind(path)] += 1
    return in_order(images)


def is_image_name(path: Path) -> bool:
    """Return whether a visible file is an image, by its suffix."""
    return path.suffix.lower() in image_formats() and not path.name.startswith(".")


def has_run(folder: Path) -> bool:
    """Return whether `fit` wrote into a folder, finished or not."""
    return any(os.path.isfile(folder / name) for name in (RECORD, SPLIT))


def in_order(paths: Iterable[Path]) -> list[Path]:
    """Sort paths, in the same order on file systems that decompose accents."""
    return sorted(paths, key=lambda path: unicodedata.normalize("NFC", path.as_posix()))


def file_kind(path: Path) -> str:
    """Return how a file that is not read is counted."""
    return "hidden" if path.name.startswith(".") else path.suffix.lower() or "no suffix"


def count_unlisted(root: Path, listed: Iterable[Path], ignored: Counter[str]) -> None:
    """Count a folder's unlisted images, and its other files except those that may hold labels."""
    others: Counter[str] = Counter()
    known = {os.path.abspath(image) for image in listed}
    images = [os.path.abspath(image) for image in image_files(root, ignored=others)]
    unlisted = sum(image not in known for image in images)
    if unlisted:
        ignored["images without an entry"] = unlisted
    ignored.update({kind: count for kind, count in others.items() if kind not in LIST_SUFFIXES})


def ignored_note(ignored: Counter[str]) -> str:
    """Return a note such as "3 files ignored: .txt 2, .cr2 1; .cr2 is a camera's RAW format:
    convert it to JPEG first", or "".

    Args:
        ignored: Number of files by suffix or by other reason.
    """
    count = ignored.total()
    if not count:
        return ""
    kinds = sorted(ignored, key=lambda kind: (-ignored[kind], kind))
    numbers = ", ".join(f"{kind} {ignored[kind]}" for kind in kinds)
    hints = dict.fromkeys(advice(kind) for kind in kinds if kind.startswith("."))
    note = f"{count} file{'s' * (count > 1)} ignored: {numbers}"
    return "; ".join([note, *filter(None, hints)])


# Lists


def check_inside(name: str, where: str, outside: bool = False) -> None:
    """Raise UserError if a listed path leaves the folder of its list, unless `outside` is set.

    Otherwise a list from someone else could put any image of this machine into a report.
    """
    path = PurePath(name)
    if not outside and (path.anchor or ".." in path.parts):
        message = f"{where}: {name!r:.80} lies outside the data's folder; {ALLOW_OUTSIDE} allows it"
        raise UserError(message)


def listed_image(folder: Path, where: str, name: str, outside: bool = False) -> Path:
    """Return the path of an image that a list names.

    Args:
        folder: The folder that the path is relative to.
        where: Place of the path, for messages.
        name: The path as written.
        outside: Whether it may leave the folder.

    Raises:
        UserError: An empty path, a character that no path has, a web address, a missing file with
            the separators of Windows, and as for `check_inside`.
    """
    if not name or "\0" in name:
        raise UserError(f"{where}: the path {'holds a NUL' if name else 'is empty'}")
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        raise UserError(f"{where}: {quoted(name)} is not a path that a disk can hold") from None
    if URL.match(name):
        raise UserError(f"{where}: {name!r:.200} is a web address; fetch the images first")
    check_inside(name, where, outside)
    image = folder / name
    if "\\" in name and os.sep == "/" and not os.path.lexists(image):
        raise UserError(
            f"{where}: {name!r:.200}: no such file; write / instead of \\ between folders"
        )
    return image


@contextmanager
def parsing(
    path: Path, kind: str, errors: tuple[type[Exception], ...] = OF_VALUES
) -> Iterator[None]:
    """Convert errors of missing or malformed values of a file that is read into a UserError.

    Args:
        path: The file.
        kind: What it should be, such as "a COCO file".
        errors: The errors.
    """
    try:
        yield
    except UserError:
        raise
    except errors as error:
        raise UserError(
            f"{path}: not {kind} ({type(error).__name__}: {quoted(str(error))})"
        ) from None
