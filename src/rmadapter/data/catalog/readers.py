"""The archive formats of public data sets, one reader each: all become the table of a CoOp split
file.

    split -> [(path below the image folder, label, class name), ...], in the order of the file

The draw of shots depends on that order. Where an archive has no split and CoOp (Zhou et al., IJCV
2022) makes a random one, it is made here the same way, from a fixed seed and sorted file names.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from rmadapter.data.catalog.matlab import Value, structures, variable
from rmadapter.data.decode import image_formats
from rmadapter.data.formats.tables import read_columns
from rmadapter.data.image_set import ImageSet
from rmadapter.errors import UserError, is_text, quoted
from rmadapter.support.files import read_json, read_text

CoopRow: TypeAlias = tuple[str, int, str]  # path, label, class name
CoopSplits: TypeAlias = dict[str, list[CoopRow]]  # by the name of the split
T = TypeVar("T")

SPLIT_NAMES = ("train", "val", "test")
# CoOp's first run with seed 1 makes the same splits if the archive lists files in an order
SPLIT_SEED = 1
SPELLINGS: dict[str, Callable[[str], str]] = {
    "as is": str,
    "lower": str.lower,
    "year first": lambda name: " ".join([name.split(" ")[-1], *name.split(" ")[:-1]]),
    # "a/apse/indoor", without its initial
    "last word first": lambda name: " ".join(name.split("/")[:0:-1]),
    "words apart": lambda name: "_".join(re.findall("[A-Z][^A-Z]*", name)),  # "ApplyEyeMakeup"
}


class Dataset(BaseModel):
    """A row of the catalogue: the layout of a data set's archive, and what users should know. The
    second block of fields is for the readers of archive formats."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    title: str
    folder: str  # CoOp's name for it, below the common root
    group: str = "of the paper"  # the benchmark that it belongs to
    classes: int
    counts: dict[str, int] = {}  # split -> images; empty if no split is published
    total: int = 0  # images of all splits, where only that is stated; 0 if it is not
    templates: tuple[str, ...]
    licence: str
    size: str
    citation: str
    url: str
    steps: tuple[str, ...]  # for the user to do; {home} is the data set's folder
    archives: dict[str, str] = {}  # address -> "sha256:..." or "md5:...", "" if none is published
    # address -> content; neither checked by us nor fetched automatically
    mirrors: dict[str, str] = {}
    unpacked: str = "."  # the folder in the archives that holds the data

    reader: str  # of readers.READERS
    images: str = ""  # the folder that paths of a split are relative to
    split: str = ""  # a split file in CoOp's form
    split_url: str = ""  # empty if the steps make it
    lists: dict[str, str] = {}  # split -> the archive's own list, or its folder of class folders
    order: str = ""  # file of class names: lines, JSON {"1": name}, or MATLAB's
    order_line: str = "(?P<name>.+)"
    line: str = ""  # of a list, with the groups file and name, or file, name and label
    # of a list of MATLAB: its name, and fields of file and class; not in the JSON of `data`
    variable: tuple[str, ...] = Field(default=(), exclude=True)
    file: str = ""
    spelling: str = "as is"
    renames: dict[str, str] = {}  # class folder, or label in a table, -> class name
    columns: dict[str, str] = {}  # image, label and group -> column of a table
    ignored: tuple[str, ...] = ()

    @property
    def images_text(self) -> str:
        """How many images it has, as text."""
        parts = [f"{count:,} {split}" for split, count in self.counts.items()]
        return ", ".join(parts) or (f"{self.total:,}" if self.total else "see its page")

    @property
    def most(self) -> int:
        """An upper bound on the bytes of the archive, packed or unpacked: four times `size`."""
        return int(4e9 * float(self.size.split()[0]))

    def laid_out(self, home: Path) -> bool:
        """Return whether `home` looks like the unpacked archive rather than a plain folder of class
        folders."""
        paths = filter(None, (self.split, self.images, *self.lists.values()))
        return any((home / path).exists() for path in paths)


