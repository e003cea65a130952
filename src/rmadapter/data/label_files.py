"""What a user's file says about classes: prompt names, and which parent a label has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from rmadapter.answers.taxonomy import Taxonomy
from rmadapter.data.formats.tables import read_rows
from rmadapter.data.image_set import ImageSet
from rmadapter.data.names import DESCRIPTION_SEPARATOR, Label, key, listed_label, nfc
from rmadapter.errors import UserError, did_you_mean, quoted
from rmadapter.support.files import read_json, user_path
from rmadapter.support.labels import MAX_LABELS

PARENTS_FORM = '{"label": "parent"} or {"label": ["parent", "grandparent"]}'


def read_names(path: str | Path) -> dict[str, str]:
    """Return label -> prompt name from a table `label,name`; several rows of a label are
    descriptions of one class.

    Raises:
        UserError: An unreadable table, or an empty cell.
    """
    names: dict[str, list[str]] = {}
    for where, cells in read_rows(user_path(path), ("label", "name")):
        label, name = nfc(cells["label"]), nfc(cells["name"])
        if not label or not name:
            raise UserError(f"{where}: label or name is empty")
        names.setdefault(label, []).append(name)
    return {
        label: DESCRIPTION_SEPARATOR.join(dict.fromkeys(parts)) for label, parts in names.items()
    }


def check_known(names: Mapping[str, str], written: Sequence[Label], where: str | Path) -> None:
    """Raise UserError if a prompt name is given for an unknown class."""
    known = {nfc(str(label)) for label in written}
    for label in names:
        if label not in known:
            raise UserError(
                f"{where}: names {quoted(label)}, which is not a class of the "
                f"data{did_you_mean(label, known)}"
            )


# Parents


def read_parents(path: str | Path, label_column: str = "") -> dict[str, str]:
    """Return label or parent -> its parent.

    Args:
        path: A table with the columns label, parent and perhaps grandparent, of any number of rows
            a label; or JSON, {"label": "parent"} or {"label": ["parent", "grandparent", ...]}.
        label_column: Name of the column of labels; by default label, class or category.

    Raises:
        UserError: An unreadable file, a name that no run takes, or a label with two parents.
    """
    file = user_path(path)
    parents: dict[str, str] = {}
    chains = _of_json(file) if file.suffix.lower() == ".json" else _of_table(file, label_column)
    for where, chain in chains:
        for name in chain:
            listed_label(name, where)
        for child, parent in pairwise(chain):
            other = parents.setdefault(child, parent)
            if other != parent:
                raise UserError(
                    f"{where}: {quoted(child)} has the parents {quoted(other)} and "
                    f"{quoted(parent)}: give it one"
                )
    return parents


def _of_table(file: Path, label_column: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the place of each row, and its label with its parents."""
    named = {"label": label_column} if label_column else {}
    for where, cells in read_rows(file, ("label", "parent"), ("grandparent",), named):
        chain = [nfc(cells.get(kind, "")) for kind in ("label", "parent", "grandparent")]
        filled = [name for name in chain if name]
        if chain[: len(filled)] != filled or not filled:
            raise UserError(f"{where}: a cell before another is empty; fill in label and parent")
        yield where, filled


def _of_json(file: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the place of each label, and the label with its parents."""
    value = read_json(file)
    if not isinstance(value, dict):
        raise UserError(f"{file}: write it as {PARENTS_FORM}")
    for label, parents in value.items():
        names = [parents] if isinstance(parents, str) else parents
        if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
            raise UserError(
                f"{file}: {quoted(label)} has no names of parents; write {PARENTS_FORM}"
            )
        chain = [" ".join(nfc(name).split()) for name in (label, *names)]
        if not all(chain):
            raise UserError(f"{file}: {quoted(label)} has a parent without a name")
        yield str(file), chain


def parents_of(
    parents: Mapping[str, str], labels: Sequence[Label], where: str | Path
) -> dict[str, str]:
    """Return the same parents, with labels in the spelling of the data.

    Args:
        parents: As from `read_parents`.
        labels: The data's classes, as written.
        where: Names the file in messages.

    Raises:
        UserError: A class without a parent, a name that is neither a class nor a parent, or as
            `Taxonomy.of`.
    """
    written = {nfc(str(label)): str(label) for label in labels}
    by_key = {key(label): label for label in written.values()}
    known = {*written.values()}
    above = {*parents.values()}
    found: dict[str, str] = {}
    for name, parent in parents.items():
        label = written.get(name) or (name if name in above else by_key.get(key(name), name))
        if label not in known and name not in above:
            hint = did_you_mean(name, written)
            raise UserError(f"{where}: {quoted(name)} is neither a class nor a parent{hint}")
        if found.setdefault(label, parent) != parent:
            raise UserError(f"{where}: {quoted(label)} has two parents, in two spellings")
    for label in written.values():
        if label not in found:
            hint = did_you_mean(label, parents)
            raise UserError(f"{where}: class {quoted(label)} has no parent: add it{hint}")
    if len(found) > MAX_LABELS:
        raise UserError(f"{where}: {len(found):,} names have a parent, of {MAX_LABELS:,} allowed")
    try:
        Taxonomy.of(found, written.values())
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return found


def with_parents(splits: Mapping[str, ImageSet], parents: Mapping[str, str]) -> dict[str, ImageSet]:
    """Return splits whose labels have these parents."""
    return {name: replace(images, parents=dict(parents)) for name, images in splits.items()}
