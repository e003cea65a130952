"""Read data of any format, or in memory, as one ImageSet per split."""

from __future__ import annotations

import os
import sys
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from numbers import Integral, Number
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeGuard, cast, runtime_checkable

import numpy as np

from rmadapter.data.decode import ImageSource, image_error, load_image, plain_image
from rmadapter.data.formats.base import URL, Listing, Row, Rows, ignored_note
from rmadapter.data.formats.hf_datasets import is_dataset, read_dataset
from rmadapter.data.formats.registry import Located, locate
from rmadapter.data.formats.tables import (
    LABELLED,
    LABELLED_OPTIONAL,
    Cells,
    Choice,
    choose_columns,
    chosen_cells,
    labelled_cells,
)
from rmadapter.data.image_set import ImageSet, in_threads, plain_labels, relative, unreadable
from rmadapter.data.names import (
    Label,
    beside_splits,
    classnames_json,
    only_label,
    order,
    prompt_names,
)
from rmadapter.errors import UserError, quoted

if TYPE_CHECKING:
    import pandas


REPEATED = "images listed again"  # why a row is not read

__all__ = ["ImageSet", "ImageSource", "load_image", "read_images"]


def read_images(
    data: object,
    *,
    skip_bad: bool = False,
    check: bool | None = None,
    outside: bool = False,
    progress: bool = True,
    names: Mapping[str, str] | None = None,
    columns: Mapping[str, str] | None = None,
    crops: bool = False,
) -> dict[str, ImageSet]:
    """Read labelled images from a folder of class folders, a table, or another format.

    docs/reference/formats.md lists the formats. Folders train, val and test may hold the class
    folders. A table has the columns `path,label[,split][,group]`.

    Args:
        data: A path, what `locate` found there, or an object that `open_object` accepts, such as a
            DataFrame.
        skip_bad: Whether to leave out unreadable images, and list them in `skipped`.
        check: Whether to decode all images, which finds damage after their headers; by default as
            `skip_bad`.
        outside: Whether a table may name images outside its folder.
        progress: Whether to show a bar on stderr.
        names: Label -> prompt name; overrides classnames.json, an optional file in the folder (for
            one of several domains, beside the domains). "crane | tall bird": one class, two
            descriptions.
        columns: "image", "label", "split" or "group" -> its column in a table that uses other
            names; "split": "none" reads all rows as one set.
        crops: Whether to use the boxes of COCO, YOLO, Label Studio and FiftyOne as images.

    Returns:
        Split ("train", "val", "test"; "all" for data without splits) -> ImageSet. All share the
        classes of train (of all splits if there is no train), sorted by folder name.

    Raises:
        UserError: Unreadable images, several labels of one image, or ambiguous labels.

    Example:
        >>> from rmadapter import read_images
        >>> splits = read_images("colors")
        >>> {name: len(images) for name, images in splits.items()}
        {'train': 24, 'test': 16}
        >>> splits["train"].classes  # the folder is named night_sky
        ('blue', 'green', 'night sky', 'red')
    """
    listed = _listed(data, outside, columns, crops)
    if isinstance(listed, dict):
        return listed
    path, listing = listed
    custom = classnames_json(listing.home or listing.root, beside_splits(path, listing.splits))
    written, called = _shared_names(listing.splits, {**custom, **(names or {})}, path)
    splits = _distinct(listing.splits, path)
    repeated = len(listing.images) - sum(map(len, splits.values()))
    ignored = ignored_note(listing.ignored + Counter({REPEATED: repeated}))

    images = [row.image for rows in splits.values() for row in rows]
    bad = image_errors(images, progress, header=not (skip_bad if check is None else check))
    if bad and not skip_bad:
        raise UserError(unreadable([*bad.values()], _hint(bad, path, ignored)))
    leading = [splits["train"]] if "train" in splits else splits.values()
    present = {called[row.label] for rows in leading for row in rows if row.image not in bad}
    if not present:
        raise UserError(f"{path}: no readable images{' in train' if 'train' in splits else ''}")
    classes = {name: label for name, label in written.items() if name in present}
    numbers = {name: number for number, name in enumerate(classes)}
    indices = {label: numbers[name] for label, name in called.items() if name in present}
    labels = tuple(classes.values())
    empty = ImageSet((), (), tuple(classes), listing.root, written=labels, ignored=ignored)
    return {name: _filled(empty, rows, indices, bad) for name, rows in splits.items()}


