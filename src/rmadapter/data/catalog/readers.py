"""The archive formats of public data sets, one reader each: all become the table of a CoOp split
file.

    split -> [(path below the image folder, label, class name), ...], in the order of the file

The draw of shots depends on that order. Where an archive has no split and CoOp (Zhou et al., IJCV
2022) makes a random one, it is made here the same way, from a fixed seed and sorted file names.
"""

from __future__ import annotations

import csv
import os
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict

from rmadapter.data.catalog.matlab import structures, variable
from rmadapter.data.decode import formats
from rmadapter.data.read import ImageSet
from rmadapter.errors import UserError, is_text, quoted
from rmadapter.support.files import read_json, read_text

Line: TypeAlias = tuple[str, int, str]  # path, label, class name
Table: TypeAlias = dict[str, list[Line]]
T = TypeVar("T")

SPLITS = ("train", "val", "test")
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
    order: str = ""  # file of class names
    order_line: str = "(?P<name>.+)"
    line: str = ""
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


def image_sets(table: Table, images: Path, source: Path) -> dict[str, ImageSet]:
    """Return the image sets of a table with paths below `images`; classes in the order of their
    labels.

    Raises UserError, naming `source`, if a label has two names or the labels are not 0, 1, 2, ...
    without a gap.
    """
    names: dict[int, str] = {}
    for rows in table.values():
        for _, label, name in rows:
            if names.setdefault(label, name) != name:
                both = f"{quoted(names[label])} and {quoted(name)}"
                raise UserError(f"{source}: label {label} is called {both}: keep one name")
    if not names:
        raise UserError(f"{source}: names no image")
    for label in range(len(names)):
        if label not in names:
            raise UserError(f"{source}: no image has the label {label}")
    classes = tuple(" ".join(names[label].replace("_", " ").split()) for label in range(len(names)))
    for name in classes:
        if not name or not is_text(name):
            what = f"a class is called {quoted(name)}"
            raise UserError(f"{source}: {what}: give it a plain-text name")
    sets: dict[str, ImageSet] = {}
    for split, rows in table.items():
        if rows:
            paths = tuple(images / path for path, _, _ in rows)
            sets[split] = ImageSet(paths, tuple(label for _, label, _ in rows), classes, images)
    return sets


# Random splits


def divide(groups: Iterable[Sequence[T]], shares: Sequence[float], where: Path) -> list[list[T]]:
    """Shuffle each group and give each part its rounded share, the last one the rest. Raises
    UserError if one gets none."""
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
                what = f"a class has too few images to split ({len(items)})"
                raise UserError(f"{where}: {what}: {items[0]}")
            part += items[start:end]
    return parts


def by_label(rows: Sequence[Line]) -> list[list[Line]]:
    """Group rows of the same label, in order of first appearance."""
    groups: dict[int, list[Line]] = {}
    for row in rows:
        groups.setdefault(row[1], []).append(row)
    return list(groups.values())


def _with_val(table: Table, where: Path) -> Table:
    """If the archive has no val split, make it from a fifth of each class's train images."""
    if "val" in table:
        return table
    val, train = divide(by_label(table["train"]), [0.2], where)
    return {"train": train, "val": val, "test": table["test"]}


# Readers


def split_json(path: Path) -> Table:
    """Read CoOp's split file: {"train" | "val" | "test": [[path, label, class name], ...]}."""
    record = read_json(path)
    if not isinstance(record, dict) or not {"train", "test"} <= record.keys() <= {*SPLITS}:
        form = '{"train": [[path, label, class name], ...], "val": ..., "test": ...}'
        raise UserError(f"{path}: write it as {form}")
    for split, rows in record.items():
        for number, row in enumerate(rows if isinstance(rows, list) else [rows]):
            if not (isinstance(row, list) and [type(cell) for cell in row] == [str, int, str]):
                what = f"{split}[{number}] is {quoted(row)}"
                raise UserError(f"{path}: {what}, not [path, label, class name]")
    table: Table = {}
    for split in SPLITS:
        if split in record:
            table[split] = [(path, label, name) for path, label, name in record[split]]
    return table


def class_folders(home: Path, dataset: Dataset) -> Table:
    """Read one folder per class and no split: 50 % train, 20 % val, 30 % test."""
    images = home / dataset.images
    groups: list[list[Line]] = []
    for folder in _class_folders(images):
        if folder not in dataset.ignored:
            name = dataset.renames.get(folder, folder)
            label = len(groups)
            groups.append([(path, label, name) for path in _image_files(images, folder)])
    return dict(zip(SPLITS, divide(groups, [0.5, 0.2], images), strict=True))


def wnid_folders(home: Path, dataset: Dataset) -> Table:
    """Read ImageNet and its variants: class folders named by WordNet id, or by line number (from 0)
    in classnames.txt.

    A variant with 200 of the 1,000 classes has the labels 0 to 199.
    """
    names = _classnames(home)
    numbered = dict(enumerate(names))
    folders = {split: _class_folders(home / path) for split, path in dataset.lists.items()}
    every = {folder for part in folders.values() for folder in part}
    order = sorted(every, key=lambda name: (len(name), name))
    table: Table = {}
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