def image_sets(table: CoopSplits, images: Path, source: Path) -> dict[str, ImageSet]:
    """Return the image sets of a table; classes in the order of their labels.

    Args:
        table: The rows by split.
        images: The folder that paths are relative to.
        source: Where the table is from, for messages.

    Raises:
        UserError: A label has two names, or the labels are not 0, 1, 2, ... without a gap.
    """
    names: dict[int, str] = {}
    for rows in table.values():
        for _, label, name in rows:
            if names.setdefault(label, name) != name:
                raise UserError(
                    f"{source}: label {label} is called {quoted(names[label])} and {quoted(name)}: "
                    "keep one name"
                )
    if not names:
        raise UserError(f"{source}: names no image")
    for label in range(len(names)):
        if label not in names:
            raise UserError(f"{source}: no image has the label {label}")
    classes = tuple(" ".join(names[label].replace("_", " ").split()) for label in range(len(names)))
    for name in classes:
        if not name or not is_text(name):
            raise UserError(
                f"{source}: a class is called {quoted(name)}: give it a plain-text name"
            )
    sets: dict[str, ImageSet] = {}
    for split, rows in table.items():
        if rows:
            paths = tuple(images / path for path, _, _ in rows)
            sets[split] = ImageSet(paths, tuple(label for _, label, _ in rows), classes, images)
    return sets


# Random splits


def divide(groups: Iterable[Sequence[T]], shares: Sequence[float], where: Path) -> list[list[T]]:
    """Shuffle each group and give each part its rounded share, the last one the rest.

    Args:
        groups: Items by class.
        shares: Of all parts but the last.
        where: Place of the data, for messages.

    Raises:
        UserError: A part gets none of a group.
    """
    rng = random.Random(SPLIT_SEED)
    parts: list[list[T]] = [[] for _ in range(len(shares) + 1)]
    for group in groups:
        items = list(group)
        rng.shuffle(items)
        ends = [0]
        for share in shares:
            ends.append(ends[-1] + round(len(items) * share))
        ends.append(len(items))
        for part, start, end in zip(parts, ends, ends[1:], strict=False):
            if start >= end:
                raise UserError(
                    f"{where}: a class has too few images to split ({len(items)}): {items[0]}"
                )
            part += items[start:end]
    return parts


def by_label(rows: Sequence[CoopRow]) -> list[list[CoopRow]]:
    """Group rows of the same label, in order of first appearance."""
    groups: dict[int, list[CoopRow]] = {}
    for row in rows:
        groups.setdefault(row[1], []).append(row)
    return list(groups.values())


def _divided(groups: Iterable[Sequence[CoopRow]], where: Path) -> CoopSplits:
    """Make the splits of an archive without any: 50 % train, 20 % val, 30 % test of each class."""
    return dict(zip(SPLIT_NAMES, divide(groups, [0.5, 0.2], where), strict=True))


def _with_val(table: CoopSplits, where: Path) -> CoopSplits:
    """If the archive has no val split, make it from a fifth of each class's train images."""
    if "val" in table:
        return table
    val, train = divide(by_label(table["train"]), [0.2], where)
    return {"train": train, "val": val, "test": table["test"]}


# Readers


def split_json(path: Path) -> CoopSplits:
    """Read CoOp's split file: {"train" | "val" | "test": [[path, label, class name], ...]}."""
    record = read_json(path)
    if not isinstance(record, dict) or not {"train", "test"} <= record.keys() <= {*SPLIT_NAMES}:
        form = '{"train": [[path, label, class name], ...], "val": ..., "test": ...}'
        raise UserError(f"{path}: write it as {form}")
    for split, rows in record.items():
        for number, row in enumerate(rows if isinstance(rows, list) else [rows]):
            if not (isinstance(row, list) and [type(cell) for cell in row] == [str, int, str]):
                raise UserError(
                    f"{path}: {split}[{number}] is {quoted(row)}, not [path, label, class name]"
                )
    table: CoopSplits = {}
    for split in SPLIT_NAMES:
        if split in record:
            table[split] = [(path, label, name) for path, label, name in record[split]]
    return table


def class_folders(home: Path, dataset: Dataset) -> CoopSplits:
    """Read one folder per class and no split: 50 % train, 20 % val, 30 % test."""
    images = home / dataset.images
    groups: list[list[CoopRow]] = []
    for folder in _class_folders(images):
        if folder not in dataset.ignored:
            name = dataset.renames.get(folder, folder)
            label = len(groups)
            groups.append([(path, label, name) for path in _image_files(images, folder)])
    return _divided(groups, images)


