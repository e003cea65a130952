"""What all formats share: rows of images with labels, names of splits, files of a folder."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, NamedTuple, NoReturn, Protocol, TypeAlias, TypeVar

from rmadapter.data.budget import Budget
from rmadapter.data.decode import advice, formats
from rmadapter.errors import UserError, is_text, quoted
from rmadapter.support.files import RECORD, RUNS, SPLIT, walk

T = TypeVar("T")

CLASSNAMES = "classnames.json"
ALLOW = "--allow-outside (outside=True)"
URL = re.compile(r"[a-z][a-z0-9+.]+:/", re.IGNORECASE)  # a Path keeps one slash of two
SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
# folders of operating systems, with no data
SYSTEM_FOLDERS = ("$RECYCLE.BIN", "@eaDir", "lost+found", "System Volume Information")
UNLABELLED = "images without a label"
MOST = 1000  # characters of a class name
LISTS = (".csv", ".tsv", ".parquet", ".jsonl", ".json", ".yaml", ".yml", ".txt")  # may hold labels


class Row(NamedTuple):
    """One image. label: as written on disk. group: shared by images that belong together, "" for
    none."""

    label: str
    image: Path
    group: str = ""


Rows: TypeAlias = list[Row]


Parsed: TypeAlias = Sequence[Any]  # numbers as a file has them, which may be anything


class Mark(NamedTuple):
    """One annotation. label: class name. where: its place, for messages. box: left, top, width,
    height. size: width and height of the whole image, in the unit of the box."""

    label: str
    where: str
    box: Parsed = ()
    size: Parsed = (1, 1)


Marks: TypeAlias = dict[Path, list[Mark]]  # includes listed images without annotations


class Source(NamedTuple):
    """The images of a data set.

    - root: the folder that their names are relative to
    - splits: "train", "val" and "test", or "all" -> rows
    - ignored: number of files not read, by suffix or other reason
    - home: the folder with classnames.json, if it is not `root`, which is then in the cache
    """

    root: Path
    splits: dict[str, Rows]
    ignored: Counter[str]
    home: Path | None = None

    @property
    def note(self) -> str:
        """A note such as "5 files ignored: .cr2 3, .txt 2", or ""."""
        return ignored_note(self.ignored)


@dataclass
class Inputs:
    """Images without labels. files: in the order in which they were named, those of a folder
    sorted. folders: folders searched. ignored: number of other files in them, by suffix."""

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
    """How to read data. outside: allow lists to name images outside their folder. columns: kind ->
    column of a table, as in `read_images`. crops: use boxes instead of whole images. budget: what
    reading may still take."""

    outside: bool = False
    columns: Mapping[str, str] | None = None
    crops: bool = False
    budget: Budget = field(default_factory=Budget)


class Format(Protocol):
    """A format of data; each is a module of this package, and `registry.FORMATS` lists them.

    SUFFIXES: of its files. HAS_BOXES, HAS_COLUMNS: whether its data may have boxes to crop, and
    columns to name.
    """

    @property
    def SUFFIXES(self) -> tuple[str, ...]: ...

    @property
    def HAS_BOXES(self) -> bool: ...

    @property
    def HAS_COLUMNS(self) -> bool: ...

    def detects(self, path: Path) -> bool:
        """Return whether a file or folder has this format, as far as formats before it do not."""

    def read(self, path: Path, options: ReadOptions) -> Source:
        """List the images with their labels. Raises UserError for broken data."""

    def image_root(self, path: Path) -> Path:
        """Return the `root` of what `read` returns, without reading."""

    def list_images(self, path: Path, options: ReadOptions) -> Inputs:
        """List all images, labelled or not."""


# Names


def order(name: str) -> tuple[str, str]:
    """Sort key of names: case-insensitive, and the same on file systems that decompose accents."""
    return unicodedata.normalize("NFC", name).casefold(), name


def split_named(name: str) -> str:
    """Return the split in the name of a file or folder, such as "val" of "instances_val2017" and
    "valset"; "all" if there is none. Raises UserError if there are two."""
    words = [word.removesuffix("set") for word in re.findall("[a-z]+", name.casefold())]
    splits = list(dict.fromkeys(SPLITS[word] for word in words if word in SPLITS))
    if len(splits) > 1:
        both = " and ".join(splits)
        raise UserError(f"{name}: its name says {both}: rename it, so that it is in one split")
    return splits[0] if splits else "all"


def only_label(labels: Iterable[T], where: str) -> T | None:
    """Return the label of an image, None if it has none; repeats count once. Raises UserError,
    naming `where`, for an image with several labels."""
    different: list[T] = []
    for label in labels:
        if label not in different:
            different.append(label)
    if len(different) > 1:
        first, second = map(quoted, different[:2])
        raise UserError(
            f"{where}: has the labels {first} and {second}, but one label per image is supported: "
            f"use --crops (crops=True) for boxes, or a multi-label library such as torchvision "
            f"with BCE loss"
        )
    return different[0] if different else None


def class_name(name: str, where: str) -> str:
    """Return a class name from an annotation file, stripped. Raises UserError if it is invalid."""
    if not name.strip() or len(name) > MOST or not is_text(name):
        advice = f"use plain text of 1 to {MOST} characters"
        raise UserError(f"{where}: {quoted(name)} is not a class name: {advice}")
    return name.strip()


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
        folder: Folder to search.
        skip: Folders not to enter; gets those entered, so that none is entered twice.
        ignored: Counts other files by suffix.

    Raises:
        UserError: A folder that cannot be read.
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
            if path.suffix.lower() in formats() and not path.name.startswith("."):
                images.append(path)
            elif ignored is not None:
                ignored[file_kind(path)] += 1
    return in_order(images)


def has_run(folder: Path) -> bool:
    """Return whether `fit` wrote into a folder, finished or not."""
    return any(os.path.isfile(folder / name) for name in (RECORD, SPLIT))


def in_order(paths: Iterable[Path]) -> list[Path]:
    """Sort paths, in the same order on file systems that decompose accents."""
    return sorted(paths, key=lambda path: unicodedata.normalize("NFC", path.as_posix()))


def file_kind(path: Path) -> str:
    """Return how a file that is not read is counted."""
    return "hidden" if path.name.startswith(".") else path.suffix.lower() or "no suffix"


def search(folder: Path) -> Inputs:
    """List the images of a folder at any depth."""
    ignored: Counter[str] = Counter()
    return Inputs(image_files(folder, set(), ignored), [folder], ignored)


def count_unlisted(root: Path, listed: set[Path], ignored: Counter[str]) -> None:
    """Count a folder's unlisted images, and its other files except those that may hold labels."""
    others: Counter[str] = Counter()
    known = {os.path.abspath(image) for image in listed}
    images = [os.path.abspath(image) for image in image_files(root, set(), others)]
    unlisted = sum(image not in known for image in images)
    if unlisted:
        ignored["images without an entry"] = unlisted
    ignored.update({kind: count for kind, count in others.items() if kind not in LISTS})


