"""Data sets of Hugging Face's library `datasets`: a Dataset or DatasetDict, or a folder written by
save_to_disk.

Embedded images are written to the cache as files, one after another.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rmadapter.data.decode_limits import check_inside
from rmadapter.data.formats.annotations import UNLABELLED
from rmadapter.data.formats.archives import stored
from rmadapter.data.formats.columns import as_text, choose_columns, pyarrow
from rmadapter.data.formats.scan import (
    SPLITS,
    Row,
    Rows,
    Source,
    in_order,
    only_label,
    row_labels,
    split_named,
)
from rmadapter.errors import UserError, quoted
from rmadapter.support.files import cache_folder


def is_saved(folder: Path) -> bool:
    one = all(os.path.isfile(folder / name) for name in ("dataset_info.json", "state.json"))
    return one or os.path.isfile(
        folder / "dataset_dict.json"
    )  # pathlib raises if a folder may not be read


def is_library(path: Path) -> bool:
    """Whether `datasets` reads this file or folder."""
    if os.path.isdir(path):
        return is_saved(path) or bool(hub_parquets(path))
    return os.path.isfile(path) and is_hub_parquet(path)


def is_dataset(value: Any) -> bool:
    """Whether it is a Dataset or a mapping of Datasets; does not import `datasets`."""
    if isinstance(value, Mapping):
        return bool(value) and all(map(is_dataset, value.values()))
    return (
        hasattr(value, "features")
        and hasattr(value, "column_names")
        and hasattr(value, "cast_column")
    )


def read_saved(
    folder: Path, outside: bool = False, columns: Mapping[str, str] | None = None
) -> Source:
    """Read a folder written by save_to_disk. Raises UserError if it is unreadable or its images are
    files outside it (unless `outside` is set), and as `read_dataset`."""
    return read_dataset(_saved(folder), columns, folder, outside)


def all_images(path: Path, column: str = "", outside: bool = False) -> list[Path]:
    """Each image, labelled or not, of every split of a file or folder that `datasets` reads, row by
    row.

    column: the image column; "" if there is only one. Raises UserError as `read_saved`.
    """
    if is_saved(path):
        parts, folder = _saved(path), path
    else:
        files = hub_parquets(path) if path.is_dir() else {"all": [path]}
        parts, folder = _parquets(files), next(iter(files.values()))[0].parent
    found: list[Path] = []
    for split, part in parts.items():
        where = str(path) if split == "all" else f"{path} ({split})"
        cells, _ = _cells(part, where, ("image",), (), {"image": column})
        found += [
            _file(cell["image"], f"{split}-{n}", f"{where}, row {n}", folder, outside)
            for n, cell in cells
        ]
    return found


def read_dataset(
    found: Any,
    columns: Mapping[str, str] | None = None,
    folder: Path | None = None,
    outside: bool = True,
) -> Source:
    """Read a Dataset, or split -> Dataset. Raises UserError for missing columns and splits but
    train, val and test.

    columns: as in `read_images`; by default the only column of type Image, and the only one of type
    ClassLabel or else one with a usual name.
    """
    splits: dict[str, Rows] = {}
    ignored: Counter[str] = Counter()
    home = str(folder or "data set")
    for split, part in found.items() if isinstance(found, Mapping) else [("all", found)]:
        where = home if split == "all" else f"{home} ({split})"
        for own, row in _rows(part, split, where, columns, folder, outside, ignored):
            name = (own or split).casefold()
            if name not in SPLITS and name != "all":
                raise UserError(f"{where}: has a split {quoted(name)}: call it train, val or test")
            splits.setdefault(SPLITS.get(name, name), []).append(row)
    if not splits:
        raise UserError(f"{home}: no labelled images")
    return Source(cache_folder() / "images", splits, ignored)


def is_hub_parquet(path: Path) -> bool:
    """Whether it is a parquet file with images from the Hugging Face hub, according to its schema."""
    if path.suffix.lower() != ".parquet":
        return False
    try:
        features = (pyarrow("parquet", str(path)).read_schema(path).metadata or {}).get(
            b"huggingface", b""
        )
    except Exception:  # the reader of tables reports it
        return False
    return b'"Image"' in features


def hub_parquets(folder: Path) -> dict[str, list[Path]]:
    """Split -> hub parquet files (train-00000-of-00002.parquet) in a folder or its subfolder
    `data`."""
    found: dict[str, list[Path]] = {}
    for file in in_order([*folder.glob("*.parquet"), *folder.glob("data/*.parquet")]):
        if is_hub_parquet(file):
            found.setdefault(split_named(file.name), []).append(file)
    return found


def read_parquets(
    found: Mapping[str, list[Path]], columns: Mapping[str, str] | None = None
) -> Source:
    """Read hub parquet files. Raises UserError for unreadable files, images elsewhere, and as
    `read_dataset`."""
    return read_dataset(
        _parquets(found), columns, next(iter(found.values()))[0].parent, outside=False
    )


def _saved(folder: Path) -> dict[str, Any]:
    """Split -> Dataset."""
    library = _library(str(folder))
    try:
        found = library.load_from_disk(str(folder))
    except Exception as error:  # on broken files it raises nearly anything
        raise UserError(
            f"{folder}: not a readable save_to_disk folder ({type(error).__name__})"
        ) from None
    return {**found} if isinstance(found, Mapping) else {"all": found}


def _parquets(found: Mapping[str, list[Path]]) -> dict[str, Any]:
    """Split -> Dataset."""
    first = next(iter(found.values()))[0]
    load, cache = _library(str(first)).Dataset.from_parquet, str(cache_folder() / "datasets")
    try:
        return {
            split: load([str(file) for file in files], cache_dir=cache)
            for split, files in found.items()
        }
    except Exception as error:  # on broken files it raises nearly anything
        raise UserError(f"{first}: not a readable parquet file ({type(error).__name__})") from None


def _rows(
    part: Any, split: str, where: str, columns: Mapping[str, str] | None, folder: Path | None, outside: bool,
    ignored: Counter[str],
) -> Any:  # fmt: skip
    """(split, row) of each labelled image of a part of this name; split is "" unless a column gives
    it."""
    cells, feature = _cells(
        part, where, ("image", "label"), ("label_list", "split", "group"), columns
    )
    for number, cell in cells:
        what = "label" if "label" in cell else "label_list"
        names = row_labels({what: as_text(_names(cell[what], feature))})
        label = only_label(names, f"{where}, row {number}")
        if label is None:
            ignored[UNLABELLED] += 1
            continue
        path = _file(cell["image"], f"{split}-{number}", f"{where}, row {number}", folder, outside)
        group = "" if cell.get("group") is None else str(cell["group"])
        yield (
            str(cell["split"]) if "split" in cell else "",
            Row(label, path, group),
        )


def _names(value: Any, feature: Any) -> Any:
    """The label, or list of labels, as text where the feature numbers its classes; None for an
    unknown class."""
    if isinstance(value, list):
        return [_names(one, _inner(feature)) for one in value]
    if not hasattr(feature, "int2str") or value is None:
        return value
    return None if value == -1 else feature.int2str(value)  # how `datasets` writes an unknown class


def _inner(feature: Any) -> Any:
    """The feature of each item of a list; None for anything else."""
    return getattr(feature, "feature", None)


def _cells(
    part: Any,
    where: str,
    needed: tuple[str, ...],
    also: tuple[str, ...],
    columns: Mapping[str, str] | None,
) -> tuple[Iterator[tuple[int, dict[str, Any]]], Any]:
    """(number, cells) of each row, images not decoded; and the feature of the label column, if
    there is one."""
    library, features = _library(where), part.features
    if features is None:
        raise UserError(
            f"{where}: its columns are unknown, as of a stream: give a Dataset with features"
        )
    named = dict(columns or {})
    images = [name for name, feature in features.items() if isinstance(feature, library.Image)]
    kinds = {name: (type(feature), type(_inner(feature))) for name, feature in features.items()}
    labels = [name for name, kind in kinds.items() if library.ClassLabel in kind]
    for what, kept in (("image", images), ("label", labels)):
        named[what] = named.get(what) or (kept[0] if len(kept) == 1 else "")
    chosen = choose_columns(where, list(features), needed, also, named)
    image = chosen["image"]
    if not isinstance(features[image], library.Image):
        raise UserError(f"{where}: the column {image!r} holds no images")
    plain = part.select_columns([*dict.fromkeys(chosen.values())]).cast_column(
        image, library.Image(decode=False)
    )
    rows = (
        {what: row[column] for what, column in chosen.items()} for row in plain.with_format(None)
    )
    return enumerate(rows), features.get(chosen.get("label", chosen.get("label_list")))


def _file(cell: Any, name: str, where: str, folder: Path | None, outside: bool) -> Path:
    """The image's file. name: of an image that has none."""
    data, path = (cell or {}).get("bytes"), (cell or {}).get("path")
    if data is not None:
        return stored(data, path or name)
    if not path:
        raise UserError(f"{where}: has no image")
    check_inside(path, where, outside)
    return (folder or Path()) / path


def _library(where: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"{where}: reading this needs the library `datasets`; pip install 'rmadapter[data]'"
        ) from None
    return datasets
