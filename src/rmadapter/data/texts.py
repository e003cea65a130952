"""Texts about classes, such as those of a language model: a JSON file {class name: [text, ...]} for
all methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rmadapter.data.names import descriptions, key
from rmadapter.errors import UserError, quoted
from rmadapter.support.files import read_json, user_path


def read_texts(file: str) -> dict[str, list[str]]:
    """Return the texts of each class by its `key`. Raises UserError for a missing file, and as
    `checked`."""
    return checked(read_json(user_path(file)), file)


def checked(value: object, where: str) -> dict[str, list[str]]:
    """Return texts by `key` from parsed JSON. Raises UserError for a malformed value and two
    spellings of one class."""
    if not isinstance(value, dict):
        raise UserError(f'{where}: write it as {{"class name": ["text", ...], ...}}')
    by_key: dict[str, list[str]] = {}
    for name, texts in value.items():
        if not isinstance(texts, list) or not all(map(_is_filled, texts)):
            what = f"class {quoted(name)} needs a list of texts, none of them empty"
            raise UserError(f"{where}: {what}")
        if key(name) in by_key:
            what = f"class {quoted(name)} appears in two spellings"
            raise UserError(f"{where}: {what}: put its texts into one list")
        by_key[key(name)] = texts
    return by_key


def _is_filled(text: object) -> bool:
    return isinstance(text, str) and bool(text.strip())


def texts_of(texts: Mapping[str, list[str]], name: str) -> list[str]:
    """Return the texts of a class, given its prompt name; empty if the file has none."""
    return texts.get(key(descriptions(name)[0]), [])


def texts_of_all(
    texts: Mapping[str, list[str]], names: Sequence[str], file: str
) -> list[list[str]]:
    """Return the texts of each class in turn. Raises UserError, naming `file`, for a class without
    texts."""
    for name in names:
        if not texts_of(texts, name):
            raise UserError(f"{file}: class {quoted(name)} has no texts: add some")
    return [texts_of(texts, name) for name in names]
