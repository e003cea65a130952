"""Apply a user's decisions about suspects in a cleaned copy of the data set, which itself is never
changed."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rmadapter.curate.suspects import image_cell, label_cell, training
from rmadapter.data.formats.archives import is_packed
from rmadapter.data.formats.base import CLASSNAMES, SPLITS, Row, Rows
from rmadapter.data.formats.registry import open_source
from rmadapter.data.formats.tables import read_rows
from rmadapter.data.names import beside_splits, classnames_json
from rmadapter.errors import UserError, did_you_mean, quoted
from rmadapter.support.files import (
    check_new,
    csv_text,
    path_from,
    user_path,
    write_json,
    write_text,
)
from rmadapter.support.locks import staged_folder
from rmadapter.support.terminal import note

KEEP, DROP, RELABEL = "keep", "drop", "relabel"


@dataclass(frozen=True)
class Cleaned:
    """images: in the copy, over all splits. without: classes that have no training image left."""

    images: int
    relabelled: int
    dropped: int
    without: tuple[str, ...] = ()


def cleaned_name(
    data: str | Path, columns: Mapping[str, str] | None = None, outside: bool = False
) -> str:
    """A name for the cleaned copy of a data set that `apply_decisions` accepts."""
    path = user_path(data)
    root, found = open_source(path, outside, columns)[:2]
    name = "CLEAN" if _as_folders(root if is_packed(path) else path, found) else "CLEAN.csv"
    within = path.is_dir() and Path.cwd().is_relative_to(
        path.resolve()
    )  # where nothing may be written
    return str(path.resolve().with_name(name)) if within else name


def apply_decisions(
    data: str | Path, decisions: str | Path, out: str | Path, *,
    columns: Mapping[str, str] | None = None, outside: bool = False,
) -> Cleaned:  # fmt: skip
    """Write a copy of a data set in which training images are dropped or have another label.

    data: images of a folder or archive of class folders are copied; for any other layout, or with
    groups, a list path,label[,split][,group] is written; classnames.json goes with either.
    decisions: a table with columns image and decision, and optionally given and suggested, like
    suspects.csv; a decision is keep or empty, drop, relabel (as suggested) or relabel:CLASS. out: a
    folder, or a .csv file for a list. columns, outside: as for `read_images`. Raises UserError, and
    writes nothing, for an unknown decision, class or image, for two different decisions on one
    image, and if `out` exists or is inside the data.
    """
    path, target = user_path(data), user_path(out)
    root, found = open_source(path, outside, columns)[:2]
    home = root if is_packed(path) else path
    folders = _as_folders(home, found)
    given = classnames_json(root, beside_splits(home, found))
    _check(path, target, folders)
    rows = training(found, path)
    chosen = _decided(user_path(decisions), rows, root, path)
    splits = {name: [(row, row.label) for row in some] for name, some in found.items()}
    own = "train" if "train" in found else "all"
    splits[own] = [
        (row, chosen.get(i, row.label)) for i, row in enumerate(rows) if chosen.get(i) != DROP_IT
    ]
    if folders:
        with staged_folder(target) as folder:
            _copy(home, splits, folder)
            if (root / CLASSNAMES).is_file():
                shutil.copy2(root / CLASSNAMES, folder / CLASSNAMES)
            elif given:
                write_json(folder / CLASSNAMES, given)
    else:
        _names_beside(target, given)
        _list(splits, target)
    left = {label for _, label in splits[own]}
    return Cleaned(
        images=sum(map(len, splits.values())),
        relabelled=sum(row.label != label for row, label in splits[own]),
        dropped=len(rows) - len(splits[own]),
        without=tuple(sorted({row.label for row in rows} - left)),
    )


DROP_IT = ""  # instead of a label, which is never empty
Labelled = list[tuple[Row, str]]  # images with their new labels


def _as_folders(path: Path, found: Mapping[str, Rows]) -> bool:
    """Whether the copy is a folder of class folders; else it is a list."""
    grouped = any(row.group for some in found.values() for row in some)
    return path.is_dir() and not grouped and _in_class_folders(found, path)


def _in_class_folders(found: Mapping[str, Rows], root: Path) -> bool:
    """Whether every image is in a folder named after its class, below one for the split if there
    are splits."""

    def there(split: str, row: Row) -> bool:
        if not row.image.is_relative_to(root):
            return False
        above, *below = row.image.relative_to(root).parts
        return (
            above == row.label
            if split == "all"
            else (SPLITS.get(above.casefold()), below[0]) == (split, row.label)
        )

    return all(there(split, row) for split, rows in found.items() for row in rows)


def _check(path: Path, target: Path, folders: bool) -> None:
    check_new(target)
    if not folders and target.suffix.lower() != ".csv":
        raise UserError(
            f"--out {target}: the data has groups or is not a folder of class folders; give a name that ends in .csv"
        )
    if folders and target.suffix.lower() == ".csv":
        raise UserError(
            f"--out {target}: the images of a folder of class folders are copied; give a folder's name"
        )
    if path.is_dir() and path.resolve() in target.resolve().parents:
        raise UserError(
            f"{target}: lies in {path}, which must stay unchanged; choose another --out"
        )


def _decided(decisions: Path, rows: Rows, root: Path, data: Path) -> dict[int, str]:
    """Row -> its new label, or DROP_IT, for every row that the decisions mention."""
    places: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        name = row.image.relative_to(root) if row.image.is_relative_to(root) else row.image
        places[image_cell(name.as_posix()).strip()].append(i)
    classes = {label_cell(row.label).strip(): row.label for row in rows}
    found: dict[int, str] = {}
    for where, cells in read_rows(decisions, ("image", "decision"), ("given", "suggested")):
        given = cells.get("given")
        some = [
            i
            for i in places.get(cells["image"], [])
            if not given or label_cell(rows[i].label).strip() == given
        ]
        if not some:
            like = f" with the label {quoted(given)}" if given and cells["image"] in places else ""
            raise UserError(
                f"{where}: {quoted(cells['image'])} is not a training image of {data}{like}"
            )
        label = _label(cells["decision"], cells.get("suggested", ""), classes, where)
        for i in some:
            new = rows[i].label if label is None else label
            if found.setdefault(i, new) != new:
                raise UserError(
                    f"{where}: {quoted(cells['image'])} has a different decision above; keep one"
                )
    return found


def _label(decision: str, suggested: str, classes: Mapping[str, str], where: str) -> str | None:
    """The label that a decision gives an image: None to keep its own, DROP_IT to leave it out."""
    word, colon, name = (part.strip() for part in decision.partition(":"))
    if (word.casefold(), colon) in (("", ""), (KEEP, "")):
        return None
    if (word.casefold(), colon) == (DROP, ""):
        return DROP_IT
    if word.casefold() != RELABEL:
        raise UserError(
            f"{where}: unknown decision {quoted(decision)}: write {KEEP}, {DROP}, {RELABEL} or {RELABEL}:CLASS"
        )
    wanted = name if colon else suggested
    if not wanted:
        raise UserError(f"{where}: no label is suggested here: write {RELABEL}:CLASS")
    if wanted not in classes:
        raise UserError(
            f"{where}: {quoted(wanted)} is not a class of the data{did_you_mean(wanted, classes)}"
        )
    return classes[wanted]


def _copy(root: Path, splits: Mapping[str, Labelled], folder: Path) -> None:
    depth, taken = 0 if "all" in splits else 1, set()
    for labelled in splits.values():
        for row, label in sorted(
            labelled, key=lambda pair: pair[0].label != pair[1]
        ):  # unchanged ones keep the name
            if row.image.is_dir():  # a class without images
                continue
            parts = row.image.relative_to(root).parts
            place = wanted = folder.joinpath(*parts[:depth], label, *parts[depth + 1 :])
            number = 1
            while str(place).casefold() in taken:
                number += 1
                place = wanted.with_name(f"{wanted.stem}-{number}{wanted.suffix}")
            taken.add(str(place).casefold())
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(row.image, place)


def _names_beside(target: Path, given: dict[str, str]) -> None:
    """Write the prompt names beside the list, where they are read with it."""
    names = target.with_name(CLASSNAMES)
    if names.exists() and classnames_json(target.parent, False) != given:
        raise UserError(
            f"{names}: holds different names from this data's; write the list to another folder"
        )
    if given and not names.exists():
        note(f"{names}: also names the classes of other lists in that folder")
        write_json(names, given)


def _list(splits: Mapping[str, Labelled], target: Path) -> None:
    lines = []
    split, group = (
        "all" not in splits,
        any(row.group for some in splits.values() for row, _ in some),
    )
    for name, labelled in splits.items():
        for row, label in labelled:
            lines.append(
                [path_from(target.parent, row.image), label, *[name] * split, *[row.group] * group]
            )
    write_text(target, csv_text(["path", "label", *["split"] * split, *["group"] * group], lines))