def _listed(
    data: object, outside: bool, columns: Mapping[str, str] | None, crops: bool
) -> tuple[Path, Listing] | dict[str, ImageSet]:
    """Return the name of data and its images; or the splits of data that are in memory."""
    if isinstance(data, (str, Path)):
        data = locate(data, columns, crops, outside)
    if isinstance(data, Located):
        return data.path, data.read()
    opened = open_object(data, columns)
    return opened if isinstance(opened, dict) else (Path(type(data).__name__), opened)


def image_errors(paths: Sequence[Path], progress: bool, *, header: bool = False) -> dict[Path, str]:
    """Return the unreadable files, each with the reason.

    Args:
        paths: Files to check.
        progress: Whether to show a bar on stderr.
        header: As for `image_error`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `image_error` says what is wrong
        check = partial(image_error, header=header)
        errors = in_threads(check, paths, "checking images", progress)
    return {path: error for path, error in zip(paths, errors, strict=True) if error}


def _hint(bad: Collection[Path], path: Path, ignored: str) -> str:
    """Return what may explain unreadable images."""
    hint = f" ({ignored})" if ignored and any(os.path.isdir(image) for image in bad) else ""
    if not os.path.exists(next(iter(bad))) and path.is_file():
        hint += f"; paths are relative to {path.parent}"
    return hint


def _places(splits: Mapping[str, Rows]) -> dict[Path, str]:
    """Return where each listed image is, which may be listed under several paths and links."""
    places: dict[Path, str] = {}
    folders: dict[str, str] = {}  # resolving them anew for each image would take several calls
    for rows in splits.values():
        for row in rows:
            if row.image in places:
                continue
            folder, name = os.path.split(row.image)
            if folder not in folders:
                folders[folder] = os.path.realpath(folder)
            place = os.path.join(folders[folder], name)
            places[row.image] = os.path.realpath(place) if os.path.islink(place) else place
    return places


def _distinct(splits: Mapping[str, Rows], path: Path) -> dict[str, Rows]:
    """Return the splits, all but test without repeated rows.

    Raises:
        UserError: An image is in two splits, in two groups or, outside test, under two labels; or
            only some images are in a split.
    """
    places = _places(splits)
    distinct = {
        name: rows if name == "test" else _once(rows, places, path) for name, rows in splits.items()
    }
    if "all" in splits and len(splits) > 1:
        raise UserError(
            f"{path}: some of its images are in no split, but others are: put all into train, val "
            "or test"
        )
    _check_once(distinct, places, path)
    return distinct


def _once(rows: Rows, places: Mapping[Path, str], path: Path) -> Rows:
    """Leave out repeated rows of an image and label, one of which could be trained on and another
    judge. Raises UserError for an image in two groups."""
    first: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = places[row.image], row.label
        known = first.setdefault(key, row)
        if known.group and row.group and known.group != row.group:
            raise UserError(
                f"{path}: {row.image} is in the groups {quoted(known.group)} and "
                f"{quoted(row.group)}: leave it in one"
            )
        if row.group:
            first[key] = known._replace(group=row.group)
    return [*first.values()]


def _check_once(splits: Mapping[str, Rows], places: Mapping[Path, str], path: Path) -> None:
    """Raise UserError if an image is in two splits, or under two labels outside test."""
    seen: dict[str, tuple[str, Row]] = {}
    for split, rows in splits.items():
        for row in rows:
            where, first = seen.setdefault(places[row.image], (split, row))
            if where != split:
                same = "" if first.image == row.image else f", called {row.image} there"
                raise UserError(
                    f"{path}: {first.image} is in {where} and in {split}{same}: leave it in one"
                )
            other = split != "test" and first.label != row.label
            # all boxes of an unreadable photo are its path
            if other and not image_error(row.image):
                only_label((first.label, row.label), f"{path}: {row.image}")


def _filled(
    empty: ImageSet, rows: Rows, indices: Mapping[str, int], bad: Mapping[Path, str]
) -> ImageSet:
    """Add the images of `rows` to `empty`.

    Args:
        empty: Image set without images.
        rows: Rows of a split.
        indices: Label -> class index; rows without such a label are skipped.
        bad: Unreadable images, which are skipped, each with the reason.
    """
    good = [row for row in rows if row.image not in bad]
    kept = [row for row in good if row.label in indices]
    lost = [row for row in good if row.label not in indices]
    reasons = [
        *(
            (row.image, bad[row.image].removeprefix(f"{row.image}: "))
            for row in rows
            if row.image in bad
        ),
        *((row.image, "no train images of its class") for row in lost),
    ]
    return replace(
        empty,
        images=tuple(row.image for row in kept),
        labels=tuple(indices[row.label] for row in kept),
        groups=tuple(row.group for row in kept),
        skipped=tuple(f"{relative(image, empty.root)}: {why}" for image, why in reasons),
    )


def _shared_names(
    splits: Mapping[str, Rows], custom: Mapping[str, str], path: Path
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the names of classes, which all splits share.

    Args:
        splits: The rows by split.
        custom: Label -> prompt name.
        path: The data, for messages.

    Returns:
        Prompt name -> label of each class, in order; and label, of any split and spelling -> prompt
        name.
    """
    named: dict[str, dict[str, str]] = {}
    for split, rows in splits.items():
        labels = sorted({row.label for row in rows}, key=order)
        named[split] = prompt_names(labels, custom, f"{path} ({split}): ")
    leading: dict[str, str] = {}
    for split, names in named.items():
        if split == "train" or "train" not in named:
            leading.update(names)
    shared: dict[str, str] = {}  # case-folded -> prompt name
    written: dict[str, str] = {}
    for label in sorted(leading, key=order):
        name = shared.setdefault(leading[label].casefold(), leading[label])
        written.setdefault(name, label)
    called: dict[str, str] = {}
    for split, names in named.items():
        for label, name in names.items():
            if name.casefold() not in shared:
                raise UserError(
                    f"{path}: {split} has a class {label!r} that train lacks: rename it or remove "
                    "it there"
                )
            called[label] = shared[name.casefold()]
    return written, called


