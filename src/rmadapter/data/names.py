"""A class's label, as the user writes it, and its prompt name, as the text encoder reads it: one
rule for both.

Labels are returned exactly as written. Two spellings mean the same class if they have the same
`key`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from rmadapter.data.formats.tables import read_rows
from rmadapter.errors import UserError, did_you_mean, is_text, quoted
from rmadapter.support.files import read_json, user_path

Label: TypeAlias = str | int
OR = " | "  # between descriptions of one class
CATCH_ALL = ("other", "none")  # names of a catch-all class
ELSE = "something else"  # what prompts call it
LONGEST = 100  # characters of a name that a person types


def prompt_name(written: str) -> str:
    """Return "sea horse" for "sea_horse" and "sea-horse"; NFC, so that a name is the same on every
    file system."""
    return " ".join(nfc(written).replace("_", " ").replace("-", " ").split())


def key(written: str) -> str:
    """Return what all spellings of a class share: its prompt name, case-folded, since CLIP
    lower-cases its input."""
    return prompt_name(written).casefold()


def is_catch_all(written: str) -> bool:
    """Return whether a class is one for images of none of the others."""
    return key(written) in CATCH_ALL


def default_name(written: str) -> str:
    """Return the prompt name of a class by default: `prompt_name`, or "something else" for a
    catch-all class."""
    return ELSE if is_catch_all(written) else prompt_name(written)


def custom_names(labels: Iterable[Label], names: Iterable[str]) -> dict[str, str]:
    """Return the prompt names that do not follow from the labels, as `read_images` takes them."""
    custom = {}
    for label, name in zip(labels, names, strict=True):
        if isinstance(label, str) and name != default_name(label):
            custom[nfc(label)] = name
    return custom


def descriptions(name: str) -> tuple[str, ...]:
    """Return the descriptions of a class, such as "crane | tall bird"; the first is its name."""
    return tuple(name.split(OR))


def prompt_names(
    written: Sequence[str], custom: Mapping[str, str] | None = None, where: str = ""
) -> dict[str, str]:
    """Return names as written -> prompt names, from `custom` or else the default.

    where: prefix of messages. Raises UserError for prompt names that are equal except for case,
    empty, or not valid text.
    """
    custom = custom or {}
    names: dict[str, str] = {}
    first: dict[str, str] = {}
    for label in written:
        chosen = custom.get(nfc(label))
        name = default_name(label) if chosen is None else " ".join(chosen.split())
        if not (is_text(label) and is_text(name)):
            what = f"class {quoted(label)}: its name is not UTF-8 or contains a NUL"
            raise UserError(f"{where}{what}: rename it")
        if not name:
            raise UserError(f"{where}class {label!r} has an empty prompt name: give it a word")
        twin = first.setdefault(name.casefold(), label)
        if twin != label or label in names:
            what = f"classes {twin!r} and {label!r} are both called {name!r}"
            raise UserError(f"{where}{what}: rename one or merge them")
        names[label] = name
    return names


def typed_name(name: str, known: Iterable[str] = ()) -> str:
    """Return a class name that a person typed, without odd spaces.

    Args:
        name: Name as typed.
        known: Classes, of which one that is the same in a prompt is returned instead.

    Raises:
        UserError: An empty or very long name, or one that is no text to a tokenizer.
    """
    label = " ".join(name.split())
    if not is_text(label) or len(label) > LONGEST:
        raise UserError(
            f"{quoted(label)}: a class name must be text of at most {LONGEST} characters"
        )
    prompt_names([label])
    return next((other for other in known if key(other) == key(label)), label)


def class_indices(
    labels: Iterable[Label], written: Sequence[Label], names: Sequence[str]
) -> list[int]:
    """Return the class index of each label: matched as written, else by `key`, else by the key of a
    prompt name. Raises UserError for a label that matches no class."""
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


# Other prompt names


def classnames_json(root: Path, split: bool) -> dict[str, str]:
    """Read the optional classnames.json, {"folder name": "prompt name"}, from `root`; for a folder
    of splits, which may be one of several domains, else from beside it. Raises UserError for a
    malformed file."""
    path = root / "classnames.json"
    if split and not path.exists():
        path = root.absolute().parent / path.name
    names = read_json(path) if path.exists() else {}
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise UserError(f'{path}: write it as {{"folder name": "prompt name", ...}}')
    return {nfc(label): nfc(name) for label, name in names.items()}


def beside_splits(path: Path, splits: Collection[str]) -> bool:
    """Return whether a path is a folder of splits, which may be one of several domains."""
    return path.is_dir() and "all" not in splits


def read_names(path: str | Path) -> dict[str, str]:
    """Return label -> prompt name from a table `label,name`; several rows of a label are
    descriptions of one class. Raises UserError for an unreadable table and for empty cells."""
    names: dict[str, list[str]] = {}
    for where, cells in read_rows(user_path(path), ("label", "name")):
        label, name = nfc(cells["label"]), nfc(cells["name"])
        if not label or not name:
            raise UserError(f"{where}: label or name is empty")
        names.setdefault(label, []).append(name)
    return {label: OR.join(dict.fromkeys(parts)) for label, parts in names.items()}


def check_known(names: Mapping[str, str], written: Sequence[Label], where: str | Path) -> None:
    """Raise UserError if a prompt name is given for an unknown class."""
    known = {nfc(str(label)) for label in written}
    for label in names:
        if label not in known:
            what = f"names {quoted(label)}, which is not a class of the data"
            raise UserError(f"{where}: {what}{did_you_mean(label, known)}")


def nfc(text: str) -> str:
    """Return the text in composed Unicode, in which labels are compared."""
    return unicodedata.normalize("NFC", text)