def ignored_note(ignored: Counter[str]) -> str:
    """Return a note such as "3 files ignored: .txt 2, .cr2 1; .cr2 is a camera's RAW format:
    convert it to JPEG first", or "".

    ignored: number of files by suffix or by other reason.
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
        raise UserError(f"{where}: {name!r:.80} lies outside the data's folder; {ALLOW} allows it")


def listed_image(table: Path, where: str, name: str, outside: bool = False) -> Path:
    """Return the path of an image named in a table, relative to the table's folder. Raises
    UserError, naming `where`, for an empty path, a character that no path has, a web address, a
    missing file with the separators of Windows, and as `check_inside`."""
    if not name or "\0" in name:
        raise UserError(f"{where}: the path {'holds a NUL' if name else 'is empty'}")
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        raise UserError(f"{where}: {quoted(name)} is not a path that a disk can hold") from None
    if URL.match(name):
        raise UserError(f"{where}: {name!r:.200} is a web address; fetch the images first")
    check_inside(name, where, outside)
    image = table.parent / name
    if "\\" in name and os.sep == "/" and not os.path.lexists(image):
        raise UserError(
            f"{where}: {name!r:.200}: no such file; write / instead of \\ between folders"
        )
    return image


@contextmanager
def parsing(path: Path, kind: str) -> Iterator[None]:
    """Convert errors of missing or malformed values of a parsed file into a UserError."""
    try:
        yield
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = f"{type(error).__name__}: {quoted(str(error))}"
        raise UserError(f"{path}: not {kind} ({reason})") from None