@runtime_checkable
class _Items(Protocol):
    """A data set of pairs."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[ImageSource, Label]: ...


@runtime_checkable
class _Subset(_Items, Protocol):
    """A data set of torch's `Subset`. Other wrappers may do anything with their data set."""

    dataset: object
    indices: Sequence[int]


def open_object(
    data: object, columns: Mapping[str, str] | None = None
) -> Listing | dict[str, ImageSet]:
    """Read data in memory. Paths are used as they are; images without a path stay in memory.

    Args:
        data: An ImageSet, or split -> ImageSet; a pandas DataFrame with a column of paths, PIL
            images or arrays; a Dataset or DatasetDict; a torchvision ImageFolder, or any sequence
            of (image, label) pairs, where labels may be numbers if it has `classes`.
        columns: As for `read_images`.

    Raises:
        UserError: Anything else, or missing or invalid parts.
    """
    if isinstance(data, ImageSet):
        return {"all": data}
    if isinstance(data, Mapping) and data and all(isinstance(x, ImageSet) for x in data.values()):
        return dict(data)
    if is_dataset(data):
        return read_dataset(data, columns)
    if _is_frame(data):
        return _frame_listing(data, columns)
    if isinstance(data, _Items) and not isinstance(data, (Mapping, bytes)):
        return _pairs(data)
    what = type(data).__name__
    raise UserError(
        f"{what} is not data; give a path, a DataFrame, a Dataset or (image, label) pairs"
    )


def image_set(
    data: object, labels: object = None, classes: Sequence[str] | None = None, split: str = "train"
) -> ImageSet:
    """Return the images to train on, or those of another split.

    Args:
        data: With labels, N images, as `image_list` takes them. Without, an ImageSet, split ->
            ImageSet (the split, else "all" is used), a pandas DataFrame with columns named as in a
            table (if it has splits, its rows of this one are used), or anything else that
            `read_images` accepts.
        labels: N class names or whole numbers.
        classes: Prompt names of the numbers 0..C-1; without it, numbers may be any and prompts
            contain them, with a warning.
        split: The split.

    Raises:
        UserError: Anything else.
    """
    if labels is not None:
        return _list_set(image_list(data), plain_labels(labels), classes)
    if _is_frame(data):
        return _frame_set(data, classes, split)
    pairs = isinstance(data, (list, tuple, np.ndarray)) and len(data) and isinstance(data[0], tuple)
    listed = isinstance(data, (list, tuple, np.ndarray)) and not pairs
    if is_dataset(data) or not (listed or isinstance(data, (ImageSet, Mapping))):
        data = read_images(data, progress=False)
    if isinstance(data, Mapping):
        part = data.get(split, data.get("all"))
        if part is None:
            splits = ", ".join(map(str, data)) or "nothing"
            raise UserError(f"no {split} images: the data has only {splits}")
        data = part
    if not isinstance(data, ImageSet):
        raise UserError(
            f"labels are missing: give images and labels, or an ImageSet, a folder, a table or a "
            f"DataFrame, not {type(data).__name__}"
        )
    return data


