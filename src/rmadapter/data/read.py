"""Reads a folder of class folders, a table, or data of another format as one ImageSet per split."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from rmadapter.data.decode import ImageSource, complaint, load_image
from rmadapter.data.formats.archives import is_packed
from rmadapter.data.formats.scan import Row, Rows, order
from rmadapter.data.formats.sources import open_source
from rmadapter.data.ignored import ignored_note
from rmadapter.data.image_set import ImageSet, relative
from rmadapter.data.names import beside_splits, classnames_json, prompt_name, prompt_names
from rmadapter.data.objects import open_object
from rmadapter.errors import UserError, quoted
from rmadapter.support.files import cache_folder, user_path
from rmadapter.support.terminal import track

REPEATED = "images listed again"

__all__ = ["ImageSet", "ImageSource", "load_image", "prompt_name", "read_images"]


def read_images(
    data: Any, *, skip_bad: bool = False, outside: bool = False, progress: bool = True,
    names: Mapping[str, str] | None = None, columns: Mapping[str, str] | None = None, crops: bool = False,
) -> dict[str, ImageSet]:  # fmt: skip
    """Read a folder of class folders, train/val/test folders of such, a table
    `path,label[,split][,group]`, or any other format of docs/data.md.

    data: a path, or an object that `memory.open_object` accepts. columns: "image", "label", "split"
    or "group" -> its column in a table that uses other than the usual names; "separator" -> what
    separates several labels of an image. crops: use the boxes of COCO, YOLO, Label Studio and
    FiftyOne as images. names: label -> prompt name; overrides classnames.json, an optional file in
    the folder (for one of several domains, beside the domains). "crane | tall bird" gives one class
    two descriptions. Returns split ("train", "val", "test"; "all" for data without splits) ->
    ImageSet. All share the classes of train (of all splits if there is no train), sorted by folder
    name. Every file is decoded once, so every image returned is readable; unreadable ones raise
    UserError, or with `skip_bad` are left out and listed in `skipped`. Also raises UserError for
    ambiguous labels, and for paths in a table that leave its folder unless `outside` is set.
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

    bad = complaints([row.image for rows in found.values() for row in rows], progress)
    if bad and not skip_bad:
        more = f" (and {len(bad) - 1} more like it)" if len(bad) > 1 else ""
        more += f" ({ignored})" if ignored and any(os.path.isdir(image) for image in bad) else ""
        lost = not os.path.exists(next(iter(bad))) and path.is_file()
        more += f"; paths are relative to {path.parent}" if lost else ""
        raise UserError(
            f"{next(iter(bad.values()))}{more}; --skip-bad (skip_bad=True) goes on without such files"
        )
    good = {split: [row for row in rows if row.image not in bad] for split, rows in found.items()}
    leading = [good["train"]] if "train" in good else good.values()
    left = {called[label] for rows in leading for row in rows for label in row.labels}
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
    several = any(row.also for rows in found.values() for row in rows)
    return {
        split: _filled(whole, rows, numbers, skipped[split], several)
        for split, rows in good.items()
    }


def _once(rows: Rows) -> Rows:
    """The rows without those of the same image and labels, one of which could be trained on and
    another judge."""
    first: dict[Any, Row] = {}
    for row in rows:
        first.setdefault((row.image, frozenset(row.labels)), row)
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
            other = split != "test" and {*first.labels} != {*row.labels}
            if other and not complaints(
                [row.image], progress=False
            ):  # all boxes of an unreadable photo are its path
                raise UserError(
                    f"{path}: {row.image} is listed as {quoted(first.label)} and as {quoted(row.label)}: list it once, "
                    f"with several labels as 'a;b', or give boxes in a format that --crops (crops=True) can cut"
                )


def _filled(
    empty: ImageSet, rows: Rows, numbers: Mapping[str, int], skipped: Sequence[str], several: bool
) -> ImageSet:
    """`empty` with the images of `rows`. numbers: label -> class index; rows without any such label
    are skipped."""
    labels = [
        tuple(dict.fromkeys(numbers[label] for label in row.labels if label in numbers))
        for row in rows
    ]
    kept = [(row, own) for row, own in zip(rows, labels, strict=True) if own]
    lost = [row.image for row, own in zip(rows, labels, strict=True) if not own]
    return replace(
        empty,
        images=tuple(row.image for row, _ in kept),
        labels=tuple(own[0] for _, own in kept),
        skipped=(
            *skipped,
            *(f"{relative(image, empty.root)}: no train images of its class" for image in lost),
        ),
        groups=tuple(row.group for row, _ in kept),
        several=tuple(own for _, own in kept) if several else (),
    )


def _shared_names(
    found: dict[str, Rows], given: Mapping[str, str], path: Path
) -> tuple[dict[str, str], dict[str, str]]:
    """Prompt name -> label of each class, in order; and label, of any split and spelling -> prompt
    name."""
    own = {
        split: prompt_names(
            sorted({x for row in rows for x in row.labels}, key=order), given, f"{path} ({split}): "
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


def complaints(paths: Sequence[Path], progress: bool) -> dict[Path, str]:
    """Unreadable files, each with the reason."""
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `complaint` says what is wrong
            told = track(pool.map(complaint, paths), len(paths), "checking images", progress)
            return {path: text for path, text in zip(paths, told, strict=True) if text}
    finally:
        pool.shutdown(cancel_futures=True)
