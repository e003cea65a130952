"""Files of texts about classes, which methods read.

A file is {class name: [text, ...]}, or has that object in "texts" beside their sources, which
`describe` writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

from rmadapter.data.names import descriptions, key
from rmadapter.errors import UserError, quoted
from rmadapter.support.files import read_json, user_path

Form: TypeAlias = Literal["sentences", "descriptors"]
TEXTS = "texts"


def read_texts(file: str) -> dict[str, list[str]]:
    """Return the texts of each class by its `key`.

    Raises:
        UserError: A missing file, and as for `parse_texts`.
    """
    return parse_texts(read_json(user_path(file)), file)


def parse_texts(value: object, where: str) -> dict[str, list[str]]:
    """Return texts by `key` from parsed JSON; messages begin with `where`.

    Raises:
        UserError: A malformed value, or two spellings of one class.
    """
    if not isinstance(value, dict):
        raise UserError(f'{where}: write it as {{"class name": ["text", ...], ...}}')
    by_key: dict[str, list[str]] = {}
    apart = isinstance(value.get(TEXTS), dict)  # beside sources; a class "texts" has a list
    for name, texts in (value[TEXTS] if apart else value).items():
        if not isinstance(texts, list) or not all(isinstance(x, str) and x.strip() for x in texts):
            raise UserError(
                f"{where}: class {quoted(name)} needs a list of texts, none of them empty"
            )
        if key(name) in by_key:
            raise UserError(
                f"{where}: class {quoted(name)} appears in two spellings: put its texts into one "
                "list"
            )
        by_key[key(name)] = texts
    return by_key


def texts_of(texts: Mapping[str, list[str]], name: str) -> list[str]:
    """Return the texts of a class, given its prompt name; empty if the file has none."""
    return texts.get(key(descriptions(name)[0]), [])


def texts_of_all(
    texts: Mapping[str, list[str]], names: Sequence[str], file: str
) -> list[list[str]]:
    """Return the texts of each class in turn.

    Raises:
        UserError: A class has no texts; the message names `file`.
    """
    for name in names:
        if not texts_of(texts, name):
            raise UserError(f"{file}: class {quoted(name)} has no texts: add some")
    return [texts_of(texts, name) for name in names]
