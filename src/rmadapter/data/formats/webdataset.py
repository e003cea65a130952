"""webdataset: tar files in which 0001.jpg and 0001.cls form a sample
(github.com/webdataset/webdataset).

Each shard is unpacked once into the cache, member by member. The class is the text of .cls, or the
field label, class, category or cls of .json; if classnames.txt is beside the shards, numbers index
its lines.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rmadapter.data.archives import unpack_once
from rmadapter.data.budget import Budget
from rmadapter.data.decode import image_formats
from rmadapter.data.formats.base import (
    UNLABELLED,
    Format,
    Inputs,
    Listing,
    ReadOptions,
    Row,
    Rows,
    entries_of,
    image_files,
    in_order,
    search,
)
from rmadapter.data.formats.tables import USUAL_NAMES
from rmadapter.data.names import SPLITS, listed_label, split_named
from rmadapter.errors import UserError, quoted
from rmadapter.support.files import cache_folder, read_json, read_text

SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")
LABEL_FIELDS = (*USUAL_NAMES["label"], "cls")
MAX_DIGITS = 20  # of a class number; Python does not read numbers of more than 4,300


def detects(path: Path) -> bool:
    return os.path.isdir(path) and (bool(shards(path)) or is_sampled(path))


def read(path: Path, options: ReadOptions) -> Listing:
    """List the images of a folder of shards in their order, or of an unpacked one. Raises UserError
    as `unpack_once` and `samples`."""
    ignored: Counter[str] = Counter()
    names = class_names(path)
    splits: dict[str, Rows] = {}
    for split, files in shards(path).items():
        for file in files:
            rows = samples(unpack_once(file, options.budget), names, ignored, options.budget)
            splits.setdefault(split, []).extend(rows)
    splits = splits or {"all": samples(path, names, ignored, options.budget)}
    return Listing(image_root(path), splits, ignored)


def image_root(path: Path) -> Path:
    return cache_folder() / "unpacked" if shards(path) else path


def list_images(path: Path, options: ReadOptions) -> Inputs:
    budget = options.budget
    files = [file for part in shards(path).values() for file in part]
    images = [image for file in files for image in image_files(unpack_once(file, budget))]
    others = search(path)
    others.ignored -= Counter(file.suffix.lower() for file in files)
    return Inputs(images + others.files, others.folders, others.ignored)


def shards(folder: Path) -> dict[str, list[Path]]:
    """Return split -> its tar files in order; the split is taken from the name of their folder, or
    else of the file.

    Empty if there are other folders, which the tar files may have been unpacked to.
    """
    files: dict[str, list[Path]] = {}
    for file in in_order(filter(_is_shard, entries_of(folder))):
        files.setdefault(split_named(file.name), []).append(file)
    visible = [
        path for path in entries_of(folder) if path.is_dir() and not path.name.startswith(".")
    ]
    for below in sorted(visible):
        split = SPLITS.get(below.name.casefold())
        inside = in_order(filter(_is_shard, entries_of(below)))
        if split is None or not inside:
            return {}
        files.setdefault(split, []).extend(inside)
    return files


def _is_shard(file: Path) -> bool:
    return file.name.lower().endswith(SHARD_SUFFIXES) and not file.name.startswith(".")


def class_names(folder: Path) -> list[str]:
    """Return the lines of classnames.txt; none without that file."""
    file = folder / "classnames.txt"
    return [line.strip() for line in read_text(file).splitlines()] if file.is_file() else []


def is_sampled(folder: Path) -> bool:
    """Return whether a folder holds samples like a shard: classes in .cls, or images with a .json
    of the same name."""
    if any(next(folder.glob(pattern), None) for pattern in ("*.cls", "*/*.cls")):
        return True
    names = [path.name.partition(".") for path in folder.iterdir() if path.is_file()]
    described = {stem for stem, _, kind in names if kind == "json"}
    return any(
        stem in described and f".{kind.lower()}" in image_formats() for stem, _, kind in names
    )


def samples(folder: Path, names: Sequence[str], ignored: Counter[str], budget: Budget) -> Rows:
    """Return the labelled images of an unpacked shard. Raises UserError for an unreadable label."""
    others: Counter[str] = Counter()
    rows: Rows = []
    label_files: set[Path] = set()
    images = image_files(folder, ignored=others)
    plain = {image.with_suffix("") for image in images if image.name.count(".") == 1}
    for image in images:
        stem, _, kind = image.name.partition(".")
        label, file = _label(image.parent, stem, names, budget)
        if file:
            label_files.add(file)
        if "." in kind and image.with_name(stem) in plain:  # such as a mask, 1.seg.png beside 1.jpg
            ignored[f".{kind}"] += 1
        elif label:
            rows.append(Row(listed_label(label, str(image)), image))
        else:
            ignored[UNLABELLED] += 1
    others.subtract(file.suffix for file in label_files)
    ignored.update({kind: count for kind, count in others.items() if count > 0})
    return rows


def _label(
    folder: Path, stem: str, names: Sequence[str], budget: Budget
) -> tuple[str, Path | None]:
    """Return a sample's class and the file that gives it; "" and None if there is none."""
    if (file := folder / f"{stem}.cls").is_file():
        return _class_name(read_text(file).strip(), names, file), file
    file = folder / f"{stem}.json"
    if not file.is_file():
        return "", None
    fields = read_json(file, take=lambda size: budget.take("memory", size, file))
    if not isinstance(fields, dict):
        raise UserError(
            f"{file}: {quoted(fields)} has none of the fields {', '.join(LABEL_FIELDS)}"
        )
    value = next((fields[name] for name in LABEL_FIELDS if fields.get(name) is not None), "")
    if isinstance(value, (list, dict)):
        raise UserError(f"{file}: {quoted(value)} is not one class")
    return _class_name(str(value).strip(), names, file), file


def _class_name(label: str, names: Sequence[str], file: Path) -> str:
    if not names or not label.isdecimal():
        return label
    if len(label) > MAX_DIGITS or int(label) >= len(names):
        raise UserError(
            f"{file}: class {label[:MAX_DIGITS]} is not among the {len(names)} lines of "
            "classnames.txt"
        )
    return names[int(label)]


FORMAT = Format("webdataset", detects, read, list_images, image_root)
