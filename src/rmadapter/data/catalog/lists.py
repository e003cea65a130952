"""The public few-shot lists of 2SFS (Farina et al., CVPR 2025) as tables: the exact images its
authors drew.

github.com/FarinaMatteo/rethinking_fewshot_vlms shares 165 of them: 11 data sets, 3 seeds, and 1, 2,
4, 8 and 16 shots. They are JSON lines of `_impath` and `_classname`, in
`split_fewshot/shot_16-seed_1_train.jsonl` and so on.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

from rmadapter.data.catalog.dataset import Dataset
from rmadapter.data.catalog.sets import home_of, table_of
from rmadapter.data.decode_limits import check_inside
from rmadapter.data.formats.base import CLASSNAMES
from rmadapter.data.names import default_name
from rmadapter.errors import UserError
from rmadapter.support.files import csv_text, read_text, write_json, write_text


def write_list(dataset: Dataset, root: Path, shots: int, seed: int) -> Path:
    """Write a table of path, label and split beside the images, for `fit` and `bench` with --shots
    0; returns its path.

    Train and val come from the lists, test from the data set itself. Names that the table's reader
    would change (707-320) go into classnames.json, unless there is one. Raises UserError if the
    data set, a list or one of its images is missing.
    """
    home = home_of(dataset, root)
    if home is None:
        command = f"rmadapter data {dataset.key} --root {root}"
        raise UserError(f"{dataset.title} is not in {root}: `{command}` says how to get it")
    rows: list[tuple[str, str, str]] = []
    for split in ("train", "val"):
        rows += [(*row, split) for row in _read(dataset, home, shots, seed, split)]
    images = PurePosixPath(dataset.images)
    for name, _, label in table_of(dataset, home)["test"]:
        rows.append((str(images / name), label, "test"))
    out = home / f"shots_{shots}-seed_{seed}.csv"
    write_text(out, csv_text(("path", "label", "split"), rows))
    names = {label: label.replace("_", " ") for _, label, _ in rows}  # as in `image_sets`
    kept = {label: name for label, name in names.items() if default_name(label) != name}
    if kept and not (home / CLASSNAMES).exists():
        write_json(home / CLASSNAMES, kept)
    return out


def _read(dataset: Dataset, home: Path, shots: int, seed: int, split: str) -> list[tuple[str, str]]:
    """(path relative to the data set's folder, class name) of each entry of a list."""
    file = home / "split_fewshot" / f"shot_{shots}-seed_{seed}_{split}.jsonl"
    if not file.is_file():
        raise UserError(
            f"{file}: not found; 2SFS's scripts/download_splits.sh puts it there (see docs/data.md)"
        )
    rows = []
    for number, line in enumerate(read_text(file).splitlines(), 1):
        try:
            item = json.loads(line)
            path, label = str(item["_impath"]), str(item["_classname"])
        except (ValueError, TypeError, KeyError):
            raise UserError(
                f"{file}, line {number}: not an entry of a few-shot list (_impath, _classname)"
            ) from None
        rows.append((_below(dataset, home, path, f"{file}, line {number}"), label))
    return rows


def _below(dataset: Dataset, home: Path, path: str, where: str) -> str:
    """The path relative to our folder; theirs may be of another machine, up to the data set's
    folder."""
    parts = PurePosixPath(path).parts
    last = max((i for i, part in enumerate(parts) if part == dataset.folder), default=-1)
    name = str(PurePosixPath(*parts[last + 1 :]))
    check_inside(name, where, False)
    if not (home / name).is_file():
        raise UserError(f"{where}: {home / name} is missing")
    return name
