"""Data in memory: an ImageSet, lists and arrays, a DataFrame, a data set of `datasets` or of
torchvision."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral, Number
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

import numpy as np

from rmadapter.data.decode import ImageSource
from rmadapter.data.formats.base import SPLITS, URL, Row, Rows, Source, only_label
from rmadapter.data.formats.hf_datasets import is_dataset, read_dataset
from rmadapter.data.formats.tables import as_text, choose_columns, frame_cells, row_labels
from rmadapter.data.image_set import ImageSet
from rmadapter.data.names import Label, class_indices
from rmadapter.errors import UserError, quoted

if TYPE_CHECKING:
    import pandas


def open_object(
    data: Any, columns: Mapping[str, str] | None = None
) -> Source | dict[str, ImageSet]:
    """Read data in memory. Paths are used as they are; images without a path stay in memory.

    data: an ImageSet, or split -> ImageSet; a pandas DataFrame with a column of paths, PIL images
    or arrays; a Dataset or DatasetDict; a torchvision ImageFolder, or any sequence of (image,
    label) pairs, where labels may be numbers if it has `classes`. Raises UserError for anything
    else, and for missing or invalid parts.
    """
    if isinstance(data, ImageSet):
        return {"all": data}
    mapping = isinstance(data, Mapping)
    if mapping and data and all(isinstance(part, ImageSet) for part in data.values()):
        return dict(data)
    if is_dataset(data):
        return read_dataset(data, columns)
    if _is_frame(data):
        return _frame_source(data, columns)
    sequence = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    if sequence and not mapping and not isinstance(data, bytes):
        return _pairs(data)
    what = type(data).__name__
    raise UserError(
        f"{what} is not data; give a path, a DataFrame, a Dataset or (image, label) pairs"
    )


def image_set(
    data: Any, labels: Any = None, classes: Sequence[str] | None = None, split: str = "train"
) -> ImageSet:
    """Return the images to train on, or those of another split.

    With labels: N images, as `image_list` takes them, and N class names or whole numbers. Without:
    an ImageSet, split -> ImageSet (the split, else "all" is used), a pandas DataFrame with columns
    named as in a table (if it has splits, its rows of this one are used), or anything else that
    `read_images` accepts. classes: prompt names of the numbers 0..C-1; without it, numbers may be
    any and prompts contain them, with a warning. Raises UserError for anything else.
    """
    from rmadapter.data.read import read_images

    if labels is not None:
        return _list_set(image_list(data), _plain(labels), classes)
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


def image_list(data: Any) -> list[ImageSource]:
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
    return list(data)


# DataFrames


class _Table(NamedTuple):
    """The rows of a DataFrame. splits: of each row; "all" without a column of splits."""

    images: list[Any]
    labels: list[Label]
    splits: list[str]
    groups: list[str]


def _read_frame(
    frame: pandas.DataFrame, columns: Mapping[str, str], numbers: bool = False
) -> _Table:
    """Read the columns of a DataFrame. numbers: keep numeric labels, which are class numbers to a
    classifier; `read_images` takes them for class names, as in a table. Raises UserError for empty
    cells, several labels in one, and an unknown split."""
    optional = ("label_list", "split", "group")
    names = list(map(str, frame.columns))
    chosen = choose_columns("DataFrame", names, ("image", "label"), optional, columns)
    cells = frame_cells(frame, chosen)
    kind = "label" if "label" in cells else "label_list"
    numeric = numbers and all(isinstance(cell, Number) for cell in cells[kind])
    labels: list[Label] = _plain(cells[kind]) if numeric else []
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
    if not images or not all(isinstance(image, (str, Path)) for image in images):
        whole = ImageSet.from_lists(images, labels, groups=groups)
        return {split: whole.subset(numbers) for split, numbers in rows.items()}
    for image in images:
        if URL.match(str(image)):
            what = f"{quoted(str(image))} is a web address"
            raise UserError(f"DataFrame: {what}; fetch the images first")
    files = [
        Row(str(label), Path(image), group)
        for image, label, group in zip(images, labels, groups, strict=True)
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
    """Return whether data is a pandas DataFrame, without importing pandas, which made
    it."""
    module = sys.modules.get("pandas")
    return module is not None and isinstance(data, module.DataFrame)


# Pairs and lists


def _pairs(data: Any) -> Source | dict[str, ImageSet]:
    # torch's Subset; other wrappers may do anything
    part = hasattr(data, "dataset") and hasattr(data, "indices")
    whole = data.dataset if part else data
    names: Sequence[Any] | None = getattr(whole, "classes", None)
    samples = getattr(whole, "samples", None)
    if names and samples and all(isinstance(path, (str, Path)) for path, _ in samples):
        chosen = [samples[i] for i in (data.indices if part else range(len(data)))]
        rows: Rows = [Row(str(_name(label, names)), Path(path)) for path, label in chosen]
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
        labels.append(label if isinstance(label, str) or names is None else _name(label, names))
    return {"all": ImageSet.from_lists(images, labels)}


def _name(label: Any, names: Sequence[Any]) -> str | list[Any]:
    """Return the label, or list of labels, in words."""
    if isinstance(label, (list, tuple)):
        return [one if isinstance(one, str) else _name(one, names) for one in label]
    number = label.item() if hasattr(label, "item") else label
    if not isinstance(number, int) or not 0 <= number < len(names):
        raise UserError(f"label {quoted(number)} is not one of the {len(names)} classes")
    name = names[number]
    return str(name[0] if isinstance(name, tuple) else name)  # torchvision's ImageNet has synonyms


def _list_set(
    images: list[ImageSource], labels: list[Any], classes: Sequence[str] | None,
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


def _plain(values: Any) -> list[Any]:
    """Return the values as Python's own numbers and texts."""
    values = values if isinstance(values, Iterable) else np.asarray(values)
    if isinstance(values, np.ndarray) and values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    return [value.item() if isinstance(value, np.generic) else value for value in values]