def wnid_folders(home: Path, dataset: Dataset) -> CoopSplits:
    """Read ImageNet and its variants: class folders named by WordNet id, or by line number (from 0)
    in classnames.txt.

    A variant with 200 of the 1,000 classes has the labels 0 to 199.
    """
    names = _classnames(home)
    numbered = dict(enumerate(names))
    folders = {split: _class_folders(home / path) for split, path in dataset.lists.items()}
    every = {folder for part in folders.values() for folder in part}
    order = sorted(every, key=lambda name: (len(name), name))
    table: CoopSplits = {}
    for split, part in folders.items():
        table[split] = []
        for label, folder in enumerate(order):
            wnid = numbered.get(int(folder), folder) if folder.isdecimal() else folder
            path = f"{dataset.lists[split]}/{folder}"
            if wnid not in names:
                raise UserError(f"{home / path}: classnames.txt has no name for it")
            if folder in part:
                table[split] += [(file, label, names[wnid]) for file in _image_files(home, path)]
    return table


def class_lists(home: Path, dataset: Dataset) -> CoopSplits:
    """Read lists of images with the name or number of each one's class, as text or of MATLAB: one
    per split, or one of all images, which are divided 50 % train, 20 % val, 30 % test."""
    names = _names_by_number(home, dataset)
    numbers = {name: number for number, name in enumerate(names.values(), 1)}
    spelling = SPELLINGS[dataset.spelling]
    table: CoopSplits = {}
    for split, file in dataset.lists.items():
        table[split] = []
        for image, written, number in _entries(home / file, dataset):
            if names and written:
                number = numbers.get(written, 0)
            name = spelling(written or names.get(str(number), ""))
            if not (name and number):
                raise UserError(
                    f"{home / file}: class {quoted(written or number)} of {quoted(image)} is not "
                    f"in {dataset.order}"
                )
            path = dataset.file.format(split=split, file=image, name=name)
            table[split].append((path, number - 1, name))
    if "all" in table:
        return _divided(by_label(table["all"]), home)
    return _with_val(table, home)


def _names_by_number(home: Path, dataset: Dataset) -> dict[str, str]:
    """Return the classes as the archive's file of names writes them, by number from 1; empty
    without such a file."""
    path = home / dataset.order
    if not dataset.order:
        return {}
    if path.suffix == ".json":
        listed = read_json(path)
        listed = listed if isinstance(listed, dict) else {}
        return {number: name for number, name in listed.items() if isinstance(name, str)}
    if path.suffix == ".mat":
        names = [str(name) for name in variable(path, "class_names")]
    else:
        names = [match["name"] for match in _lines(path, dataset.order_line)]
    return {str(number): name for number, name in enumerate(names, 1)}


def _entries(path: Path, dataset: Dataset) -> Iterator[tuple[Value, str, int]]:
    """Yield image, class name and class number of each entry of a list; "" or 0 for what it does
    not say."""
    if path.suffix != ".mat":
        for match in _lines(path, dataset.line):
            label = match.groupdict().get("label")
            yield match["file"], match["name"], _number(label, path) if label else 0
        return
    name, *fields = dataset.variable
    pairs = structures(path, name, *fields) if fields else enumerate(variable(path, name), 1)
    for image, value in pairs:
        yield image, "", _number(value, path)


ABSENT = ("", "0", "0.0")  # in the column of a label that an image has not


