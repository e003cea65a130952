"""Texts about classes, such as those of a language model: a JSON file {class name: [text, ...]} for
all methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rmadapter.data.names import descriptions, key
from rmadapter.errors import UserError, quoted
from rmadapter.support.files import read_json, user_path


def read_texts(file: str) -> dict[str, list[str]]:
    """The texts of each class by its `key`. Raises UserError for a missing file, and as `checked`."""
    return checked(read_json(user_path(file)), file)


def checked(given: Any, where: str) -> dict[str, list[str]]:
    """Texts by `key` from parsed JSON. Raises UserError for a malformed value and two spellings of
    one class."""
    if not isinstance(given, dict):
        raise UserError(f'{where}: write it as {{"class name": ["text", ...], ...}}')
    found: dict[str, list[str]] = {}
    for name, texts in given.items():
        if not isinstance(texts, list) or not all(
            isinstance(text, str) and text.strip() for text in texts
        ):
            raise UserError(
                f"{where}: class {quoted(name)} needs a list of texts, none of them empty"
            )
        if key(name) in found:
            raise UserError(
                f"{where}: class {quoted(name)} appears in two spellings: put its texts into one list"
            )
        found[key(name)] = texts
    return found


def texts_of(found: Mapping[str, list[str]], name: str) -> list[str]:
    """The texts of a class, given its prompt name; empty if the file has none."""
    return found.get(key(descriptions(name)[0]), [])


def texts_of_all(
    found: Mapping[str, list[str]], names: Sequence[str], file: str
) -> list[list[str]]:
    """The texts of each class in turn. Raises UserError, naming `file`, for a class without texts."""
    if lost := next((name for name in names if not texts_of(found, name)), None):
        raise UserError(f"{file}: class {quoted(lost)} has no texts: add some")
    return [texts_of(found, name) for name in names]
