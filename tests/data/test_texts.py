"""Files of texts about classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rmadapter.data.texts import read_texts, texts_of, texts_of_all
from rmadapter.errors import UserError


def written(folder: Path, value: Any) -> str:
    file = folder / "texts.json"
    file.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return str(file)


def test_any_spelling_of_a_class_has_its_texts(tmp_path: Path) -> None:
    texts = {"Sea_Horse": ["it swims", "a fish"], "cat": ["it purrs | it sleeps"], "dog": []}
    file = written(tmp_path, texts)
    found = read_texts(file)
    expected = [["it purrs | it sleeps"], ["it swims", "a fish"]]
    assert texts_of_all(found, ["cat", "sea horse | fish"], file) == expected
    assert texts_of(found, "dog") == texts_of(found, "fish") == []


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (["a cat"], 'write it as {"class name": ["text", ...], ...}'),
        ({"cat": "it purrs"}, "class 'cat' needs a list of texts, none of them empty"),
        ({"cat": ["it purrs", " "]}, "class 'cat' needs a list of texts, none of them empty"),
        ({"cat": [3]}, "class 'cat' needs a list of texts"),
        ({"a_cat": ["x"], "A cat": ["y"]}, "class 'A cat' appears in two spellings"),
        ("{", "not readable JSON"),
    ],
    ids=str,
)
def test_texts_in_another_form_are_refused(tmp_path: Path, value: Any, words: str) -> None:
    with pytest.raises(UserError) as caught:
        read_texts(written(tmp_path, value))
    assert words in str(caught.value)
    assert "texts.json" in str(caught.value)


@pytest.mark.parametrize("value", [{"cat": []}, {"dog": ["it barks"]}])
def test_a_class_without_texts_is_named(tmp_path: Path, value: Any) -> None:
    file = written(tmp_path, value)
    with pytest.raises(UserError, match=r"texts\.json: class 'cat' has no texts: add some"):
        texts_of_all(read_texts(file), ["cat"], file)
    with pytest.raises(UserError, match="missing"):
        read_texts("missing.json")


def test_texts_stand_beside_their_sources_or_alone(tmp_path: Path) -> None:
    """A class may be called texts."""
    beside = written(tmp_path, {"texts": {"cat": ["a"]}, "sources": []})
    assert read_texts(beside) == {"cat": ["a"]}
    alone = written(tmp_path, {"texts": ["a page"], "sources": ["b"]})
    assert read_texts(alone) == {"texts": ["a page"], "sources": ["b"]}
