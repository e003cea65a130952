"""Write one of 2SFS's few-shot lists as a table that `fit` and `bench` read.

    python research/scripts/listed_shots.py caltech101 --root data --shots 16 --seed 1

The authors of 2SFS (Farina et al., CVPR 2025) share the images that they drew, in 165 lists: 11
data sets, 3 seeds, and 1, 2, 4, 8 and 16 shots. They are JSON lines of `_impath` and `_classname`,
in `split_fewshot/shot_16-seed_1_train.jsonl` and so on of each data set's folder
(github.com/FarinaMatteo/rethinking_fewshot_vlms).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path, PurePosixPath

from rmadapter.data.catalog.readers import Dataset
from rmadapter.data.catalog.sets import get, home_of, table_of
from rmadapter.data.formats.base import check_inside
from rmadapter.data.formats.tables import read_rows
from rmadapter.data.names import CLASSNAMES, default_name
from rmadapter.errors import UserError
from rmadapter.support.files import csv_text, write_json, write_text


def write_list(dataset: Dataset, root: Path, shots: int, seed: int) -> Path:
    """Write a table of path, label and split beside the images, from a published list, for `fit`
    and `bench` with --shots 0; return its path.

    Train and val come from the lists, test from the data set itself. Names that the table's reader
    would change (707-320) go into classnames.json, unless that file exists.

    Raises:
        UserError: The data set, a list or one of its images is missing.
    """
    home = home_of(dataset, root)
    if home is None:
        command = f"rmadapter data {dataset.key} --root {root}"
        raise UserError(f"{dataset.title} is not in {root}: `{command}` says how to get it")
    rows: list[tuple[str, str, str]] = []
    for split in ("train", "val"):
        rows += [(*row, split) for row in read_list(dataset, home, shots, seed, split)]
    images = PurePosixPath(dataset.images)
    for name, _, label in table_of(dataset, home)["test"]:
        rows.append((str(images / name), label, "test"))
    out = home / f"shots_{shots}-seed_{seed}.csv"
    write_text(out, csv_text(("path", "label", "split"), rows))
    names = {label: label.replace("_", " ") for _, label, _ in rows}  # as in `image_sets`
    custom = {label: name for label, name in names.items() if default_name(label) != name}
    if custom and not (home / CLASSNAMES).exists():
        write_json(home / CLASSNAMES, custom)
    return out


def read_list(
    dataset: Dataset, home: Path, shots: int, seed: int, split: str
) -> list[tuple[str, str]]:
    """Return (path relative to the data set's folder, class name) of each entry of a list."""
    file = home / "split_fewshot" / f"shot_{shots}-seed_{seed}_{split}.jsonl"
    if not file.is_file():
        advice = "2SFS's scripts/download_splits.sh puts it there (see docs/reference/data_sets.md)"
        raise UserError(f"{file}: not found; {advice}")
    entries = read_rows(file, ("image", "label"), named={"image": "_impath", "label": "_classname"})
    return [
        (listed_path(dataset, home, cells["image"], where), cells["label"])
        for where, cells in entries
    ]


def listed_path(dataset: Dataset, home: Path, path: str, where: str) -> str:
    """Return the path relative to `home`; the listed one may be of another machine, up to the data
    set's folder."""
    parts = PurePosixPath(path).parts
    last = max((i for i, part in enumerate(parts) if part == dataset.folder), default=-1)
    name = str(PurePosixPath(*parts[last + 1 :]))
    check_inside(name, where, False)
    if not (home / name).is_file():
        raise UserError(f"{where}: {home / name} is missing")
    return name


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="data set, as `rmadapter data` names it")
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of data sets")
    parser.add_argument("--shots", type=int, default=16, help="of a class")
    parser.add_argument("--seed", type=int, default=1, help="of the authors' draw")
    args = parser.parse_args()
    try:
        print(write_list(get(args.data), args.root, args.shots, args.seed))
    except UserError as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