def image_list(data: object) -> list[ImageSource]:
    """Return N images as a list.

    Args:
        data: A list, Series or array [N], an array [N, H, W(, 3)], a column [N, 1] of paths or
            objects as in scikit-learn's ensembles, a tensor [N, 3, H, W] or a list of tensors [3,
            H, W], an ImageSet, or a DataFrame with a column of paths.
    """
    if isinstance(data, ImageSet):
        return list(data.images)
    if _is_frame(data):
        names = list(map(str, data.columns))
        only = len(names) == 1
        name = names[0] if only else choose_columns("DataFrame", names, ["image"])["image"]
        return list(data.iloc[:, names.index(name)].tolist())
    if isinstance(data, np.ndarray) and data.dtype.kind in "OUS" and data.shape[1:] == (1,):
        return list(data[:, 0].tolist())
    return [plain_image(image) for image in cast("Iterable[object]", data)]


def check_exist(images: Sequence[ImageSource]) -> None:
    """Look for the files among N images, before any is read.

    Args:
        images: The images.

    Raises:
        UserError: Some are missing.
    """
    places = [(i, image) for i, image in enumerate(images) if isinstance(image, (str, Path))]
    missing = [
        f"image {i}: {place} does not exist" for i, place in places if not os.path.exists(place)
    ]
    if missing:
        more = f" (and {len(missing) - 1} more do not)" if len(missing) > 1 else ""
        raise UserError(f"{missing[0]}{more}")


# DataFrames


class _Frame(NamedTuple):
    """The rows of a DataFrame; of each, the split is "all" without a column of splits."""

    images: list[ImageSource]
    labels: list[Label]
    splits: list[str]
    groups: list[str]

    def rows_of(self, split: str) -> list[int]:
        """Return the numbers of the rows of a split."""
        return [row for row, name in enumerate(self.splits) if name == split]


def _read_frame(
    frame: pandas.DataFrame, columns: Mapping[str, str], numbers: bool = False
) -> _Frame:
    """Read the columns of a DataFrame.

    Args:
        frame: The DataFrame.
        columns: As for `read_images`.
        numbers: Whether to keep numeric labels, which are class numbers to a classifier;
            `read_images` takes them for class names, as in a table.

    Raises:
        UserError: Empty cells, and as for `chosen_cells` and `labelled_cells`.
    """
    reader = partial(_frame_cells, frame)
    rows = [*chosen_cells("DataFrame", reader, LABELLED, LABELLED_OPTIONAL, columns)]
    read = _Frame([], [], [], [])
    for where, cells in rows:
        label, split, group = labelled_cells(cells, where)
        for kind, value in (("image", cells["image"]), ("label", label)):
            if value is None:
                raise UserError(f"{where}: the {kind} is empty")
        read.images.append(cells["image"])
        read.labels.append(str(label))
        read.splits.append(split)
        read.groups.append(group)
    written = [cells.get("label", cells.get("label_list")) for _, cells in rows]
    if numbers and all(isinstance(label, Number) for label in written):
        return read._replace(labels=plain_labels(written))
    return read


def _frame_cells(frame: pandas.DataFrame, choose: Choice) -> Cells:
    """Yield the place of each row and its cells by column, None for missing ones; a reader of
    `chosen_cells`. Names of columns may be of any type."""
    names = [*map(str, frame.columns)]
    chosen, unread = choose(names)
    cells = {}
    for name in (*chosen.values(), *unread):
        column = frame.iloc[:, names.index(name)]
        pairs = zip(column.tolist(), column.isna(), strict=True)
        cells[name] = [None if missing else cell for cell, missing in pairs]
    for number in range(len(frame)):
        yield f"row {number}", {name: column[number] for name, column in cells.items()}


