"""Public data sets, of the paper and of special domains: find, read, check and download them; any
data set by name or path.

The tables are catalog.yaml and domains.yaml. In the first, layouts, class names, prompt templates
and counts follow the CoOp protocol (Zhou et al., IJCV 2022), whose folders and split files are read
unchanged.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import yaml

from rmadapter.data.archives import ARCHIVE_SUFFIXES, DIGESTS_FILE, fetch, remember, unpack
from rmadapter.data.budget import Budget
from rmadapter.data.catalog.readers import (
    READERS,
    CoopSplits,
    Dataset,
    image_sets,
    split_json,
    subfolders,
)
from rmadapter.data.formats.base import check_inside
from rmadapter.data.formats.registry import refuse_crops
from rmadapter.data.names import SPLITS, prompt_name
from rmadapter.data.read import ImageSet, read_images
from rmadapter.errors import UserError, did_you_mean
from rmadapter.support.files import user_path, write_json
from rmadapter.support.locks import exclusive
from rmadapter.support.terminal import bar

MIRRORS_HEADING = (
    "Mirrors, not checked by us (parquet and webdataset may lack the file names that published "
    "shots need):"
)


def _load() -> dict[str, Dataset]:
    found: dict[str, Dataset] = {}
    for name in ("catalog.yaml", "domains.yaml"):
        rows = yaml.safe_load(Path(__file__).with_name(name).read_text(encoding="utf-8"))
        found |= {key: Dataset(key=key, **row) for key, row in rows.items()}
    return found


CATALOG: Mapping[str, Dataset] = _load()
ELEVEN = tuple(CATALOG)[:11]  # of base-to-novel, ImageNet first


def find(name: str) -> Dataset | None:
    """Return the data set with this key or CoOp folder name."""
    matches = (dataset for dataset in CATALOG.values() if name in (dataset.key, dataset.folder))
    return next(matches, None)


def get(name: str) -> Dataset:
    """Return a data set like `find`.

    Raises:
        UserError: There is none; the message suggests the nearest name.
    """
    dataset = find(name)
    if dataset is None:
        raise UserError(f"the catalogue has no data set {name!r}{did_you_mean(name, CATALOG)}")
    return dataset


# Reading


def table_of(dataset: Dataset, home: Path, outside: bool = False) -> CoopSplits:
    """Return the table of CoOp's split file if present, otherwise of the archive's own files.

    Raises:
        UserError: A path leaves the folder, unless `outside` is set.
    """
    split = home / dataset.split
    published = bool(dataset.split) and split.is_file()
    table = split_json(split) if published else READERS[dataset.reader](home, dataset)
    for rows in table.values():
        for name, _, _ in rows:
            check_inside(name, str(split if published else home), outside)
    return table


def load_dataset(
    name_or_path: str | Path,
    root: Path | None = None,
    *,
    outside: bool = False,
    crops: bool = False,
) -> dict[str, ImageSet]:
    """Load a catalogue data set, by key or CoOp folder name; or else any folder or table.

    Args:
        name_or_path: Name of a catalogue data set, which may also be stored as plain folders
            ([split/]class/image), whose classes then get the catalogue's names; or a path.
        root: The folder of data sets, which paths are relative to.
        outside: Whether lists may name images outside the data set.
        crops: As for `read_images`.

    Returns:
        Split -> ImageSet with classes in label order and images in the order of the files that list
        them.

    Raises:
        UserError: Nothing is there, images are missing or have several labels each, files
            contradict each other, or lists name images outside the data set.
    """
    base = user_path(root) if root else Path()
    name = user_path(name_or_path)
    path = user_path(base / name)
    dataset = find(path.name)
    home: Path | None = path if path.exists() else None
    if dataset and (home is None or len(name.parts) == 1):
        home = home_of(dataset, path.parent)
    if home is None:
        if dataset:
            raise UserError(
                f"{dataset.title} is not in {path.parent}: `rmadapter data {dataset.key} --root "
                f"{base}` says how to get it"
            )
        beside = [entry.name for entry in base.iterdir() if entry.is_dir()] if base.is_dir() else []
        raise UserError(
            f"{path}: no such data set{did_you_mean(str(name_or_path), {*CATALOG, *beside})}"
        )
    if dataset and dataset.laid_out(home):
        if crops:
            refuse_crops(home)
        table = table_of(dataset, home, outside)
        missing = _missing(home / dataset.images, table)
        if missing:
            raise UserError(
                f"{home}: {missing}; `rmadapter data {dataset.key} --root {home.parent}` says what "
                "to do"
            )
        return image_sets(table, home / dataset.images, home)
    names = domains(home)
    if names:
        raise UserError(
            f"{home}: has the domains {', '.join(names)}; choose one, such as "
            f"{home.name}/{names[0]}"
        )
    sets = read_images(home, outside=outside, crops=crops)
    return _renamed(sets, dataset, home) if dataset else sets


def home_of(dataset: Dataset, root: Path) -> Path | None:
    """Return the data set's folder below `root`, under either name; an original archive precedes
    plain folders."""
    homes = [root / dataset.folder, root / dataset.key]
    homes = [home for home in homes if home.is_dir() and any(home.iterdir())]
    originals = [home for home in homes if dataset.laid_out(home)]
    return next(iter(originals + homes), None)


def _renamed(sets: Mapping[str, ImageSet], dataset: Dataset, home: Path) -> dict[str, ImageSet]:
    """Return sets of plain folders with the catalogue's class names and order: capitals first where
    CoOp sorts folders."""
    names = next(iter(sets.values())).classes
    if any(re.fullmatch(r"n\d{8}", name) for name in names):
        raise UserError(
            f"{home}: classes are WordNet ids; `rmadapter data {dataset.key}` says where to get "
            "names"
        )
    ignored = {prompt_name(name) for name in dataset.ignored}
    kept = [i for i, name in enumerate(names) if name not in ignored]
    if dataset.reader == "class_folders":
        kept.sort(key=lambda i: names[i].replace(" ", "_"))
    renames = {prompt_name(folder): name for folder, name in dataset.renames.items()}
    classes = tuple(renames.get(names[i], names[i]) for i in kept)
    written = tuple(next(iter(sets.values())).written[i] for i in kept)
    number = {old: new for new, old in enumerate(kept)}
    renamed = {}
    for split, images in sets.items():
        pairs = enumerate(images.labels)
        rows = sorted((number[label], row) for row, label in pairs if label in number)
        part = images.subset(row for _, row in rows)
        labels = tuple(label for label, _ in rows)
        renamed[split] = replace(part, labels=labels, classes=classes, written=written)
    return renamed


def domains(path: Path) -> list[str]:
    """Return the domains in `path`, sorted: two or more folders with splits and the same class
    folders; else []."""
    classes: dict[str, set[str]] = {}
    for name in subfolders(path):
        if name.casefold() in SPLITS:
            return []
        splits = [split for split in subfolders(path / name) if split.casefold() in SPLITS]
        folders = [subfolders(path / name / split) for split in splits]
        if splits:
            classes[name] = set().union(*folders)
    same = all(names == next(iter(classes.values())) for names in classes.values())
    return list(classes) if same and len(classes) > 1 else []


# Getting and checking


@dataclass(frozen=True)
class Check:
    """The status of a data set.

    Args:
        name: Its key.
        status: "complete", "partial" or "absent".
        home: Its folder.
        missing: What a partial one lacks, in sentences.
        counts: Images by split.
        how: How to get the rest.
    """

    name: str
    status: str
    home: str
    missing: tuple[str, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    how: str = ""


def check(dataset: Dataset, root: Path) -> Check:
    """Check a data set below `root`. Complete: its split file if there is one, all listed images,
    and the published counts."""
    home = home_of(dataset, root)
    command = f"rmadapter data {dataset.key} --root {root}"
    how = f"{command} --download" if dataset.archives else f"{command} lists the steps"
    if home is None:
        return Check(dataset.key, "absent", str(root / dataset.folder), how=how)
    counts: dict[str, int] = {}
    missing: list[str] = []
    no_split = bool(dataset.split) and not (home / dataset.split).is_file()
    if no_split:
        missing.append(f"{dataset.split}, so the splits are not those of published results")
    try:
        if dataset.laid_out(home):
            table = table_of(dataset, home)
            missing += filter(None, [_missing(home / dataset.images, table)])
            sets = image_sets(table, home / dataset.images, home)
        else:
            missing.append("the original archive (plain folders are here, and can be read too)")
            sets = load_dataset(home)
        counts = {split: len(images) for split, images in sets.items()}
        missing += _unlike_published(dataset, counts, len(next(iter(sets.values())).classes))
    except UserError as error:
        missing.append(str(error))
    if not missing:
        return Check(dataset.key, "complete", str(home), counts=counts)
    if no_split and len(missing) == 1 and dataset.split_url:
        how = f"put {dataset.split_url} into {home}"
    return Check(dataset.key, "partial", str(home), tuple(missing), counts, how)


def _unlike_published(dataset: Dataset, counts: Mapping[str, int], classes: int) -> Iterator[str]:
    """Yield which numbers of images and classes differ from the published ones."""
    total = sum(counts.values())
    if dataset.total and total != dataset.total:
        yield f"{total} of {dataset.total} images"
    if classes != dataset.classes:
        yield f"classes: {classes} of {dataset.classes}"
    for split, wanted in dataset.counts.items():
        if counts.get(split, 0) != wanted:
            yield f"{split}: {counts.get(split, 0)} of {wanted} images"


def _missing(images: Path, table: CoopSplits) -> str:
    """Return a sentence on the table's missing images, or "". Lists each folder only once, for
    speed."""
    present: dict[str, set[str]] = {}
    absent = []
    paths = [row[0] for rows in table.values() for row in rows]
    for path in paths:
        folder, name = os.path.split(images / path)
        if folder not in present:
            present[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if name not in present[folder]:
            absent.append(path)
    if not absent:
        return ""
    return f"{len(absent)} of {len(paths)} images are missing, such as {', '.join(absent[:3])}"


def describe(dataset: Dataset, root: Path) -> str:
    """Describe licence, size, citation and the steps to get a data set, as text."""
    home = root / dataset.folder
    steps = [step.replace("{home}", str(home)) for step in dataset.steps]
    if dataset.split_url:
        split = f"{dataset.split} ({dataset.split_url})"
        steps.append(f"Put {split} into {home}: the splits of published results.")
    fetched = f"Run `rmadapter data {dataset.key} --root {root} --download`, or do it by hand:"
    facts: dict[str, object] = {
        "images": dataset.images_text,
        "classes": dataset.classes,
        "prompt": dataset.templates[0],
        "licence": dataset.licence,
        "size": dataset.size,
        "cite": dataset.citation,
        "page": dataset.url,
    }
    lines = [dataset.title, *(f"  {name + ':':9}{value}" for name, value in facts.items())]
    lines += ["", fetched if dataset.archives else "How to get it:"]
    lines += [f"  {number}. {step}" for number, step in enumerate(steps, 1)]
    mirrors = [f"  {address}: {text}" for address, text in dataset.mirrors.items()]
    return "\n".join([*lines, *(["", MIRRORS_HEADING, *mirrors] if mirrors else [])])


def download(dataset: Dataset, root: Path) -> None:
    """Fetch the archives and lay them out as CoOp does; an interrupted download is resumed.

    Raises:
        UserError: There is nothing to fetch, another process works in the folder, the download
            fails, or an archive has a wrong digest or differs from the first download, whose
            SHA-256 is kept in the data set's folder.
    """
    if not dataset.archives:
        raise UserError(f"{dataset.title} has to be fetched by hand: follow the steps")
    home = root / dataset.folder
    print(
        f"Licence of {dataset.title}: {dataset.licence}. By downloading you accept it.",
        file=sys.stderr,
    )
    try:
        with exclusive(home):
            _download(dataset, home)
    except (UserError, OSError) as error:
        raise UserError(
            f"{dataset.title}: not downloaded ({error}); try again, or follow the steps by hand"
        ) from None


def _download(dataset: Dataset, home: Path) -> None:
    stage = home / ".download"
    unpacked = stage / "unpacked"
    archives = {url: stage / url.rpartition("/")[2] for url in dataset.archives}
    for url, archive in archives.items():
        _fetch(dataset, url, archive)
        remember(archive, home / DIGESTS_FILE)
    shutil.rmtree(unpacked, ignore_errors=True)
    for archive in archives.values():
        if archive.name.endswith(ARCHIVE_SUFFIXES):
            unpack(archive, unpacked, Budget.of_disk(dataset.most))
        else:
            shutil.copy(archive, unpacked)
    source = unpacked / dataset.unpacked
    shutil.copytree(source, home, copy_function=shutil.move, dirs_exist_ok=True)
    if dataset.order.endswith(".json") and not (home / dataset.order).exists():
        from torchvision.datasets import Flowers102  # it has the names that the archive lacks

        names = {str(number): name for number, name in enumerate(Flowers102.classes, 1)}
        write_json(home / dataset.order, names)
    shutil.rmtree(stage)


def _fetch(dataset: Dataset, url: str, archive: Path) -> None:
    with bar() as display:
        task = display.add_task(archive.name, total=None, note="bytes")
        show = partial(display.update, task)
        digest = dataset.archives[url]
        fetch(url, archive, digest, dataset.most, lambda size: show(completed=size))