def text_lists(home: Path, dataset: Dataset) -> Table:
    """Read one text file per split, one line per image: lines match `dataset.line`, `dataset.order`
    orders classes."""
    order: dict[str, int] = {}
    if dataset.order:
        for label, match in enumerate(_lines(home / dataset.order, dataset.order_line)):
            order[match["name"]] = label
    table: Table = {}
    for split, file in dataset.lists.items():
        table[split] = []
        for match in _lines(home / file, dataset.line):
            written = match["name"]
            if order and written not in order:
                raise UserError(f"{home / file}: class {written!r} is not in {dataset.order}")
            label = order[written] if order else _number(match["label"], home / file) - 1
            name = SPELLINGS[dataset.spelling](written)
            table[split].append((dataset.file.format(file=match["file"], name=name), label, name))
    return _with_val(table, home)


def cars_matlab(home: Path, dataset: Dataset) -> Table:
    """Read Stanford Cars: structures `annotations` with fname and class (from 1); `class_names` in
    the development kit."""
    spelling = SPELLINGS[dataset.spelling]
    written = variable(home / dataset.order, "class_names")
    names = {number: spelling(str(name)) for number, name in enumerate(written, 1)}
    table: Table = {}
    for split, file in dataset.lists.items():
        table[split] = []
        for path, value in structures(home / file, "annotations", "fname", "class"):
            number = _number(value, home / file)
            if number not in names:
                what = f"class {number} of {quoted(path)}"
                raise UserError(f"{home / file}: {what} is not in {dataset.order}")
            image = dataset.file.format(split=split, file=path)
            table[split].append((image, number - 1, names[number]))
    return _with_val(table, home)


def flowers_matlab(home: Path, dataset: Dataset) -> Table:
    """Read Oxford Flowers: one of `labels` per image, from 1; names in JSON {"1": name}; 50 %
    train, 20 % val, 30 % test."""
    names = read_json(home / dataset.order)
    names = names if isinstance(names, dict) else {}
    file = home / dataset.lists["all"]
    rows: list[Line] = []
    for image, value in enumerate(variable(file, "labels"), 1):
        number = _number(value, file)
        name = names.get(str(number))
        if not isinstance(name, str):
            raise UserError(f"{home / dataset.order}: has no name for class {number}")
        rows.append((dataset.file.format(file=image), number - 1, name))
    return dict(zip(SPLITS, divide(by_label(rows), [0.5, 0.2], home), strict=True))


ABSENT = ("", "0", "0.0")  # in the column of a label that an image has not


def label_table(home: Path, dataset: Dataset) -> Table:
    """Read one CSV table of images and labels, of which those in `dataset.renames` count, in their
    order; without a column of labels, each label has a column, and that of the image is not 0.

    Images of one group stay in one split: those of lists "train" and "test", of whose train images
    a fifth is val, or of the groups of each label 50 % train, 20 % val, 30 % test. Raises UserError
    for an image without a group.
    """
    every, rows = [*dataset.renames], dict[str, Line]()
    table = home / dataset.lists["all"]
    image, label = dataset.columns["image"], dataset.columns.get("label")
    for cells in _csv_rows(table, [image, *([label] if label else every)]):
        of_image = [cells[label]] if label else [n for n in every if cells[n] not in ABSENT]
        if len(of_image) == 1 and of_image[0] in dataset.renames:
            number, path = every.index(of_image[0]), dataset.file.format(file=cells[image])
            rows[cells[image]] = (path, number, dataset.renames[of_image[0]])
    grouped = home / dataset.lists.get("groups", dataset.lists["all"])
    column = dataset.columns["group"]
    groups = {cells[image]: cells[column] for cells in _csv_rows(grouped, [image, column])}
    for name in rows:
        if name not in groups:
            raise UserError(f"{grouped}: has no {column} of {quoted(name)}")
    if "train" not in dataset.lists:
        parts = divide(_by_group(rows, groups, rows), [0.5, 0.2], table)
        return dict(zip(SPLITS, map(_flat, parts), strict=True))
    listed = {
        split: [match[0] for match in _lines(home / dataset.lists[split], ".+")]
        for split in ("train", "test")
    }
    val, train = divide(_by_group(rows, groups, listed["train"]), [0.2], table)
    tested = [rows[name] for name in listed["test"] if name in rows]
    return {"train": _flat(train), "val": _flat(val), "test": tested}


def _by_group(
    rows: dict[str, Line], groups: dict[str, str], names: Iterable[str]
) -> list[list[list[Line]]]:
    """Return for each label the rows of these images, those of one group in one list."""
    parts: dict[int, dict[str, list[Line]]] = {}
    for name in names:
        if name in rows:
            of_label = parts.setdefault(rows[name][1], {})
            of_label.setdefault(groups[name], []).append(rows[name])
    return [[*of_label.values()] for _, of_label in sorted(parts.items())]


def _flat(parts: Iterable[Sequence[T]]) -> list[T]:
    return [row for part in parts for row in part]


def _csv_rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Read a CSV file with a header. Raises UserError if a column is missing, or empty in a row."""
    reader = csv.DictReader(read_text(path, "a readable CSV file").splitlines())
    try:
        rows, header = list(reader), reader.fieldnames or ()
    except csv.Error as error:
        raise UserError(f"{path}: not a readable CSV file ({error})") from None
    for column in columns:
        if column not in header:
            raise UserError(f"{path}: has no column {column!r}")
        for number, row in enumerate(rows, 1):
            if row[column] is None:
                raise UserError(f"{path}: row {number} has no {column!r}")
    return rows


READERS: dict[str, Callable[[Path, Dataset], Table]] = {
    "class_folders": class_folders,
    "wnid_folders": wnid_folders,
    "text_lists": text_lists,
    "cars_matlab": cars_matlab,
    "flowers_matlab": flowers_matlab,
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
    return [f"{folder}/{name}" for name in names if os.path.splitext(name)[1].lower() in formats()]


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