def label_table(home: Path, dataset: Dataset) -> CoopSplits:
    """Read one table of images and labels, of which those in `dataset.renames` count, in their
    order; without a column of labels, each label has a column, and that of the image is not 0.

    Images of one group stay in one split: those of lists "train" and "test", of whose train images
    a fifth is val, or of the groups of each label 50 % train, 20 % val, 30 % test.

    Raises:
        UserError: An image has no group.
    """
    every, rows = [*dataset.renames], dict[str, CoopRow]()
    table = home / dataset.lists["all"]
    image, label = dataset.columns["image"], dataset.columns.get("label")
    for cells in read_columns(table, [image, *([label] if label else every)]):
        of_image = [cells[label]] if label else [n for n in every if cells[n] not in ABSENT]
        if len(of_image) == 1 and of_image[0] in dataset.renames:
            number, path = every.index(of_image[0]), dataset.file.format(file=cells[image])
            rows[cells[image]] = (path, number, dataset.renames[of_image[0]])
    grouped = home / dataset.lists.get("groups", dataset.lists["all"])
    column = dataset.columns["group"]
    groups = {cells[image]: cells[column] for cells in read_columns(grouped, [image, column])}
    for name in rows:
        if not groups.get(name):
            raise UserError(f"{grouped}: has no {column} of {quoted(name)}")
    if "train" not in dataset.lists:
        parts = divide(_by_group(rows, groups, rows), [0.5, 0.2], table)
        return dict(zip(SPLIT_NAMES, map(_flat, parts), strict=True))
    listed = {
        split: [match[0] for match in _lines(home / dataset.lists[split], ".+")]
        for split in ("train", "test")
    }
    val, train = divide(_by_group(rows, groups, listed["train"]), [0.2], table)
    tested = [rows[name] for name in listed["test"] if name in rows]
    return {"train": _flat(train), "val": _flat(val), "test": tested}


def _by_group(
    rows: dict[str, CoopRow], groups: dict[str, str], names: Iterable[str]
) -> list[list[list[CoopRow]]]:
    """Return for each label the rows of these images, those of one group in one list."""
    parts: dict[int, dict[str, list[CoopRow]]] = {}
    for name in names:
        if name in rows:
            of_label = parts.setdefault(rows[name][1], {})
            of_label.setdefault(groups[name], []).append(rows[name])
    return [[*of_label.values()] for _, of_label in sorted(parts.items())]


def _flat(parts: Iterable[Sequence[T]]) -> list[T]:
    return [row for part in parts for row in part]


READERS: dict[str, Callable[[Path, Dataset], CoopSplits]] = {
    "class_folders": class_folders,
    "wnid_folders": wnid_folders,
    "class_lists": class_lists,
    "label_table": label_table,
}


# Parts of readers


def subfolders(parent: Path) -> list[str]:
    """Return the names of the visible subfolders, sorted like CoOp: capitals first."""
    if not parent.is_dir():
        return []
    names = [entry.name for entry in os.scandir(parent) if entry.is_dir()]
    return sorted(name for name in names if not name.startswith((".", "__MACOSX")))


def _class_folders(parent: Path) -> list[str]:
    names = subfolders(parent)
    if not names:
        raise UserError(f"{parent}: no class folders there")
    return names


def _image_files(root: Path, folder: str) -> list[str]:
    """Return the paths relative to `root` of the images in one folder, sorted."""
    names = sorted(name for name in os.listdir(root / folder) if not name.startswith("."))
    return [
        f"{folder}/{name}" for name in names if os.path.splitext(name)[1].lower() in image_formats()
    ]


def _lines(path: Path, pattern: str) -> Iterator[re.Match[str]]:
    try:
        lines = read_text(path).splitlines()
    except UserError as error:
        what = "not a readable text file" if path.exists() else "no such file"
        raise UserError(f"{path}: {what}") from error
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if text:
            match = re.fullmatch(pattern, text)
            if match is None:
                raise UserError(f"{path}, line {number}: {quoted(text)} does not match {pattern}")
            yield match


def _classnames(home: Path) -> dict[str, str]:
    """Return wnid -> name, in the order of classnames.txt, from `home` or else from imagenet/
    beside it."""
    path = home / "classnames.txt"
    shared = home.parent / "imagenet" / "classnames.txt"
    if shared.is_file() and not path.is_file():
        path = shared
    return {match["wnid"]: match["name"] for match in _lines(path, r"(?P<wnid>\S+) (?P<name>.+)")}


def _number(value: str | float, where: Path) -> int:
    """Return a class number from 1, given as text or as any MATLAB number."""
    try:
        number = int(value)
        if number < 1 or (not isinstance(value, str) and number != value):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{where}: {quoted(value)} is not a class number, counted from 1") from None
    return number
