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
from typing import Any, TypeAlias, TypeVar

from rmadapter.data.catalog.dataset import Dataset
from rmadapter.data.catalog.matlab import variable
from rmadapter.data.decode_limits import formats
from rmadapter.data.read import ImageSet
from rmadapter.errors import UserError, is_text, quoted
from rmadapter.support.files import read_json, read_text

Table: TypeAlias = "dict[str, list[tuple[str, int, str]]]"
T = TypeVar("T")

SPLITS = ("train", "val", "test")
SPLIT_SEED = (
    1  # CoOp's first run with seed 1 makes the same splits if the archive lists files in an order
)
SPELLINGS: dict[str, Callable[[str], str]] = {
    "as is": str,
    "lower": str.lower,
    "year first": lambda name: " ".join([name.split(" ")[-1], *name.split(" ")[:-1]]),
    "last word first": lambda name: " ".join(
        name.split("/")[:0:-1]
    ),  # "a/apse/indoor", without its initial
    "words apart": lambda name: "_".join(re.findall("[A-Z][^A-Z]*", name)),  # "ApplyEyeMakeup"
}


def image_sets(table: Table, images: Path, source: Path) -> dict[str, ImageSet]:
    """The image sets of a table with paths below `images`; classes in the order of their labels.

    Raises UserError, naming `source`, if a label has two names or the labels are not 0, 1, 2, ...
    without a gap.
    """
    names: dict[int, str] = {}
    for rows in table.values():
        for _, label, name in rows:
            if names.setdefault(label, name) != name:
                raise UserError(
                    f"{source}: label {label} is called {quoted(names[label])} and {quoted(name)}: keep one name"
                )
    gap = next((i for i in range(len(names)) if i not in names), None)
    if not names or gap is not None:
        raise UserError(
            f"{source}: {'names no image' if not names else f'no image has the label {gap}'}"
        )
    classes = tuple(" ".join(names[label].replace("_", " ").split()) for label in range(len(names)))
    if wrong := [name for name in classes if not name or not is_text(name)]:
        raise UserError(
            f"{source}: a class is called {quoted(wrong[0])}: give it a plain-text name"
        )
    return {
        split: ImageSet(
            tuple(images / path for path, _, _ in rows),
            tuple(row[1] for row in rows),
            classes,
            images,
        )
        for split, rows in table.items()
        if rows
    }


# Random splits


def divide(groups: Iterable[Sequence[T]], shares: Sequence[float], where: Path) -> list[list[T]]:
    """Shuffle each group and give each part its rounded share, the last one the rest. UserError if
    one gets none."""
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


def by_label(rows: Sequence[tuple[str, int, str]]) -> list[list[tuple[str, int, str]]]:
    """Rows of the same label, in order of first appearance."""
    groups: dict[int, list[tuple[str, int, str]]] = {}
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
    """CoOp's split file: {"train" | "val" | "test": [[path, label, class name], ...]}."""
    record = read_json(path)
    if not isinstance(record, dict) or not {"train", "test"} <= record.keys() <= {*SPLITS}:
        raise UserError(
            f'{path}: write it as {{"train": [[path, label, class name], ...], "val": ..., "test": ...}}'
        )
    for split, rows in record.items():
        for number, row in enumerate(rows if isinstance(rows, list) else [rows]):
            if not (isinstance(row, list) and [type(cell) for cell in row] == [str, int, str]):
                raise UserError(
                    f"{path}: {split}[{number}] is {quoted(row)}, not [path, label, class name]"
                )
    return {
        split: [(row[0], row[1], row[2]) for row in record[split]]
        for split in SPLITS
        if split in record
    }


def class_folders(home: Path, dataset: Dataset) -> Table:
    """One folder per class and no split: 50 % train, 20 % val, 30 % test."""
    images = home / dataset.images
    groups: list[list[tuple[str, int, str]]] = []
    for folder in _class_folders(images):
        if folder not in dataset.ignored:
            name, label = dataset.renames.get(folder, folder), len(groups)
            groups.append([(path, label, name) for path in _image_files(images, folder)])
    return dict(zip(SPLITS, divide(groups, [0.5, 0.2], images), strict=True))


