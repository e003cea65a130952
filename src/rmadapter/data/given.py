"""Turns what Python users pass into one ImageSet: our own sets, folders, tables, data frames,
arrays and lists."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

import numpy as np

from rmadapter.data.formats.columns import choose_columns, frame_cells
from rmadapter.data.formats.hf_datasets import is_dataset
from rmadapter.data.formats.scan import SPLITS
from rmadapter.data.names import places
from rmadapter.data.read import ImageSet, ImageSource, read_images
from rmadapter.errors import UserError, quoted


def image_set(
    data: Any, labels: Any = None, classes: Sequence[str] | None = None, split: str = "train"
) -> ImageSet:
    """Images to train on, or of another split.

    With labels: N images, as `image_list` takes them, and N class names or whole numbers. Without:
    an ImageSet, split -> ImageSet (the split, else "all" is used), a pandas DataFrame with columns
    named as in a table (if it has splits, its rows of this one are used), or anything else that
    `read_images` accepts. classes: prompt names of the numbers 0..C-1; without it, numbers may be
    any and prompts contain them, with a warning. Raises UserError for anything else.
    """
    if labels is not None:
        return _of_lists(image_list(data), _plain(labels), classes)
    if _is_frame(data):
        return _of_frame(data, classes, split)
    listed = isinstance(data, (list, tuple, np.ndarray)) and not (
        len(data) and isinstance(data[0], tuple)
    )
    if is_dataset(data) or (not listed and not isinstance(data, (ImageSet, Mapping))):
        data = read_images(data, progress=False)
    if isinstance(data, Mapping):
        found = data.get(split, data.get("all"))
        if found is None:
            raise UserError(
                f"no {split} images: the data has only {', '.join(map(str, data)) or 'nothing'}"
            )
        data = found
    if not isinstance(data, ImageSet):
        raise UserError(
            f"labels are missing: give images and labels, or an ImageSet, a folder, a table or a DataFrame, not "
            f"{type(data).__name__}"
        )
    return data


def image_list(data: Any) -> list[ImageSource]:
    """A list of N images from a list, Series or array [N], an array [N, H, W(, 3)], a column [N, 1]
    of paths or objects as in scikit-learn's ensembles, an ImageSet, or a DataFrame with a column of
    paths."""
    if isinstance(data, ImageSet):
        return list(data.images)
    if _is_frame(data):
        names = list(map(str, data.columns))
        name = (
            names[0] if len(names) == 1 else choose_columns("DataFrame", names, ["image"])["image"]
        )
        return data.iloc[:, names.index(name)].tolist()
    if (
        isinstance(data, np.ndarray)
        and data.dtype.kind in "OUS"
        and data.ndim == 2
        and data.shape[1] == 1
    ):
        return data[:, 0].tolist()
    return list(data)


def weighted(images: ImageSet, sample_weight: Any, class_weight: Any, shots: int) -> ImageSet:
    """The set with a weight for each image: sample_weight [N] times class_weight.

    class_weight: label -> weight (1 for missing labels), or "balanced": all classes count the same
    once `shots` of each are drawn. Images of weight 0 are left out, unless their class has no
    others. Raises UserError for invalid weights.
    """
    count, labels = len(images), np.array(images.labels)
    weights = np.ones(count) if sample_weight is None else _numbers(sample_weight)
    if (
        weights.shape != (count,)
        or not np.isfinite(weights).all()
        or (weights < 0).any()
        or not weights.any()
    ):
        raise UserError(
            f"sample_weight: give one number of at least 0 for each of the {count} images, not all zero"
        )
    weights = weights * _of_classes(images, class_weight, labels[weights > 0], shots)[labels]
    kept = np.flatnonzero((weights > 0) | ~np.isin(labels, labels[weights > 0]))
    weights, images = weights[kept], images if len(kept) == count else images.subset(kept.tolist())
    return replace(images, weights=tuple(weights.tolist()) if np.ptp(weights) else ())


def _of_classes(images: ImageSet, given: Any, labels: np.ndarray, shots: int) -> np.ndarray:
    """Class weights [C]. labels: those of the images whose sample weight is not 0."""
    factors = np.ones(len(images.classes))
    if given is None:
        return factors
    if isinstance(given, str) and given == "balanced":
        drawn = np.minimum(np.bincount(labels, minlength=len(factors)), shots or len(labels))
        return drawn.sum() / np.maximum(drawn, 1) / max(1, np.count_nonzero(drawn))
    if not isinstance(given, Mapping):
        raise UserError(
            f"class_weight={quoted(given)}: write 'balanced', or a dictionary of label -> weight"
        )
    values = _numbers(list(given.values()))
    if (
        not np.isfinite(values).all()
        or (values < 0).any()
        or (len(values) == len(factors) and not values.any())
    ):
        raise UserError("class_weight: weights must be numbers of at least 0, not all zero")
    factors[places(_plain(list(given)), images.written, images.classes)] = values
    return factors


def _numbers(values: Any) -> np.ndarray:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        return np.array(np.nan)


def _of_lists(
    images: list[ImageSource],
    labels: list[Any],
    classes: Sequence[str] | None,
    groups: tuple[str, ...] = (),
) -> ImageSet:
    if (
        classes is not None
        or not labels
        or not all(isinstance(label, Integral) for label in labels)
    ):
        return ImageSet.from_lists(images, labels, classes, groups)
    if len(images) != len(labels):
        raise UserError(
            f"{len(images)} images and {len(labels)} labels: give one label for each image"
        )
    written = sorted(set(labels))
    names = tuple(str(number) for number in written)
    warnings.warn(
        f"labels are numbers, so prompts call the classes {', '.join(names[:3])}{', ...' * (len(names) > 3)}; "
        f"class_names=[...] gives them names the model can read",
        stacklevel=4,
    )
    numbers = {label: place for place, label in enumerate(written)}
    return ImageSet(
        tuple(images),
        tuple(numbers[x] for x in labels),
        names,
        written=tuple(written),
        groups=groups,
    )


def _of_frame(frame: Any, classes: Sequence[str] | None, split: str) -> ImageSet:
    """The images of a DataFrame, of this split if it has any; unlike in `memory.open_object`,
    numeric labels stay numbers."""
    names = list(map(str, frame.columns))
    chosen = choose_columns("DataFrame", names, ("image", "label"), ("split", "group"))
    cells = {what: _plain(values) for what, values in frame_cells(frame, chosen).items()}
    if "split" in cells:
        splits = [
            SPLITS.get("" if own is None else str(own).strip().casefold(), "")
            for own in cells["split"]
        ]
        if "" in splits:
            raise UserError(
                f"DataFrame: a split is {cells['split'][splits.index('')]!r}: write train, val or test"
            )
        rows = [row for row, own in enumerate(splits) if own == split]
        if not rows:
            raise UserError(f"the DataFrame has a split column, but no row says {split}")
        cells = {what: [values[row] for row in rows] for what, values in cells.items()}
    groups = tuple("" if group is None else str(group) for group in cells.get("group", ()))
    return _of_lists(cells["image"], cells["label"], classes, groups)


def _plain(values: Any) -> list[Any]:
    """The values as Python's own numbers and texts."""
    values = values if isinstance(values, Iterable) else np.asarray(values)
    if isinstance(values, np.ndarray) and values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    return [value.item() if isinstance(value, np.generic) else value for value in values]


def _is_frame(data: Any) -> bool:
    """Whether it is a pandas DataFrame, without importing pandas: whoever has one has imported it."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(data, pandas.DataFrame)
