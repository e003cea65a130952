"""Read data of any format, or in memory, as one ImageSet per split."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rmadapter.data.decode import ImageSource, image_error, load_image
from rmadapter.data.formats.base import Row, Rows, ignored_note, only_label, order
from rmadapter.data.formats.registry import open_source
from rmadapter.data.image_set import ImageSet, in_threads, relative, unreadable
from rmadapter.data.names import beside_splits, classnames_json, prompt_name, prompt_names
from rmadapter.data.objects import open_object
from rmadapter.errors import UserError
from rmadapter.support.files import user_path

REPEATED = "images listed again"

__all__ = ["ImageSet", "ImageSource", "load_image", "prompt_name", "read_images"]


def read_images(
    data: Any, *, skip_bad: bool = False, check: bool | None = None, outside: bool = False,
    progress: bool = True, names: Mapping[str, str] | None = None,
    columns: Mapping[str, str] | None = None, crops: bool = False,
) -> dict[str, ImageSet]:  # fmt: skip
    """Read a folder of class folders, train/val/test folders of such, a table
    `path,label[,split][,group]`, or any other format of docs/data.md.

    - data: a path, or an object that `objects.open_object` accepts
    - skip_bad: leave out unreadable images, and list them in `skipped`
    - check: decode all images, which finds damage after their headers; by default with `skip_bad`
    - outside: allow a table to name images outside its folder
    - names: label -> prompt name; overrides classnames.json, an optional file in the folder (for
      one of several domains, beside the domains). "crane | tall bird": one class, two descriptions
    - columns: "image", "label", "split" or "group" -> its column in a table that uses other than
      the usual names
    - crops: use the boxes of COCO, YOLO, Label Studio and FiftyOne as images

    Returns split ("train", "val", "test"; "all" for data without splits) -> ImageSet. All share the
    classes of train (of all splits if there is no train), sorted by folder name. Raises UserError
    for unreadable images, several labels of one image, and ambiguous labels.
    """
    if isinstance(data, (str, Path)):
        path = user_path(data)
        source = open_source(data, outside, columns, crops)
    else:
        opened = open_object(data, columns)
        if isinstance(opened, dict):
            return opened
        path, source = Path(type(data).__name__), opened
    splits = {name: rows if name == "test" else _once(rows) for name, rows in source.splits.items()}
    if "all" in splits and len(splits) > 1:
        what = "some of its images are in no split, but others are"
        raise UserError(f"{path}: {what}: put all into train, val or test")
    again = sum(map(len, source.splits.values())) - sum(map(len, splits.values()))
    ignored = ignored_note(source.ignored + Counter({REPEATED: again}))
    given = classnames_json(source.home or source.root, beside_splits(path, splits))
    written, called = _shared_names(splits, {**given, **(names or {})}, path)
    _check_once(splits, path)

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


def _once(rows: Rows) -> Rows:
    """Leave out repeated rows of an image and label, one of which could be trained on and another
    judge."""
    first = {(row.image, row.label): row for row in reversed(rows)}
    return [row for row in rows if first.get((row.image, row.label)) is row]


def _check_once(splits: Mapping[str, Rows], path: Path) -> None:
    """Raise UserError if an image is in two splits, or under two labels outside test."""
    seen: dict[Path, tuple[str, Row]] = {}
    for split, rows in splits.items():
        for row in rows:
            where, first = seen.setdefault(row.image, (split, row))
            if where != split:
                both = f"{row.image} is in {where} and in {split}"
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
    splits: Mapping[str, Rows], given: Mapping[str, str], path: Path
) -> tuple[dict[str, str], dict[str, str]]:
    """Return prompt name -> label of each class, in order; and label, of any split and spelling ->
    prompt name. given: label -> prompt name."""
    named: dict[str, dict[str, str]] = {}
    for split, rows in splits.items():
        labels = sorted({row.label for row in rows}, key=order)
        named[split] = prompt_names(labels, given, f"{path} ({split}): ")
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
