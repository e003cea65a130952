"""Data sets of Hugging Face's library `datasets`: a Dataset or DatasetDict, a folder written by
save_to_disk, or parquet files from the hub.

Embedded images are written to the cache as files, one after another.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from rmadapter.data.budget import Budget
from rmadapter.data.formats.base import (
    OF_LIBRARIES,
    UNLABELLED,
    Format,
    Inputs,
    Listing,
    ReadOptions,
    Row,
    Rows,
    check_inside,
    in_order,
    parsing,
)
from rmadapter.data.formats.columnar import check_arrow, parquet_batches, pyarrow
from rmadapter.data.formats.tables import (
    LABELLED,
    LABELLED_OPTIONAL,
    Cells,
    Choice,
    chosen_cells,
    labelled_cells,
)
from rmadapter.data.names import split_named
from rmadapter.errors import UserError, quoted
from rmadapter.support.files import (
    JsonObject,
    atomic,
    cache_folder,
    last_part,
    read_json,
    shortened,
)
from rmadapter.support.terminal import silenced

if TYPE_CHECKING:
    from datasets import Dataset

TEXT_TYPES = ("string", "large_string")  # of columns that may hold splits
MAX_FACTS_BYTES = 2**24  # of a JSON file beside the Arrow files


def detects(path: Path) -> bool:
    if os.path.isdir(path):
        return is_saved(path) or bool(hub_parquets(path))
    return os.path.isfile(path) and is_hub_parquet(path)


def read(path: Path, options: ReadOptions) -> Listing:
    """Read a folder or file. Raises UserError if it is unreadable, and as `read_dataset`."""
    parts, folder = _open(path, options.budget)
    outside = options.outside and is_saved(path)  # images of hub files are beside them
    listing = read_dataset(parts, options.columns, folder, outside, options.budget)
    return listing._replace(home=path if path.is_dir() else path.parent)


def image_root(path: Path) -> Path:
    return cache_folder() / "images"


def list_images(path: Path, options: ReadOptions) -> Inputs:
    """List each image, labelled or not, of every split, row by row. Raises UserError as `read`."""
    parts, folder = _open(path, options.budget)
    named = {"image": (options.columns or {}).get("image", "")}
    inputs = Inputs()
    for split, part in parts.items():
        where = str(path) if split == "all" else f"{path} ({split})"
        rows = _cells(part, where, ("image",), (), named)
        for number, (at, cells) in enumerate(rows):
            name = f"{split}-{number}"
            place = folder, options.outside
            inputs.files.append(_image_file(cells["image"], name, at, options.budget, *place))
    return inputs


def is_dataset(value: object) -> bool:
    """Return whether a value is a Dataset or a mapping of Datasets; does not import `datasets`."""
    if isinstance(value, Mapping):
        return bool(value) and all(map(is_dataset, value.values()))
    return all(hasattr(value, name) for name in ("features", "column_names", "cast_column"))


def is_saved(folder: Path) -> bool:
    """Return whether save_to_disk wrote a folder."""
    one = all(os.path.isfile(folder / name) for name in ("dataset_info.json", "state.json"))
    # pathlib raises if a folder may not be read
    return one or os.path.isfile(folder / "dataset_dict.json")


def is_hub_parquet(path: Path) -> bool:
    """Return whether a parquet file holds images from the Hugging Face hub, by its schema."""
    if path.suffix.lower() != ".parquet":
        return False
    try:
        facts = pyarrow("parquet", str(path)).read_schema(path).metadata or {}
    except Exception:  # the reader of tables reports it
        return False
    return b'"Image"' in facts.get(b"huggingface", b"")


def hub_parquets(folder: Path) -> dict[str, list[Path]]:
    """Return split -> hub parquet files (train-00000-of-00002.parquet) in a folder or its subfolder
    `data`."""
    files: dict[str, list[Path]] = {}
    for file in in_order([*folder.glob("*.parquet"), *folder.glob("data/*.parquet")]):
        if is_hub_parquet(file):
            files.setdefault(split_named(file.name), []).append(file)
    return files


def _open(path: Path, budget: Budget) -> tuple[dict[str, Dataset], Path]:
    """Return split -> Dataset of a folder or file, and the folder that paths are relative to.
    Counts the bytes of all columns first, since `datasets` writes them to its cache."""
    if is_saved(path):
        library = _library(str(path))
        with parsing(path, "a readable save_to_disk folder", OF_LIBRARIES):
            for file in arrow_files(path, budget):
                budget.allow_file(file.stat().st_size)
                check_arrow(file, budget)
            saved = library.load_from_disk(str(path))
        return ({**saved} if isinstance(saved, Mapping) else {"all": saved}), path
    files = hub_parquets(path) if path.is_dir() else {"all": [path]}
    first = next(iter(files.values()))[0]
    load = _library(str(first)).Dataset.from_parquet
    cache = str(cache_folder() / "datasets")
    parts = {}
    with parsing(first, "a readable parquet file", OF_LIBRARIES):
        for split, part in files.items():
            for file in part:
                budget.allow_file(file.stat().st_size)
                for batch in parquet_batches(file, None, budget):
                    budget.take("disk", batch.nbytes, file)
            with silenced():  # it logs what the message below says
                parts[split] = load([str(file) for file in part], cache_dir=cache)
    return parts, first.parent


def arrow_files(folder: Path, budget: Budget) -> list[Path]:
    """Return the Arrow files that a save_to_disk folder names. Raises UserError for a file or a
    split outside the folder, for one named twice, and for malformed JSON."""
    listing = folder / "dataset_dict.json"
    if listing.is_file():
        names = _names_in(listing, _json(listing, budget)["splits"])
        return [file for name in names for file in arrow_files(folder / name, budget)]
    state = folder / "state.json"
    rows = _json(state, budget)["_data_files"]
    return [folder / name for name in _names_in(state, [row["filename"] for row in rows])]


def _json(file: Path, budget: Budget) -> Any:
    return read_json(file, MAX_FACTS_BYTES, take=lambda size: budget.take("memory", size, file))


def _names_in(file: Path, names: Sequence[object]) -> list[str]:
    inside = [name for name in names if isinstance(name, str) and name not in ("", ".", "..")]
    plain = [name for name in inside if last_part(name) == name]
    counts = Counter(plain)
    if len(counts) != len(names):
        odd = next((name for name in names if not isinstance(name, str) or counts[name] != 1), "")
        raise UserError(
            f"{file}: names {quoted(odd)}, which is named twice or not a file in its folder; save "
            "the data set again"
        )
    return plain


def read_dataset(
    data: Dataset | Mapping[str, Dataset],
    columns: Mapping[str, str] | None = None,
    folder: Path | None = None,
    outside: bool = True,
    budget: Budget | None = None,
) -> Listing:
    """Read a Dataset, or split -> Dataset.

    Args:
        data: The data set.
        columns: As for `read_images`; by default the only column of type Image, and the only one of
            type ClassLabel or else one with a usual name.
        folder: The folder that paths are relative to.
        outside: Whether paths may leave it.
        budget: By default without limits, for data in memory.

    Raises:
        UserError: Columns are missing, or splits have other names than train, val and test.
    """
    budget = budget or Budget.unlimited()
    splits: dict[str, Rows] = {}
    ignored: Counter[str] = Counter()
    home = str(folder or "data set")
    for name, part in data.items() if isinstance(data, Mapping) else [("all", data)]:
        where = home if name == "all" else f"{home} ({name})"
        rows = _cells(part, where, LABELLED, LABELLED_OPTIONAL, columns)
        for number, (at, cells) in enumerate(rows):
            label, split, group = labelled_cells(cells, at, name)
            if label is None:
                ignored[UNLABELLED] += 1
                continue
            if split == "all" and name != "all":
                raise UserError(f"{where}: has a split {quoted(name)}: call it train, val or test")
            place = folder, outside
            image = _image_file(cells["image"], f"{name}-{number}", at, budget, *place)
            splits.setdefault(split, []).append(Row(label, image, group))
    if not splits:
        raise UserError(f"{home}: no labelled images")
    return Listing(cache_folder() / "images", splits, ignored)


def _cells(
    part: Dataset,
    where: str,
    needed: Sequence[str],
    optional: Sequence[str],
    columns: Mapping[str, str] | None,
) -> Cells:
    """Yield the place of each row and its cells by kind; images are not decoded.

    Args:
        part: The data set.
        where: Its name, for messages.
        needed: As for `chosen_cells`, and so are `optional`, `columns` and what is raised; a column
            may also be chosen by its type.
    """
    library, features = _library(where), part.features
    if features is None:
        raise UserError(
            f"{where}: its columns are unknown, as of a stream: give a Dataset with features"
        )
    images = [name for name, kind in features.items() if isinstance(kind, library.Image)]
    labels = []
    for name, feature in features.items():
        if library.ClassLabel in (type(feature), type(_item_feature(feature))):
            labels.append(name)
    named = dict(columns or {})
    for kind, typed in (("image", images), ("label", labels)):
        named[kind] = named.get(kind) or (typed[0] if len(typed) == 1 else "")
    yield from chosen_cells(where, partial(_rows, part, where), needed, optional, named)


def _rows(part: Dataset, where: str, choose: Choice) -> Cells:
    """Yield the place of each row and its cells by column, labels as names; a reader of
    `chosen_cells`."""
    library, features = _library(where), part.features
    chosen, unread = choose([*features])
    image, label = chosen["image"], chosen.get("label", chosen.get("label_list", ""))
    if not isinstance(features[image], library.Image):
        raise UserError(f"{where}: the column {image!r} holds no images")
    texts = [name for name in unread if getattr(features[name], "dtype", "") in TEXT_TYPES]
    plain = part.select_columns([*dict.fromkeys([*chosen.values(), *texts])])
    plain = plain.cast_column(image, library.Image(decode=False)).with_format(None)
    for number, row in enumerate(plain):
        try:
            names = {label: _names(row[label], features[label])} if label else {}
        except ValueError as error:  # of `int2str`
            raise UserError(f"{where}: row {number}: {error}") from None
        yield f"row {number}", {**row, **names}


def _names(value: object, feature: object) -> object:
    """Return the label, or list of labels, as text where the feature numbers its classes; None for
    an unknown class."""
    if isinstance(value, list):
        return [_names(one, _item_feature(feature)) for one in value]
    if not hasattr(feature, "int2str") or value is None:
        return value
    return None if value == -1 else feature.int2str(value)  # how `datasets` writes an unknown class


def _item_feature(feature: object) -> object:
    """Return the feature of each item of a list; None for anything else."""
    return getattr(feature, "feature", None)


def _image_file(
    cell: JsonObject | None,
    name: str,
    where: str,
    budget: Budget,
    folder: Path | None,
    outside: bool,
) -> Path:
    """Return the file of an image; an embedded one is stored.

    Args:
        cell: Bytes and path of the image, as in a column of type Image.
        name: For an image that has none.
        where: Place of the row, for messages.
        budget: What reading may still take.
        folder: The folder that paths are relative to.
        outside: Whether paths may leave it.
    """
    budget.take("rows", 1, where)
    data, path = (cell or {}).get("bytes"), (cell or {}).get("path")
    if data is not None:
        budget.take("disk", len(data), where)
        return store_image(data, path or name)
    if not path:
        raise UserError(f"{where}: has no image")
    check_inside(path, where, outside)
    return (folder or Path()) / str(path)


def _library(where: str) -> ModuleType:
    try:
        return import_module("datasets")
    except ImportError:
        raise UserError(
            f"{where}: reading this needs the library `datasets`; pip install 'rmadapter[data]'"
        ) from None


def store_image(data: bytes, name: str) -> Path:
    """Store an encoded image in the cache; return its path, made of the content's digest and
    `name`."""
    digest = hashlib.sha256(data).hexdigest()
    plain = shortened(re.sub(r"[^\w.-]", "_", Path(name).name), end=True).lstrip(".") or "image"
    path = cache_folder() / "images" / digest[:2] / f"{digest[:24]}-{plain}"
    if not path.exists():
        with atomic(path, sync=False) as temporary:
            temporary.write_bytes(data)
    return path


FORMAT = Format(
    "data set of Hugging Face",
    detects,
    read,
    list_images,
    image_root,
    suffixes=(".parquet",),
    has_columns=True,
)
