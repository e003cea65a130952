"""Apply a user's decisions about suspects in a cleaned copy of a data set, which itself never
changes."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rmadapter.curate.suspects import image_cell, label_cell, training
from rmadapter.data.archives import is_packed
from rmadapter.data.formats.base import Row, Rows
from rmadapter.data.formats.class_folders import free_name
from rmadapter.data.formats.registry import locate
from rmadapter.data.formats.tables import read_rows, table_text
from rmadapter.data.image_set import relative
from rmadapter.data.names import CLASSNAMES, SPLITS, beside_splits, classnames_json
from rmadapter.errors import UserError, did_you_mean, quoted
from rmadapter.support.files import (
    check_new,
    user_path,
    write_json,
    write_text,
)
from rmadapter.support.locks import staged_folder
from rmadapter.support.terminal import note

KEEP, DROP, RELABEL = "keep", "drop", "relabel"
DROPPED = ""  # instead of a label, which is never empty
Labelled = list[tuple[Row, str]]  # images with their new labels


@dataclass(frozen=True)
class Cleaned:
    """Counts of a cleaned copy of a data set.

    Attributes:
        images: Number of images in the copy, over all splits.
        relabelled: Number of images with a new label.
        dropped: Number of images that are left out.
        without: Classes that have no training image left.
    """

    images: int
    relabelled: int
    dropped: int
    without: tuple[str, ...] = ()


def cleaned_name(
    data: str | Path, columns: Mapping[str, str] | None = None, outside: bool = False
) -> str:
    """Return a name for the cleaned copy of a data set that `apply_decisions` accepts."""
    path = user_path(data)
    root, splits = locate(path, columns, outside=outside).read()[:2]
    home = root if is_packed(path) else path
    name = "CLEAN" if _has_class_folders(home, splits) else "CLEAN.csv"
    whole = path.resolve()
    # nothing may be written within the data
    is_within = path.is_dir() and Path.cwd().is_relative_to(whole)
    return str(whole.with_name(name)) if is_within else name


def apply_decisions(
    data: str | Path,
    decisions: str | Path,
    out: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    outside: bool = False,
) -> Cleaned:
    """Write a copy of a data set in which training images are dropped or have another label.

    Args:
        data: Images of a folder or archive of class folders are copied; for any other layout, or
            with groups, a list `path,label[,split][,group]` is written; classnames.json goes with
            either.
        decisions: A table with columns image and decision, and optionally given and suggested, like
            suspects.csv; a decision is keep or empty, drop, relabel (as suggested) or
            relabel:CLASS.
        out: A folder, or a .csv file for a list.
        columns: Names of columns, as for `read_images`.
        outside: Whether a table may name images outside its folder.

    Returns:
        How many `images` the copy has over all splits, how many are `relabelled` and `dropped`, and
        the classes `without` a training image.

    Raises:
        UserError: Unknown decision, class or image; two different decisions on one image; `out`
            exists or is inside the data. Then nothing is written.

    Example:
        >>> from rmadapter import apply_decisions
        >>> with open("decisions.csv", "w") as file:
        ...     print("image,decision", file=file)
        ...     print("train/red/0.png,drop", file=file)
        ...     print("train/red/1.png,relabel:blue", file=file)
        >>> apply_decisions("colors", "decisions.csv", "clean")
        Cleaned(images=39, relabelled=1, dropped=1, without=())
    """
    path, target = user_path(data), user_path(out)
    root, source_splits = locate(path, columns, outside=outside).read()[:2]
    home = root if is_packed(path) else path
    copies_folders = _has_class_folders(home, source_splits)
    names = classnames_json(root, beside_splits(home, source_splits))
    _check_target(path, target, copies_folders)
    rows = training(source_splits, path)
    labels = _new_labels(user_path(decisions), rows, root, path)
    splits = {name: [(row, row.label) for row in part] for name, part in source_splits.items()}
    new = [(row, labels.get(i, row.label)) for i, row in enumerate(rows)]
    train = [(row, label) for row, label in new if label != DROPPED]
    splits["train" if "train" in splits else "all"] = train
    if copies_folders:
        with staged_folder(target) as folder:
            _copy_images(home, splits, folder)
            if (root / CLASSNAMES).is_file():
                shutil.copy2(root / CLASSNAMES, folder / CLASSNAMES)
            elif names:
                write_json(folder / CLASSNAMES, names)
    else:
        _write_names_beside(target, names)
        listed = {
            split: [row._replace(label=label) for row, label in labelled]
            for split, labelled in splits.items()
        }
        write_text(target, table_text(listed, target.parent))
    left = {label for _, label in train}
    return Cleaned(
        images=sum(map(len, splits.values())),
        relabelled=sum(row.label != label for row, label in train),
        dropped=len(rows) - len(train),
        without=tuple(sorted({row.label for row in rows} - left)),
    )


def _has_class_folders(root: Path, splits: Mapping[str, Rows]) -> bool:
    """Return whether the copy is a folder of class folders: every image is in a folder named after
    its class, below one for the split if there are splits. Else the copy is a list."""

    def is_in_place(split: str, row: Row) -> bool:
        if not row.image.is_relative_to(root):
            return False
        above, *below = row.image.relative_to(root).parts
        if split == "all":
            return above == row.label
        return (SPLITS.get(above.casefold()), below[0]) == (split, row.label)

    rows = [(split, row) for split, part in splits.items() for row in part]
    if not root.is_dir() or any(row.group for _, row in rows):
        return False
    return all(is_in_place(split, row) for split, row in rows)


def _check_target(path: Path, target: Path, copies_folders: bool) -> None:
    check_new(target)
    is_csv = target.suffix.lower() == ".csv"
    if not copies_folders and not is_csv:
        raise UserError(
            f"--out {target}: the data has groups or is not a folder of class folders; give a name "
            "that ends in .csv"
        )
    if copies_folders and is_csv:
        raise UserError(
            f"--out {target}: the images of a folder of class folders are copied; give a folder's "
            "name"
        )
    if path.is_dir() and path.resolve() in target.resolve().parents:
        raise UserError(f"{target}: lies in {path}, which must not change; choose another --out")


def _new_labels(decisions: Path, rows: Rows, root: Path, data: Path) -> dict[int, str]:
    """Return the label, or DROPPED, of every row that the decisions mention."""
    places: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        places[image_cell(relative(row.image, root)).strip()].append(i)
    classes = {label_cell(row.label).strip(): row.label for row in rows}
    labels: dict[int, str] = {}
    for where, cells in read_rows(decisions, ("image", "decision"), ("given", "suggested")):
        image = cells["image"]
        given = cells.get("given")
        matches = [
            i
            for i in places.get(image, [])
            if not given or label_cell(rows[i].label).strip() == given
        ]
        if not matches:
            label = f" with the label {quoted(given)}" if given and image in places else ""
            raise UserError(f"{where}: {quoted(image)} is not a training image of {data}{label}")
        decided = _decided_label(cells["decision"], cells.get("suggested", ""), classes, where)
        for i in matches:
            new = rows[i].label if decided is None else decided
            if labels.setdefault(i, new) != new:
                raise UserError(
                    f"{where}: {quoted(image)} has a different decision above; keep one"
                )
    return labels


def _decided_label(
    decision: str, suggested: str, classes: Mapping[str, str], where: str
) -> str | None:
    """Return the label that a decision gives an image: None to keep its own, DROPPED to leave it
    out."""
    word, colon, name = (part.strip() for part in decision.partition(":"))
    word = word.casefold()
    if not colon and word in ("", KEEP):
        return None
    if not colon and word == DROP:
        return DROPPED
    if word != RELABEL:
        raise UserError(
            f"{where}: unknown decision {quoted(decision)}; write {KEEP}, {DROP}, {RELABEL} or "
            f"{RELABEL}:CLASS"
        )
    label = name if colon else suggested
    if not label:
        raise UserError(f"{where}: no label is suggested here; write {RELABEL}:CLASS")
    if label not in classes:
        raise UserError(
            f"{where}: {quoted(label)} is not a class of the data{did_you_mean(label, classes)}"
        )
    return classes[label]


def _copy_images(root: Path, splits: Mapping[str, Labelled], folder: Path) -> None:
    depth = 0 if "all" in splits else 1
    taken: dict[str, int] = {}
    for labelled in splits.values():
        # images that keep their label also keep their name
        for row, label in sorted(labelled, key=lambda pair: pair[0].label != pair[1]):
            if row.image.is_dir():  # a class without images
                continue
            parts = row.image.relative_to(root).parts
            first = folder.joinpath(*parts[:depth], label, *parts[depth + 1 :])
            place = Path(free_name(str(first.with_suffix("")), first.suffix, taken))
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(row.image, place)


def _write_names_beside(target: Path, names: dict[str, str]) -> None:
    """Write the prompt names beside the list, where they are read with it."""
    file = target.with_name(CLASSNAMES)
    if file.exists() and classnames_json(target.parent, False) != names:
        raise UserError(
            f"{file}: holds different names from this data's; write the list to another folder"
        )
    if names and not file.exists():
        note(f"{file}: also names the classes of other lists in that folder")
        write_json(file, names)
