"""The public data sets of the paper as a table, and any data set by name or path.

The table is catalog.yaml. Layouts, class names, prompt templates and counts follow the CoOp
protocol (Zhou et al., IJCV 2022), whose folders and split files are read unchanged.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from rmadapter.data.catalog.dataset import Dataset
from rmadapter.data.catalog.fetch import ARCHIVES, DIGESTS, fetch, remember, unpack
from rmadapter.data.catalog.readers import READERS, Table, image_sets, split_json, subfolders
from rmadapter.data.decode_limits import check_inside
from rmadapter.data.formats.base import SPLITS
from rmadapter.data.formats.registry import refuse_crops
from rmadapter.data.names import prompt_name
from rmadapter.data.read import ImageSet, read_images
from rmadapter.errors import UserError, did_you_mean
from rmadapter.support.files import user_path, write_json
from rmadapter.support.locks import exclusive
from rmadapter.support.terminal import bar

ELSEWHERE = "Mirrors, not checked by us (parquet and webdataset may lack the file names that published shots need):"


def _load() -> dict[str, Dataset]:
    text = Path(__file__).with_name("catalog.yaml").read_text(encoding="utf-8")
    return {key: Dataset(key=key, **row) for key, row in yaml.safe_load(text).items()}


CATALOG: Mapping[str, Dataset] = _load()
ELEVEN = tuple(CATALOG)[:11]  # of base-to-novel, ImageNet first


def find(name: str) -> Dataset | None:
    """The data set with this key or CoOp folder name."""
    return next(
        (dataset for dataset in CATALOG.values() if name in (dataset.key, dataset.folder)), None
    )


def get(name: str) -> Dataset:
    """Like `find`, but raises UserError, suggesting the nearest name, if there is none."""
    if (dataset := find(name)) is None:
        raise UserError(f"the catalogue has no data set {name!r}{did_you_mean(name, CATALOG)}")
    return dataset


# Reading


def table_of(dataset: Dataset, home: Path, outside: bool = False) -> Table:
    """The table of CoOp's split file if present, otherwise of the archive's own files.

    Raises UserError for a path that leaves the folder, unless `outside` is set.
    """
    if dataset.split and (home / dataset.split).is_file():
        table, source = split_json(home / dataset.split), home / dataset.split
    else:
        table, source = READERS[dataset.reader](home, dataset), home
    for rows in table.values():
        for name, _, _ in rows:
            check_inside(name, str(source), outside)
    return table


def load_dataset(
    name_or_path: str | Path,
    root: Path | None = None,
    *,
    outside: bool = False,
    crops: bool = False,
) -> dict[str, ImageSet]:
    """Load a catalogue data set below `root`, by key or CoOp folder name; else a folder or table
    relative to `root`.

    Returns split -> ImageSet with classes in label order and images in the order of the files that
    list them. A catalogue data set may also be stored as plain folders ([split/]class/image); its
    classes then get the catalogue's names. crops: as in `read_images`. Raises UserError if nothing
    is there, images are missing or have several labels each, files contradict each other, or lists name
    images outside the data set and `outside` is not set.
    """
    base = user_path(root) if root else Path()
    given = user_path(name_or_path)
    path = user_path(base / given)
    dataset = find(path.name)
    home: Path | None = path if path.exists() else None
    if dataset and (home is None or len(given.parts) == 1):
        home = home_of(dataset, path.parent)
    if home is None:
        if dataset:
            hint = f"`rmadapter data {dataset.key} --root {base}` says how to get it"
            raise UserError(f"{dataset.title} is not in {path.parent}: {hint}")
        beside = [entry.name for entry in base.iterdir() if entry.is_dir()] if base.is_dir() else []
        raise UserError(
            f"{path}: no such data set{did_you_mean(str(name_or_path), {*CATALOG, *beside})}"
        )
    if dataset and dataset.laid_out(home):
        if crops:
            refuse_crops(home)
        table = table_of(dataset, home, outside)
        if missing := _missing(home / dataset.images, table):
            raise UserError(
                f"{home}: {missing}; `rmadapter data {dataset.key} --root {home.parent}` says what to do"
            )
        return image_sets(table, home / dataset.images, home)
    if inside := domains(home):
        raise UserError(
            f"{home}: has the domains {', '.join(inside)}; choose one, such as {home.name}/{inside[0]}"
        )
    sets = read_images(home, outside=outside, crops=crops)
    return _renamed(sets, dataset, home) if dataset else sets


def home_of(dataset: Dataset, root: Path) -> Path | None:
    """The data set's folder below `root`, under either name; prefers an original archive to plain
    folders."""
    homes = [root / dataset.folder, root / dataset.key]
    found = [home for home in homes if home.is_dir() and any(home.iterdir())]
    return next((home for home in found if dataset.laid_out(home)), found[0] if found else None)


def _renamed(sets: Mapping[str, ImageSet], dataset: Dataset, home: Path) -> dict[str, ImageSet]:
    """Sets of plain folders with the catalogue's class names and order: capitals first where CoOp
    sorts folders."""
    names = next(iter(sets.values())).classes
    if any(re.fullmatch(r"n\d{8}", name) for name in names):
        raise UserError(
            f"{home}: classes are WordNet ids; `rmadapter data {dataset.key}` says where to get names"
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
        rows = sorted(
            (number[label], i) for i, label in enumerate(images.labels) if label in number
        )
        part = images.subset(i for _, i in rows)
        renamed[split] = replace(
            part, labels=tuple(label for label, _ in rows), classes=classes, written=written
        )
    return renamed


def domains(path: Path) -> list[str]:
    """The domains in `path`, sorted: two or more folders with splits and the same class folders;
    else []."""
    found: dict[str, set[str]] = {}
    for name in subfolders(path):
        if name.casefold() in SPLITS:
            return []
        if splits := [split for split in subfolders(path / name) if split.casefold() in SPLITS]:
            found[name] = {folder for split in splits for folder in subfolders(path / name / split)}
    same = all(classes == next(iter(found.values())) for classes in found.values())
    return list(found) if same and len(found) > 1 else []


# Getting and checking


@dataclass(frozen=True)
class Check:
    """Status of a data set: complete, partial (with what is missing) or absent. how: how to get the
    rest."""

    name: str
    status: str
    home: str
    missing: tuple[str, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    how: str = ""


def check(dataset: Dataset, root: Path) -> Check:
    """Check a data set below `root`. Complete: its split file if CoOp has one, all listed images,
    and CoOp's counts."""
    home = home_of(dataset, root)
    command = f"rmadapter data {dataset.key} --root {root}"
    how = f"{command} --download" if dataset.archives else f"{command} lists the steps"
    if home is None:
        return Check(dataset.key, "absent", str(root / dataset.folder), how=how)
    missing: list[str] = []
    counts: dict[str, int] = {}
    no_split = bool(dataset.split) and not (home / dataset.split).is_file()
    if no_split:
        missing.append(f"{dataset.split}, so the splits are not those of published results")
    try:
        if dataset.laid_out(home):
            table = table_of(dataset, home)
            missing += [text] if (text := _missing(home / dataset.images, table)) else []
            sets = image_sets(table, home / dataset.images, home)
        else:
            missing.append("the original archive (plain folders are here, and can be read too)")
            sets = load_dataset(home)
        counts = {split: len(images) for split, images in sets.items()}
        classes = len(next(iter(sets.values())).classes)
        wanted = {"classes": dataset.classes, **dataset.counts}
        for what, count in {
            "classes": classes,
            **{split: counts.get(split, 0) for split in dataset.counts},
        }.items():
            if count != wanted[what]:
                missing.append(
                    f"{what}: {count} of {wanted[what]}" + " images" * (what != "classes")
                )
    except UserError as error:
        missing.append(str(error))
    if not missing:
        return Check(dataset.key, "complete", str(home), counts=counts)
    how = f"put {dataset.split_url} into {home}" if no_split and len(missing) == 1 else how
    return Check(dataset.key, "partial", str(home), tuple(missing), counts, how)