# Weights


def with_weights(
    images: ImageSet, sample_weight: object, class_weight: object, shots: int
) -> ImageSet:
    """Return the set with a weight for each image: sample_weight [N] times class_weight.

    class_weight: label -> weight (1 for missing labels), or "balanced": all classes count the same
    once `shots` of each are drawn. Images of weight 0 are left out, unless their class has no
    others. Raises UserError for invalid weights.
    """
    count = len(images)
    labels = np.array(images.labels)
    weights = np.ones(count) if sample_weight is None else _numbers(sample_weight)
    if weights.shape != (count,) or not _are_weights(weights) or not weights.any():
        what = f"one number of at least 0 for each of the {count} images, not all zero"
        raise UserError(f"sample_weight: give {what}")
    present = labels[weights > 0]
    weights = weights * _class_weights(images, class_weight, present, shots)[labels]
    kept = np.flatnonzero((weights > 0) | ~np.isin(labels, labels[weights > 0]))
    weights = weights[kept]
    images = images if len(kept) == count else images.subset(kept.tolist())
    return replace(images, weights=tuple(weights.tolist()) if np.ptp(weights) else ())


def _class_weights(
    images: ImageSet, class_weight: object, labels: np.ndarray, shots: int
) -> np.ndarray:
    """Return class weights [C]. labels: those of the images whose sample weight is not 0."""
    factors = np.ones(len(images.classes))
    if class_weight is None:
        return factors
    if isinstance(class_weight, str) and class_weight == "balanced":
        drawn = np.minimum(np.bincount(labels, minlength=len(factors)), shots or len(labels))
        return np.asarray(drawn.sum() / np.maximum(drawn, 1) / max(1, np.count_nonzero(drawn)))
    if not isinstance(class_weight, Mapping):
        advice = "write 'balanced', or a dictionary of label -> weight"
        raise UserError(f"class_weight={quoted(class_weight)}: {advice}")
    values = _numbers(list(class_weight.values()))
    zero = len(values) == len(factors) and not values.any()
    if zero or not _are_weights(values):
        raise UserError("class_weight: weights must be numbers of at least 0, not all zero")
    factors[class_indices(_plain(list(class_weight)), images.written, images.classes)] = values
    return factors


def _are_weights(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).all() and (values >= 0).all())


def _numbers(values: Any) -> np.ndarray:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        return np.array(np.nan)
