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
OTHER, ELSE = (
    ("other", "none"),
    "something else",
)  # names of a catch-all class; what prompts call it


def prompt_name(written: str) -> str:
    """ "sea_horse" or "sea-horse" -> "sea horse"; NFC, so that a name is the same on every file
    system."""
    return " ".join(nfc(written).replace("_", " ").replace("-", " ").split())


def key(written: str) -> str:
    """What all spellings of a class share: its prompt name, case-folded, since CLIP lower-cases its
    input."""
    return prompt_name(written).casefold()


def default_name(written: str) -> str:
    """The prompt name of a class by default: `prompt_name`, or "something else" for a catch-all
    class."""
    return ELSE if key(written) in OTHER else prompt_name(written)


def given_names(labels: Iterable[Label], names: Iterable[str]) -> dict[str, str]:
    """The prompt names that do not follow from the labels, as `read_images` takes them."""
    pairs = zip(labels, names, strict=True)
    return {
        nfc(label): name
        for label, name in pairs
        if isinstance(label, str) and name != default_name(label)
    }


def descriptions(name: str) -> tuple[str, ...]:
    """ "crane | tall bird" -> the two descriptions of a class; the first is its name."""
    return tuple(name.split(OR))


def prompt_names(
    written: Sequence[str], given: Mapping[str, str] | None = None, where: str = ""
) -> dict[str, str]:
    """Names as written -> prompt names, from `given` or else the default. Raises UserError for
    prompt names that are equal except for case, empty, or not valid text. where: prefix of
    messages."""
    names: dict[str, str] = {}
    first: dict[str, str] = {}
    for raw in written:
        name = (
            " ".join(given[nfc(raw)].split()) if given and nfc(raw) in given else default_name(raw)
        )
        if not (is_text(raw) and is_text(name)):
            raise UserError(
                f"{where}class {quoted(raw)}: its name is not UTF-8 or contains a NUL: rename it"
            )
        if not name:
            raise UserError(f"{where}class {raw!r} has an empty prompt name: give it a word")
        if (twin := first.setdefault(name.casefold(), raw)) != raw or raw in names:
            raise UserError(
                f"{where}classes {twin!r} and {raw!r} are both called {name!r}: rename one or merge them"
            )
        names[raw] = name
    return names


def places(labels: Iterable[Label], written: Sequence[Label], names: Sequence[str]) -> list[int]:
    """Class index of each label: matched as written, else by `key`, else by the key of a prompt
    name.

    Raises UserError for a label that matches no class.
    """
    found: dict[Label, int] = {}
    for spellings in (
        written,
        [key(x) for x in written if isinstance(x, str)],
        [key(name) for name in names],
    ):
        for place, spelling in enumerate(spellings):
            found.setdefault(spelling, place)
    numbers = []
    for label in labels:
        number = found.get(label, found.get(key(label)) if isinstance(label, str) else None)
        if number is None:
            raise UserError(
                f"label {label!r} is not one of the classes{did_you_mean(str(label), map(str, written))}"
            )
        numbers.append(number)
    return numbers


# Other prompt names


def classnames_json(root: Path, split: bool) -> dict[str, str]:
    """Read the optional classnames.json, {"folder name": "prompt name"}, from `root`; for a folder
    of splits, which may be one of several domains, else from beside it. Raises UserError for a
    malformed file."""
    path = root / "classnames.json"
    if split and not path.exists():
        path = root.absolute().parent / path.name
    given = read_json(path) if path.exists() else {}
    if not isinstance(given, dict) or not all(isinstance(name, str) for name in given.values()):
        raise UserError(f'{path}: write it as {{"folder name": "prompt name", ...}}')
    return {nfc(raw): nfc(name) for raw, name in given.items()}


def beside_splits(path: Path, splits: Collection[str]) -> bool:
    """Whether it is a folder of splits, which may be one of several domains."""
    return path.is_dir() and "all" not in splits


def read_names(path: str | Path) -> dict[str, str]:
    """Label -> prompt name from a table `label,name`; several rows of a label are descriptions of
    one class. Raises UserError for an unreadable table and for empty cells."""
    given: dict[str, list[str]] = {}
    for where, cells in read_rows(user_path(path), ("label", "name")):
        label, name = nfc(cells["label"]), nfc(cells["name"])
        if not label or not name:
            raise UserError(f"{where}: label or name is empty")
        given.setdefault(label, []).append(name)
    return {label: OR.join(dict.fromkeys(names)) for label, names in given.items()}


def check_known(given: Mapping[str, str], written: Sequence[Label], where: str | Path) -> None:
    """Raise UserError if a prompt name is given for an unknown class."""
    known = {nfc(str(label)) for label in written}
    if lost := next((label for label in given if label not in known), None):
        raise UserError(
            f"{where}: names {quoted(lost)}, which is not a class of the data{did_you_mean(lost, known)}"
        )


def nfc(text: str) -> str:
    """The text in composed Unicode, in which labels are compared."""
    return unicodedata.normalize("NFC", text)