def _missing(images: Path, table: Table) -> str:
    """A sentence on the table's missing images, or "". Lists each folder only once, for speed."""
    there: dict[str, set[str]] = {}
    absent = []
    paths = [row[0] for rows in table.values() for row in rows]
    for path in paths:
        folder, name = os.path.split(images / path)
        if folder not in there:
            there[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if name not in there[folder]:
            absent.append(path)
    return (
        f"{len(absent)} of {len(paths)} images are missing, such as {', '.join(absent[:3])}"
        if absent
        else ""
    )


def describe(dataset: Dataset, root: Path) -> str:
    """Licence, size, citation and the steps to get a data set, as text to read."""
    home = root / dataset.folder
    steps = [step.replace("{home}", str(home)) for step in dataset.steps]
    if dataset.split:
        steps.append(
            f"Put {dataset.split} ({dataset.split_url}) into {home}: the splits of published results."
        )
    fetched = f"Run `rmadapter data {dataset.key} --root {root} --download`, or do it by hand:"
    facts: dict[str, Any] = {
        "images": ", ".join(f"{count:,} {split}" for split, count in dataset.counts.items()),
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
    return "\n".join([*lines, *(["", ELSEWHERE, *mirrors] if mirrors else [])])


def download(dataset: Dataset, root: Path) -> None:
    """Fetch the archives and lay them out as CoOp does; an interrupted download is resumed.

    Raises UserError if there is nothing to fetch, another process works in the folder, the download
    fails, or an archive has a wrong digest or differs from the first download, whose SHA-256 is
    kept in the data set's folder.
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
    stage, unpacked = home / ".download", home / ".download" / "unpacked"
    for url, digest in dataset.archives.items():
        archive = stage / url.rpartition("/")[2]
        with bar() as display:
            task = display.add_task(archive.name, total=None, note="bytes")
            fetch(
                url,
                archive,
                digest,
                dataset.most,
                lambda size, task=task: display.update(task, completed=size),  # type: ignore[misc]
            )
        remember(archive, home / DIGESTS)
    shutil.rmtree(unpacked, ignore_errors=True)
    for url in dataset.archives:
        archive = stage / url.rpartition("/")[2]
        if archive.name.endswith(ARCHIVES):
            unpack(archive, unpacked, dataset.most)
        else:
            shutil.copy(archive, unpacked)
    shutil.copytree(
        unpacked / dataset.unpacked, home, copy_function=shutil.move, dirs_exist_ok=True
    )
    if dataset.reader == "flowers_matlab" and not (home / dataset.order).exists():
        from torchvision.datasets import Flowers102  # it has the names that the archive lacks

        write_json(
            home / dataset.order, {str(i): name for i, name in enumerate(Flowers102.classes, 1)}
        )
    shutil.rmtree(stage)
