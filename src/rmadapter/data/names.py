"""Names of classes and of splits: one rule for all formats.

A class has a label, as the user writes it, and a prompt name, as the text encoder reads it. Labels
are returned exactly as written. Two spellings mean the same class if they have the same `key`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias, TypeVar

from rmadapter.errors import UserError, did_you_mean, is_text, quoted
from rmadapter.support.files import read_json
from rmadapter.support.labels import (
    MAX_LABELS,
    NOT_TEXT,
    label_fault,
    typed_fault,
)

T = TypeVar("T")

Label: TypeAlias = str | int
CLASSNAMES = "classnames.json"
DESCRIPTION_SEPARATOR = " | "  # between descriptions of one class
CATCH_ALL = ("other", "none")  # names of a catch-all class
CATCH_ALL_NAME = "something else"  # what prompts call it
SPLITS = {  # name of a folder, or cell of a table -> split
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
# that a column of splits may also hold, whose images nobody should train on unasked
OTHER_SPLITS = ("dev", "development", "eval", "evaluation", "holdout", "hold-out", "held-out")


def order(name: str) -> tuple[str, str]:
    """Sort key of names: case-insensitive, and the same on file systems that decompose accents."""
    return nfc(name).casefold(), name


def nfc(text: str) -> str:
    """Return the text in composed Unicode, in which labels are compared."""
    return unicodedata.normalize("NFC", text)


def only_split(words: Iterable[str], where: str, remedy: str) -> str:
    """Return the split that some of the words name; "all" if none does.

    Args:
        words: Words in any case, such as names of folders.
        where: Names, for messages, what has these words.
        remedy: What to do about two splits.

    Raises:
        UserError: The words name two splits.
    """
    splits = list(
        dict.fromkeys(SPLITS[word] for word in map(str.casefold, words) if word in SPLITS)
    )
    if len(splits) > 1:
        raise UserError(f"{where}: named as of {' and '.join(splits)}: {remedy}")
    return splits[0] if splits else "all"


def split_named(name: str) -> str:
    """Return the split in the name of a file or folder, such as "val" of "instances_val2017" and
    "valset"; "all" if there is none. Raises UserError as `only_split`."""
    words = [word.removesuffix("set") for word in re.findall("[a-z]+", name.casefold())]
    return only_split(words, name, "rename it, so that it is in one split")


# Labels


def only_label(labels: Iterable[T], where: str) -> T | None:
    """Return the label of an image, None if it has none; repeats count once.

    Raises:
        UserError: The image has several labels; the message begins with `where`.
    """
    every = list(labels)
    others = [label for label in every if label != every[0]]
    if others:
        first, second = quoted(every[0]), quoted(others[0])
        raise UserError(
            f"{where}: has the labels {first} and {second}, but one label per image is supported: "
            f"use --crops (crops=True) for boxes, or a multi-label library such as torchvision "
            f"with BCE loss"
        )
    return every[0] if every else None


def listed_label(name: str, where: str) -> str:
    """Return a label from a file, stripped.

    Raises:
        UserError: It is empty, very long or no text; the message begins with `where`.
    """
    if fault := label_fault(name):
        raise UserError(f"{where}: {quoted(name)} is not a class name: it {fault}")
    return name.strip()


def typed_name(name: str, known: Iterable[str] = ()) -> str:
    """Return a class name that a person typed, without odd spaces.

    Args:
        name: Name as typed.
        known: Classes, of which one that is the same in a prompt is returned instead.

    Raises:
        UserError: An empty name, or as `typed_fault`.
    """
    label = " ".join(name.split())
    if fault := typed_fault(label):
        raise UserError(f"class {quoted(label)}: its name {fault}; choose another")
    prompt_names([label])
    return next((other for other in known if key(other) == key(label)), label)


def class_indices(
    labels: Iterable[Label], written: Sequence[Label], names: Sequence[str]
) -> list[int]:
    """Return the class index of each label: matched as written, else by `key`, else by the key of a
    prompt name.

    Args:
        labels: Labels of images.
        written: Labels of the classes.
        names: Prompt names of the classes.

    Raises:
        UserError: A label matches no class.
    """
    known: dict[Label, int] = {}
    keys = [key(label) if isinstance(label, str) else label for label in written]
    for spellings in (written, keys, [key(name) for name in names]):
        for index, spelling in enumerate(spellings):
            known.setdefault(spelling, index)
    indices = []
    for label in labels:
        match = known.get(label, known.get(key(label)) if isinstance(label, str) else None)
        if match is None:
            hint = did_you_mean(str(label), map(str, written))
            raise UserError(f"label {label!r} is not one of the classes{hint}")
        indices.append(match)
    return indices


# Prompt names


def prompt_name(written: str) -> str:
    """Return "sea horse" for "sea_horse" and "sea-horse"; NFC, so that a name is the same on every
    file system."""
    return " ".join(nfc(written).replace("_", " ").replace("-", " ").split())


def key(written: str) -> str:
    """Return what all spellings of a class share: its prompt name, case-folded, since CLIP
    lower-cases its input."""
    return prompt_name(written).casefold()


def is_catch_all(written: str) -> bool:
    """Return whether a class is of the images of none of the other classes."""
    return key(written) in CATCH_ALL


def default_name(written: str) -> str:
    """Return the prompt name of a class by default: `prompt_name`, or "something else" for a
    catch-all class."""
    return CATCH_ALL_NAME if is_catch_all(written) else prompt_name(written)


def custom_names(labels: Iterable[Label], names: Iterable[str]) -> dict[str, str]:
    """Return the prompt names that do not follow from the labels, as `read_images` takes them."""
    custom = {}
    for label, name in zip(labels, names, strict=True):
        if isinstance(label, str) and name != default_name(label):
            custom[nfc(label)] = name
    return custom


def descriptions(name: str) -> tuple[str, ...]:
    """Return the descriptions of a class, such as "crane | tall bird"; the first is its name."""
    return tuple(name.split(DESCRIPTION_SEPARATOR))


def prompt_names(
    written: Sequence[str], custom: Mapping[str, str] | None = None, where: str = ""
) -> dict[str, str]:
    """Return the prompt name of each class, from `custom` or else the default.

    Args:
        written: Labels of the classes.
        custom: Label -> prompt name.
        where: Prefix of messages.

    Raises:
        UserError: Prompt names are equal except for case, empty, or not valid text; a label that
            no run takes, or too many.
    """
    if len(written) > MAX_LABELS:
        raise UserError(f"{where}{len(written):,} classes: a model has at most {MAX_LABELS:,}")
    custom = custom or {}
    names: dict[str, str] = {}
    first: dict[str, str] = {}
    for label in written:
        chosen = custom.get(nfc(label))
        name = default_name(label) if chosen is None else " ".join(chosen.split())
        if not name:
            raise UserError(f"{where}class {label!r} has an empty prompt name: give it a word")
        if fault := label_fault(label) or ("" if is_text(name) else NOT_TEXT):
            raise UserError(f"{where}class {quoted(label)}: its name {fault}: rename it")
        twin = first.setdefault(name.casefold(), label)
        if twin != label or label in names:
            raise UserError(
                f"{where}classes {twin!r} and {label!r} are both called {name!r}: rename one or "
                "merge them"
            )
        names[label] = name
    return names


def classnames_json(root: Path, split: bool) -> dict[str, str]:
    """Read the optional classnames.json, {"folder name": "prompt name"}, from a folder.

    Args:
        root: The folder.
        split: Whether it holds splits: it may be one of several domains, so that the file may stand
            beside it.

    Raises:
        UserError: A malformed file.
    """
    path = root / CLASSNAMES
    if split and not path.exists():
        path = root.absolute().parent / path.name
    names = read_json(path) if path.exists() else {}
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise UserError(f'{path}: write it as {{"folder name": "prompt name", ...}}')
    return {nfc(label): nfc(name) for label, name in names.items()}


def beside_splits(path: Path, splits: Collection[str]) -> bool:
    """Return whether a path is a folder of splits, which may be one of several domains."""
    return path.is_dir() and "all" not in splits