def wnid_folders(home: Path, dataset: Dataset) -> Table:
    """ImageNet and its variants: class folders named by WordNet id, or by line number (from 0) in
    classnames.txt.

    A variant with 200 of the 1,000 classes has the labels 0 to 199.
    """
    names = _classnames(home)
    found = {split: _class_folders(home / folder) for split, folder in dataset.lists.items()}
    order = sorted(
        {folder for inside in found.values() for folder in inside},
        key=lambda name: (len(name), name),
    )
    numbered = dict(enumerate(names))
    table: Table = {}
    for split, inside in found.items():
        table[split] = []
        for label, folder in enumerate(order):
            wnid = numbered.get(int(folder), folder) if folder.isdecimal() else folder
            if wnid not in names:
                raise UserError(
                    f"{home / dataset.lists[split] / folder}: classnames.txt has no name for it"
                )
            if folder in inside:
                paths = _image_files(home, f"{dataset.lists[split]}/{folder}")
                table[split] += [(path, label, names[wnid]) for path in paths]
    return table


def text_lists(home: Path, dataset: Dataset) -> Table:
    """One text file per split, one line per image: lines match `dataset.line`, `dataset.order`
    orders classes."""
    order: dict[str, int] = {}
    if dataset.order:
        order = {
            m["name"]: label
            for label, m in enumerate(_lines(home / dataset.order, dataset.order_line))
        }
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
    """Stanford Cars: structures `annotations` with fname and class (from 1); `class_names` in the
    development kit."""
    written = variable(home / dataset.order, "class_names")
    names = {
        number: SPELLINGS[dataset.spelling](str(name)) for number, name in enumerate(written, 1)
    }
    table: Table = {}
    for split, file in dataset.lists.items():
        table[split] = []
        for path, number in variable(home / file, "annotations", "fname", "class"):
            if (label := _number(number, home / file)) not in names:
                raise UserError(
                    f"{home / file}: class {label} of {quoted(path)} is not in {dataset.order}"
                )
            table[split].append(
                (dataset.file.format(split=split, file=path), label - 1, names[label])
            )
    return _with_val(table, home)


def flowers_matlab(home: Path, dataset: Dataset) -> Table:
    """Oxford Flowers: one of `labels` per image, from 1; names in JSON {"1": name}; 50 % train, 20
    % val, 30 % test."""
    names = read_json(home / dataset.order)
    file = home / dataset.lists["all"]
    labels = [_number(label, file) for label in variable(file, "labels")]
    given = {
        label: isinstance(names, dict) and isinstance(names.get(str(label)), str)
        for label in set(labels)
    }
    if unnamed := [label for label in labels if not given[label]]:
        raise UserError(f"{home / dataset.order}: has no name for class {unnamed[0]}")
    rows = [
        (dataset.file.format(file=i + 1), label - 1, names[str(label)])
        for i, label in enumerate(labels)
    ]
    return dict(zip(SPLITS, divide(by_label(rows), [0.5, 0.2], home), strict=True))


READERS = {
    f.__name__: f for f in (class_folders, wnid_folders, text_lists, cars_matlab, flowers_matlab)
}


# Parts of readers


def subfolders(parent: Path) -> list[str]:
    """Names of the visible subfolders, sorted like CoOp: capitals first."""
    inside = (
        [entry.name for entry in os.scandir(parent) if entry.is_dir()] if parent.is_dir() else []
    )
    return sorted(name for name in inside if not name.startswith((".", "__MACOSX")))


def _class_folders(parent: Path) -> list[str]:
    if not (inside := subfolders(parent)):
        raise UserError(f"{parent}: no class folders there")
    return inside


def _image_files(root: Path, folder: str) -> list[str]:
    """Paths relative to `root` of the images in one folder, sorted."""
    inside = sorted(name for name in os.listdir(root / folder) if not name.startswith("."))
    return [f"{folder}/{name}" for name in inside if os.path.splitext(name)[1].lower() in formats()]


def _lines(path: Path, pattern: str) -> Iterator[re.Match[str]]:
    try:
        lines = read_text(path).splitlines()
    except UserError as error:
        raise UserError(
            f"{path}: {'not a readable text file' if path.exists() else 'no such file'}"
        ) from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            match = re.fullmatch(pattern, line.strip())
            if match is None:
                raise UserError(
                    f"{path}, line {number}: {quoted(line.strip())} does not match {pattern}"
                )
            yield match


def _classnames(home: Path) -> dict[str, str]:
    """wnid -> name, in the order of classnames.txt, from `home` or else from imagenet/ beside it."""
    own, shared = home / "classnames.txt", home.parent / "imagenet" / "classnames.txt"
    path = shared if shared.is_file() and not own.is_file() else own
    return {match["wnid"]: match["name"] for match in _lines(path, r"(?P<wnid>\S+) (?P<name>.+)")}


def _number(value: Any, where: Path) -> int:
    """A class number from 1, given as text or as any MATLAB number."""
    try:
        number = int(value)
        if number < 1 or (not isinstance(value, str) and number != value):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{where}: {quoted(value)} is not a class number, counted from 1") from None
    return number
