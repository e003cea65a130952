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

from rmadapter.data.decode import ImageSource, image_error, load_image
from rmadapter.data.formats.base import (
    SPLITS,
    URL,
    Row,
    Rows,
    Source,
    ignored_note,
    only_label,
    order,
)
from rmadapter.data.formats.hf_datasets import is_dataset, read_dataset
from rmadapter.data.formats.registry import open_source
from rmadapter.data.formats.tables import (
    Unread,
    as_text,
    choose_columns,
    frame_cells,
    row_labels,
)
from rmadapter.data.image_set import ImageSet, in_threads, plain_labels, relative, unreadable
from rmadapter.data.names import Label, beside_splits, classnames_json, prompt_names
from rmadapter.errors import UserError, quoted
from rmadapter.support.files import user_path

if TYPE_CHECKING:
    import pandas


REPEATED = "images listed again"

__all__ = ["ImageSet", "ImageSource", "load_image", "read_images"]


def read_images(
    data: object, *, skip_bad: bool = False, check: bool | None = None, outside: bool = False,
    progress: bool = True, names: Mapping[str, str] | None = None,
    columns: Mapping[str, str] | None = None, crops: bool = False,
) -> dict[str, ImageSet]:  # fmt: skip
    """Read labelled images from a folder of class folders, a table, or another format.

    docs/reference/formats.md lists the formats. Folders train, val and test may hold the class
    folders. A table has the columns `path,label[,split][,group]`.

    Args:
        data: A path, or an object that `open_object` accepts, such as a DataFrame.
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
    if isinstance(data, (str, Path)):
        path = user_path(data)
        source = open_source(data, outside, columns, crops)
    else:
        opened = open_object(data, columns)
        if isinstance(opened, dict):
            return opened
        path, source = Path(type(data).__name__), opened
    places = _places(source.splits)
    splits = {
        name: rows if name == "test" else _once(rows, places, path)
        for name, rows in source.splits.items()
    }
    if "all" in splits and len(splits) > 1:
        what = "some of its images are in no split, but others are"
        raise UserError(f"{path}: {what}: put all into train, val or test")
    again = sum(map(len, source.splits.values())) - sum(map(len, splits.values()))
    ignored = ignored_note(source.ignored + Counter({REPEATED: again}))
    custom = classnames_json(source.home or source.root, beside_splits(path, splits))
    written, called = _shared_names(splits, {**custom, **(names or {})}, path)
    _check_once(splits, places, path)

    images = [row.image for rows in splits.values() for row in rows]
    bad = image_errors(images, progress, header=not (skip_bad if check is None else check))
    if bad and not skip_bad:
        raise UserError(unreadable([*bad.values()], _hint(bad, path, ignored)))
    good = {name: [row for row in rows if row.image not in bad] for name, rows in splits.items()}
    leading = good["train"] if "train" in good else [row for rows in good.values() for row in rows]
    present = {called[row.label] for row in leading}
    classes = [name for name in written if name in present]
    if not classes:
        raise UserError(f"{path}: no readable images{' in train' if 'train' in good else ''}")
    numbers = {name: number for number, name in enumerate(classes)}
    indices = {label: numbers[name] for label, name in called.items() if name in present}
    labels = tuple(written[name] for name in classes)
    empty = ImageSet((), (), tuple(classes), source.root, written=labels, ignored=ignored)
    return {name: _filled(empty, rows, indices, bad) for name, rows in splits.items()}


def image_errors(paths: Sequence[Path], progress: bool, *, header: bool = False) -> dict[Path, str]:
    """Return the unreadable files, each with the reason. header: as in `image_error`."""
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


def _once(rows: Rows, places: Mapping[Path, str], path: Path) -> Rows:
    """Leave out repeated rows of an image and label, one of which could be trained on and another
    judge. Raises UserError for an image in two groups."""
    first: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = places[row.image], row.label
        known = first.setdefault(key, row)
        if known.group and row.group and known.group != row.group:
            both = f"{quoted(known.group)} and {quoted(row.group)}"
            raise UserError(f"{path}: {row.image} is in the groups {both}: leave it in one")
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
                both = f"{first.image} is in {where} and in {split}{same}"
                raise UserError(f"{path}: {both}: leave it in one")
            other = split != "test" and first.label != row.label
            # all boxes of an unreadable photo are its path
            if other and not image_error(row.image):
                only_label((first.label, row.label), f"{path}: {row.image}")


def _filled(
    empty: ImageSet, rows: Rows, indices: Mapping[str, int], bad: Mapping[Path, str]
) -> ImageSet:
    """Add the images of `rows` to `empty`. indices: label -> class index; rows without such a label
    are skipped, as are bad images."""
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
    """Return prompt name -> label of each class, in order; and label, of any split and spelling ->
    prompt name. custom: label -> prompt name."""
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
                what = f"{split} has a class {label!r} that train lacks"
                raise UserError(f"{path}: {what}: rename it or remove it there")
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
) -> Source | dict[str, ImageSet]:
    """Read data in memory. Paths are used as they are; images without a path stay in memory.

    data: an ImageSet, or split -> ImageSet; a pandas DataFrame with a column of paths, PIL images
    or arrays; a Dataset or DatasetDict; a torchvision ImageFolder, or any sequence of (image,
    label) pairs, where labels may be numbers if it has `classes`. Raises UserError for anything
    else, and for missing or invalid parts.
    """
    if isinstance(data, ImageSet):
        return {"all": data}
    if isinstance(data, Mapping) and data and all(isinstance(x, ImageSet) for x in data.values()):
        return dict(data)
    if is_dataset(data):
        return read_dataset(data, columns)
    if _is_frame(data):
        return _frame_source(data, columns)
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

    With labels: N images, as `image_list` takes them, and N class names or whole numbers. Without:
    an ImageSet, split -> ImageSet (the split, else "all" is used), a pandas DataFrame with columns
    named as in a table (if it has splits, its rows of this one are used), or anything else that
    `read_images` accepts. classes: prompt names of the numbers 0..C-1; without it, numbers may be
    any and prompts contain them, with a warning. Raises UserError for anything else.
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
    """Return N images as a list. data: a list, Series or array [N], an array [N, H, W(, 3)], a
    column [N, 1] of paths or objects as in scikit-learn's ensembles, an ImageSet, or a DataFrame
    with a column of paths."""
    if isinstance(data, ImageSet):
        return list(data.images)
    if _is_frame(data):
        names = list(map(str, data.columns))
        only = len(names) == 1
        name = names[0] if only else choose_columns("DataFrame", names, ["image"])["image"]
        return list(data.iloc[:, names.index(name)].tolist())
    if isinstance(data, np.ndarray) and data.dtype.kind in "OUS" and data.shape[1:] == (1,):
        return list(data[:, 0].tolist())
    return list(cast("Iterable[ImageSource]", data))


# DataFrames


class _Table(NamedTuple):
    """The rows of a DataFrame. splits: of each row; "all" without a column of splits."""

    images: list[ImageSource]
    labels: list[Label]
    splits: list[str]
    groups: list[str]


def _read_frame(
    frame: pandas.DataFrame, columns: Mapping[str, str], numbers: bool = False
) -> _Table:
    """Read the columns of a DataFrame. numbers: keep numeric labels, which are class numbers to a
    classifier; `read_images` takes them for class names, as in a table. Raises UserError for empty
    cells, several labels in one, an unknown split, and as `Unread.refuse`."""
    optional = ("label_list", "split", "group")
    names = list(map(str, frame.columns))
    chosen = choose_columns("DataFrame", names, ("image", "label"), optional, columns)
    unread = Unread.beside(chosen, names, optional, columns)
    for name in unread.columns:
        all(unread.see(name, cell) for cell in frame.iloc[:, names.index(name)].dropna())
    unread.refuse("DataFrame")
    cells = frame_cells(frame, chosen)
    kind = "label" if "label" in cells else "label_list"
    numeric = numbers and all(isinstance(cell, Number) for cell in cells[kind])
    labels: list[Label] = plain_labels(cells[kind]) if numeric else []
    splits = []
    for number, image in enumerate(cells["image"]):
        where = f"DataFrame, row {number}"
        if image is None:
            raise UserError(f"{where}: the image is empty")
        if not numeric:
            label = only_label(row_labels({kind: as_text(cells[kind][number])}), where)
            if label is None:
                raise UserError(f"{where}: the label is empty")
            labels.append(label)
        split = as_text(cells["split"][number]).casefold() if "split" in cells else "all"
        if split not in SPLITS and split not in ("", "all"):
            raise UserError(f"DataFrame: split is {quoted(split)}: write train, val or test")
        splits.append(SPLITS.get(split, "all"))
    if "all" in splits and {*splits} != {"all"}:
        where = f"DataFrame, row {splits.index('all')}"
        raise UserError(f"{where}: the split is empty: write train, val or test")
    groups = [as_text(group) for group in cells.get("group", [None] * len(splits))]
    return _Table(cells["image"], labels, splits, groups)


def _frame_source(
    frame: pandas.DataFrame, columns: Mapping[str, str] | None
) -> Source | dict[str, ImageSet]:
    images, labels, splits, groups = _read_frame(frame, columns or {})
    rows: dict[str, list[int]] = {}
    for number, split in enumerate(splits):
        rows.setdefault(split, []).append(number)
    paths = [image for image in images if isinstance(image, (str, Path))]
    if not paths or len(paths) < len(images):
        whole = ImageSet.from_lists(images, labels, groups=groups)
        return {split: whole.subset(numbers) for split, numbers in rows.items()}
    for path in map(str, paths):
        if URL.match(path):
            what = f"{quoted(path)} is a web address"
            raise UserError(f"DataFrame: {what}; fetch the images first")
    files = [
        Row(str(label), Path(path), group)
        for path, label, group in zip(paths, labels, groups, strict=True)
    ]
    parts = {split: [files[number] for number in numbers] for split, numbers in rows.items()}
    return Source(Path(), parts, Counter())


def _frame_set(frame: pandas.DataFrame, classes: Sequence[str] | None, split: str) -> ImageSet:
    """Return the images of a DataFrame, those of a split if it has any."""
    table = _read_frame(frame, {}, numbers=True)
    rows = [row for row, name in enumerate(table.splits) if name in (split, "all")]
    if not rows and table.splits:
        raise UserError(f"the DataFrame has a split column, but no row says {split}")
    images = [table.images[row] for row in rows]
    labels = [table.labels[row] for row in rows]
    groups = tuple(table.groups[row] for row in rows)
    return _list_set(images, labels, classes, groups)


def _is_frame(data: object) -> TypeGuard[pandas.DataFrame]:
    """Return whether data is a pandas DataFrame, without importing pandas."""
    module = sys.modules.get("pandas")
    return module is not None and isinstance(data, module.DataFrame)


# Pairs and lists


def _pairs(data: _Items) -> Source | dict[str, ImageSet]:
    whole = data.dataset if isinstance(data, _Subset) else data
    names: Sequence[object] | None = getattr(whole, "classes", None)
    samples = getattr(whole, "samples", None)
    if names and samples and all(isinstance(path, (str, Path)) for path, _ in samples):
        chosen = [
            samples[i] for i in (data.indices if isinstance(data, _Subset) else range(len(data)))
        ]
        rows: Rows = [Row(str(_in_words(label, names)), Path(path)) for path, label in chosen]
        return Source(Path(), {"all": rows}, Counter())
    images, labels = [], []
    for number in range(len(data)):
        try:
            image, label = data[number]
        except (TypeError, ValueError):
            raise UserError(f"item {number} of the data is not an (image, label) pair") from None
        if hasattr(image, "detach"):
            advice = "create the data set without a transform"
            raise UserError(f"item {number} of the data holds a tensor: {advice}")
        images.append(image)
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
    images: list[ImageSource], labels: list[Label], classes: Sequence[str] | None,
    groups: tuple[str, ...] = (),
) -> ImageSet:  # fmt: skip
    numbers = bool(labels) and all(isinstance(label, Integral) for label in labels)
    if classes is not None or not numbers:
        return ImageSet.from_lists(images, labels, classes, groups)
    if len(images) != len(labels):
        counts = f"{len(images)} images and {len(labels)} labels"
        raise UserError(f"{counts}: give one label for each image")
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
