"""Data in memory: an ImageSet, a DataFrame, a data set of `datasets` or of torchvision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rmadapter.data.decode_limits import URL
from rmadapter.data.formats.columns import as_text, choose_columns, frame_cells
from rmadapter.data.formats.hf_datasets import is_dataset, read_dataset
from rmadapter.data.formats.scan import SPLITS, Row, Rows, Source, only_label, row_labels
from rmadapter.data.image_set import ImageSet
from rmadapter.errors import UserError, quoted


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
    if (
        isinstance(data, Mapping)
        and data
        and all(isinstance(part, ImageSet) for part in data.values())
    ):
        return dict(data)
    if is_dataset(data):
        return read_dataset(data, columns)
    if hasattr(data, "columns") and hasattr(data, "iloc"):
        return _frame(data, columns)
    if (
        hasattr(data, "__getitem__")
        and hasattr(data, "__len__")
        and not isinstance(data, (Mapping, bytes))
    ):
        return _pairs(data)
    raise UserError(
        f"{type(data).__name__} is not data; give a path, a DataFrame, a Dataset or (image, label) pairs"
    )


def _frame(table: Any, columns: Mapping[str, str] | None) -> Source | dict[str, ImageSet]:
    chosen = choose_columns(
        "DataFrame",
        list(map(str, table.columns)),
        ("image", "label"),
        ("label_list", "split", "group"),
        columns or {},
    )
    cells = frame_cells(table, chosen)
    images, empty = cells["image"], [None] * len(cells["image"])
    texts = {
        what: [*map(as_text, column)]
        for what, column in cells.items()
        if what in ("label", "label_list")
    }
    labels: list[str] = []
    for number, row in enumerate(zip(*texts.values(), strict=True)):
        where = f"DataFrame, row {number}"
        label = only_label(row_labels(dict(zip(texts, row, strict=True))), where)
        if label is None:
            raise UserError(f"{where}: the label is empty")
        labels.append(label)
    if gaps := [i for i, image in enumerate(images) if image is None]:
        raise UserError(f"DataFrame, row {gaps[0]}: the image is empty")
    splits = [as_text(split).casefold() or "all" for split in cells.get("split", empty)]
    if other := next((split for split in splits if split not in SPLITS and split != "all"), None):
        raise UserError(f"DataFrame: split is {quoted(other)}: write train, val or test")
    if "all" in splits and {*splits} != {"all"}:
        raise UserError(
            f"DataFrame, row {splits.index('all')}: the split is empty: write train, val or test"
        )
    groups = [as_text(group) for group in cells.get("group", empty)]
    order: dict[str, list[int]] = {}
    for i, split in enumerate(splits):
        order.setdefault(SPLITS.get(split, split), []).append(i)
    if images and all(isinstance(image, (str, Path)) for image in images):
        if address := next((image for image in images if URL.match(str(image))), None):
            raise UserError(
                f"DataFrame: {quoted(str(address))} is a web address; fetch the images first"
            )
        rows = {
            split: [Row(labels[i], Path(images[i]), groups[i]) for i in some]
            for split, some in order.items()
        }
        return Source(Path(), rows, Counter())
    whole = ImageSet.from_lists(images, labels, groups=groups)
    return {split: whole.subset(some) for split, some in order.items()}


def _pairs(data: Any) -> Source | dict[str, ImageSet]:
    part = hasattr(data, "dataset") and hasattr(
        data, "indices"
    )  # torch's Subset; other wrappers may do anything
    whole, places = (data.dataset, data.indices) if part else (data, range(len(data)))
    names: Sequence[Any] | None = getattr(whole, "classes", None)
    samples = getattr(whole, "samples", None)
    if names and samples and all(isinstance(path, (str, Path)) for path, _ in samples):
        rows: Rows = [Row(str(_name(samples[i][1], names)), Path(samples[i][0])) for i in places]
        return Source(Path(), {"all": rows}, Counter())
    images, labels = [], []
    for i in range(len(data)):
        try:
            image, label = data[i]
        except (TypeError, ValueError):
            raise UserError(f"item {i} of the data is not an (image, label) pair") from None
        if hasattr(image, "detach"):
            raise UserError(
                f"item {i} of the data holds a tensor: create the data set without a transform"
            )
        images.append(image)
        labels.append(label if isinstance(label, str) or names is None else _name(label, names))
    return {"all": ImageSet.from_lists(images, labels)}


def _name(label: Any, names: Sequence[Any]) -> str | list[Any]:
    """The label, or list of labels, in words."""
    if isinstance(label, (list, tuple)):
        return [one if isinstance(one, str) else _name(one, names) for one in label]
    number = label.item() if hasattr(label, "item") else label
    if not isinstance(number, int) or not 0 <= number < len(names):
        raise UserError(f"label {quoted(number)} is not one of the {len(names)} classes")
    name = names[number]
    return str(name[0] if isinstance(name, tuple) else name)  # torchvision's ImageNet has synonyms
