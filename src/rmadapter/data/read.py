"""Reads a folder of class folders, a table, or data of another format as one ImageSet per split."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rmadapter.data.decode import ImageSource, image_error, load_image
from rmadapter.data.decode_limits import ignored_note
from rmadapter.data.formats.archives import is_packed
from rmadapter.data.formats.scan import Row, Rows, only_label, order
from rmadapter.data.formats.sources import open_source
from rmadapter.data.image_reader import in_threads
from rmadapter.data.image_set import ImageSet, relative, unreadable
from rmadapter.data.names import beside_splits, classnames_json, prompt_name, prompt_names
from rmadapter.data.objects import open_object
from rmadapter.errors import UserError
from rmadapter.support.files import cache_folder, user_path

REPEATED = "images listed again"

__all__ = ["ImageSet", "ImageSource", "load_image", "prompt_name", "read_images"]


def read_images(
    data: Any, *, skip_bad: bool = False, check: bool = False, outside: bool = False,
    progress: bool = True, names: Mapping[str, str] | None = None, columns: Mapping[str, str] | None = None, crops: bool = False,
) -> dict[str, ImageSet]:  # fmt: skip
    """Read a folder of class folders, train/val/test folders of such, a table
    `path,label[,split][,group]`, or any other format of docs/data.md.

    data: a path, or an object that `memory.open_object` accepts. columns: "image", "label", "split"
    or "group" -> its column in a table that uses other than the usual names. crops: use the boxes
    of COCO, YOLO, Label Studio and FiftyOne as images. names: label -> prompt name; overrides classnames.json, an optional file in
    the folder (for one of several domains, beside the domains). "crane | tall bird" gives one class
    two descriptions. Returns split ("train", "val", "test"; "all" for data without splits) ->
    ImageSet. All share the classes of train (of all splits if there is no train), sorted by folder
    name. Of each image the header is read, and with `check` or `skip_bad` all of it; unreadable
    images raise UserError, or with `skip_bad` are left out and listed in `skipped`. Also raises
    UserError for several labels of one image, ambiguous labels, and for paths in a table that leave
    its folder unless `outside` is set.
    """
    if isinstance(data, (str, Path)):
        path, source = user_path(data), open_source(data, outside, columns, crops)
    else:
        opened = open_object(data, columns)
        if isinstance(opened, dict):
            return opened
        path, source = Path(type(data).__name__), opened
    found = {
        split: rows if split == "test" else _once(rows) for split, rows in source.splits.items()
    }
    if "all" in found and len(found) > 1:
        raise UserError(
            f"{path}: some of its images are in no split, but others are: put all into train, val or test"
        )
    again = sum(map(len, source.splits.values())) - sum(map(len, found.values()))
    root, ignored = source.root, ignored_note(source.ignored + Counter({REPEATED: again}))
    own = classnames_json(root, beside_splits(path, found))
    if not own and root.is_relative_to(cache_folder()) and path.exists() and not is_packed(path):
        home = (
            path if path.is_dir() else path.parent
        )  # crops and embedded images have their names with the data
        own = classnames_json(home, beside_splits(path, found))
    given = {**own, **(names or {})}
    written, called = _shared_names(found, given, path)
    _check_once(found, path)

    images = [row.image for rows in found.values() for row in rows]
    bad = image_errors(images, progress, header=not (check or skip_bad))
    if bad and not skip_bad:
        more = f" ({ignored})" if ignored and any(os.path.isdir(image) for image in bad) else ""
        lost = not os.path.exists(next(iter(bad))) and path.is_file()
        more += f"; paths are relative to {path.parent}" if lost else ""
        raise UserError(unreadable([*bad.values()], more))
    good = {split: [row for row in rows if row.image not in bad] for split, rows in found.items()}
    leading = [good["train"]] if "train" in good else good.values()
    left = {called[row.label] for rows in leading for row in rows}
    classes = [name for name in written if name in left]
    if not classes:
        raise UserError(f"{path}: no readable images{' in train' if 'train' in good else ''}")
    number = {name: i for i, name in enumerate(classes)}
    numbers = {raw: number[name] for raw, name in called.items() if name in left}
    broken = {
        split: [row.image for row in rows if row.image in bad] for split, rows in found.items()
    }
    skipped = {
        split: [f"{relative(p, root)}: {bad[p].removeprefix(f'{p}: ')}" for p in broken[split]]
        for split in found
    }
    whole = ImageSet(
        (),
        (),
        tuple(classes),
        root,
        written=tuple(written[name] for name in classes),
        ignored=ignored,
    )
    return {split: _filled(whole, rows, numbers, skipped[split]) for split, rows in good.items()}


def _once(rows: Rows) -> Rows:
    """The rows without those of the same image and label, one of which could be trained on and
    another judge."""
    first: dict[Any, Row] = {}
    for row in rows:
        first.setdefault((row.image, row.label), row)
    return [*first.values()]


def _check_once(found: Mapping[str, Rows], path: Path) -> None:
    """Raise UserError if an image is in two splits, or under two labels outside test."""
    seen: dict[Any, tuple[str, Row]] = {}
    for split, rows in found.items():
        for row in rows:
            where, first = seen.setdefault(row.image, (split, row))
            if where != split:
                raise UserError(
                    f"{path}: {row.image} is in {where} and in {split}: leave it in one"
                )
            other = split != "test" and first.label != row.label
            if other and not image_errors(
                [row.image], progress=False
            ):  # all boxes of an unreadable photo are its path
                only_label((first.label, row.label), f"{path}: {row.image}")


def _filled(
    empty: ImageSet, rows: Rows, numbers: Mapping[str, int], skipped: Sequence[str]
) -> ImageSet:
    """`empty` with the images of `rows`. numbers: label -> class index; rows without such a label
    are skipped."""
    kept = [row for row in rows if row.label in numbers]
    lost = [row.image for row in rows if row.label not in numbers]
    return replace(
        empty,
        images=tuple(row.image for row in kept),
        labels=tuple(numbers[row.label] for row in kept),
        skipped=(
            *skipped,
            *(f"{relative(image, empty.root)}: no train images of its class" for image in lost),
        ),
        groups=tuple(row.group for row in kept),
    )


def _shared_names(
    found: dict[str, Rows], given: Mapping[str, str], path: Path
) -> tuple[dict[str, str], dict[str, str]]:
    """Prompt name -> label of each class, in order; and label, of any split and spelling -> prompt
    name."""
    own = {
        split: prompt_names(
            sorted({row.label for row in rows}, key=order), given, f"{path} ({split}): "
        )
        for split, rows in found.items()
    }
    leading = (
        own["train"]
        if "train" in own
        else {raw: name for names in own.values() for raw, name in names.items()}
    )
    shared: dict[str, str] = {}
    written: dict[str, str] = {}
    for raw in sorted(leading, key=order):
        written.setdefault(shared.setdefault(leading[raw].casefold(), leading[raw]), raw)
    for split, names in own.items():
        for raw, name in names.items():
            if name.casefold() not in shared:
                raise UserError(
                    f"{path}: {split} has a class {raw!r} that train lacks: rename it or remove it there"
                )
    return written, {
        raw: shared[name.casefold()] for own_ in own.values() for raw, name in own_.items()
    }


def image_errors(paths: Sequence[Path], progress: bool, *, header: bool = False) -> dict[Path, str]:
    """Return the unreadable files, each with the reason. header: as in `image_error`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `image_error` says what is wrong
        check = partial(image_error, header=header)
        errors = in_threads(check, paths, "checking images", progress)
    return {path: error for path, error in zip(paths, errors, strict=True) if error}
