"""webdataset: tar files in which 0001.jpg and 0001.cls form a sample
(github.com/webdataset/webdataset).

Each shard is unpacked once into the cache, member by member. The class is the text of .cls, or the
field label, class, category or cls of .json; if classnames.txt is beside the shards, numbers index
its lines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rmadapter.data.decode_limits import formats
from rmadapter.data.formats.annotations import UNLABELLED, class_name
from rmadapter.data.formats.archives import unpacked
from rmadapter.data.formats.columns import USUAL
from rmadapter.data.formats.scan import (
    SPLITS,
    Row,
    Rows,
    image_files,
    in_order,
    listed,
    split_named,
)
from rmadapter.errors import UserError, quoted
from rmadapter.support.files import read_json, read_text

SHARDS = (".tar", ".tar.gz", ".tgz")
FIELDS = (*USUAL["label"], "cls")


def shards(folder: Path) -> dict[str, list[Path]]:
    """Split -> its tar files in order; the split is taken from the name of their folder, or else of
    the file.

    Empty if there are other folders, which the tar files may have been unpacked to.
    """
    found: dict[str, list[Path]] = {}
    for file in in_order(filter(_is_shard, listed(folder))):
        found.setdefault(split_named(file.name), []).append(file)
    for below in sorted(
        path for path in listed(folder) if path.is_dir() and not path.name.startswith(".")
    ):
        inside = in_order(filter(_is_shard, listed(below)))
        if below.name.casefold() not in SPLITS or not inside:
            return {}
        found.setdefault(SPLITS[below.name.casefold()], []).extend(inside)
    return found


def _is_shard(file: Path) -> bool:
    return file.name.lower().endswith(SHARDS) and not file.name.startswith(".")


def read_shards(
    folder: Path, found: dict[str, list[Path]], ignored: Counter[str]
) -> dict[str, Rows]:
    """Split -> rows in the order of the shards. Raises UserError as `unpacked` and `samples`."""
    names = class_names(folder)
    return {
        split: [r for file in files for r in samples(unpacked(file), names, ignored)]
        for split, files in found.items()
    }


def class_names(folder: Path) -> list[str]:
    file = folder / "classnames.txt"
    return [line.strip() for line in read_text(file).splitlines()] if file.is_file() else []


def is_sampled(folder: Path) -> bool:
    """Whether a folder holds samples like a shard: classes in .cls, or images with a .json of the
    same name."""
    if any(next(folder.glob(pattern), None) for pattern in ("*.cls", "*/*.cls")):
        return True
    names = [path.name.partition(".") for path in folder.iterdir() if path.is_file()]
    described = {stem for stem, _, kind in names if kind == "json"}
    return any(stem in described and f".{kind.lower()}" in formats() for stem, _, kind in names)


def samples(folder: Path, names: Sequence[str], ignored: Counter[str]) -> Rows:
    """The labelled images of an unpacked shard. Raises UserError for an unreadable label."""
    others: Counter[str] = Counter()
    rows: Rows = []
    used: set[Path] = set()
    images = image_files(folder, set(), others)
    plain = {image.with_suffix("") for image in images if image.name.count(".") == 1}
    for image in images:
        stem, _, kind = image.name.partition(".")
        label, file = _label(image.parent, stem, names)
        used |= {file} if file else set()
        if "." in kind and image.with_name(stem) in plain:  # such as a mask, 1.seg.png beside 1.jpg
            ignored[f".{kind}"] += 1
        elif label:
            rows.append(Row(class_name(label, str(image)), image))
        else:
            ignored[UNLABELLED] += 1
    others.subtract(file.suffix for file in used)
    ignored.update({kind: count for kind, count in others.items() if count > 0})
    return rows


def _label(folder: Path, stem: str, names: Sequence[str]) -> tuple[str, Path | None]:
    """A sample's class, and the file that gives it; "" and None if there is none."""
    if (file := folder / f"{stem}.cls").is_file():
        return _named(read_text(file).strip(), names, file), file
    if (file := folder / f"{stem}.json").is_file():
        fields: Any = read_json(file)
        if not isinstance(fields, dict):
            raise UserError(f"{file}: {quoted(fields)} has none of the fields {', '.join(FIELDS)}")
        value = next((fields[name] for name in FIELDS if fields.get(name) is not None), "")
        if isinstance(value, (list, dict)):
            raise UserError(f"{file}: {quoted(value)} is not one class")
        return _named(str(value).strip(), names, file), file
    return "", None


def _named(label: str, names: Sequence[str], file: Path) -> str:
    if names and label.isdecimal():
        if int(label) >= len(names):
            raise UserError(
                f"{file}: class {label} is not among the {len(names)} lines of classnames.txt"
            )
        return names[int(label)]
    return label