def _frame_listing(
    frame: pandas.DataFrame, columns: Mapping[str, str] | None
) -> Listing | dict[str, ImageSet]:
    read = _read_frame(frame, columns or {})
    images, labels, splits, groups = read
    paths = [image for image in images if isinstance(image, (str, Path))]
    if not paths or len(paths) < len(images):
        whole = ImageSet.from_lists(images, labels, groups=groups)
        return {split: whole.subset(read.rows_of(split)) for split in dict.fromkeys(splits)}
    for name in map(str, paths):
        if URL.match(name):
            raise UserError(f"DataFrame: {quoted(name)} is a web address; fetch the images first")
    rows: dict[str, Rows] = {}
    for path, label, split, group in zip(paths, labels, splits, groups, strict=True):
        rows.setdefault(split, []).append(Row(str(label), Path(path), group))
    return Listing(Path(), rows, Counter())


def _frame_set(frame: pandas.DataFrame, classes: Sequence[str] | None, split: str) -> ImageSet:
    """Return the images of a DataFrame, those of a split if it has any."""
    read = _read_frame(frame, {}, numbers=True)
    rows = read.rows_of("all") or read.rows_of(split)
    if not rows and read.splits:
        raise UserError(f"the DataFrame has a split column, but no row says {split}")
    images = [read.images[row] for row in rows]
    labels = [read.labels[row] for row in rows]
    return _list_set(images, labels, classes, tuple(read.groups[row] for row in rows))


def _is_frame(data: object) -> TypeGuard[pandas.DataFrame]:
    """Return whether data is a pandas DataFrame, without importing pandas."""
    module = sys.modules.get("pandas")
    return module is not None and isinstance(data, module.DataFrame)


# Pairs and lists


def _pairs(data: _Items) -> Listing | dict[str, ImageSet]:
    whole = data.dataset if isinstance(data, _Subset) else data
    names: Sequence[object] | None = getattr(whole, "classes", None)
    samples = getattr(whole, "samples", None)
    if names and samples and all(isinstance(path, (str, Path)) for path, _ in samples):
        chosen = [
            samples[i] for i in (data.indices if isinstance(data, _Subset) else range(len(data)))
        ]
        rows: Rows = [Row(str(_in_words(label, names)), Path(path)) for path, label in chosen]
        return Listing(Path(), {"all": rows}, Counter())
    images, labels = [], []
    for number in range(len(data)):
        try:
            image, label = data[number]
        except (TypeError, ValueError):
            raise UserError(f"item {number} of the data is not an (image, label) pair") from None
        images.append(plain_image(image))
        labels.append(label if isinstance(label, str) or names is None else _in_words(label, names))
    return {"all": ImageSet.from_lists(images, labels)}


def _in_words(label: object, names: Sequence[object]) -> str | list[str]:
    """Return the label, or list of labels, as class names."""
    if isinstance(label, (list, tuple)):
        return [one if isinstance(one, str) else _class_name(one, names) for one in label]
    return _class_name(label, names)


def _class_name(label: object, names: Sequence[object]) -> str:
    number = label.item() if hasattr(label, "item") else label
    if not isinstance(number, int) or not 0 <= number < len(names):
        raise UserError(f"label {quoted(number)} is not one of the {len(names)} classes")
    name = names[number]
    return str(name[0] if isinstance(name, tuple) else name)  # torchvision's ImageNet has synonyms


def _list_set(
    images: list[ImageSource],
    labels: list[Label],
    classes: Sequence[str] | None,
    groups: tuple[str, ...] = (),
) -> ImageSet:
    numbers = bool(labels) and all(isinstance(label, Integral) for label in labels)
    if classes is not None or not numbers:
        return ImageSet.from_lists(images, labels, classes, groups)
    if len(images) != len(labels):
        raise UserError(
            f"{len(images)} images and {len(labels)} labels: give one label for each image"
        )
    written = sorted(set(labels))
    names = tuple(str(number) for number in written)
    some = f"{', '.join(names[:3])}{', ...' * (len(names) > 3)}"
    warnings.warn(
        f"labels are numbers, so prompts call the classes {some}; class_names=[...] gives them "
        f"names the model can read",
        stacklevel=4,
    )
    index = {label: place for place, label in enumerate(written)}
    indices = tuple(index[label] for label in labels)
    return ImageSet(tuple(images), indices, names, written=tuple(written), groups=groups)
