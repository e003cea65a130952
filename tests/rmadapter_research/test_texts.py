"""Texts about classes: the questions that ask for them, answers in each form, and their file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from rmadapter.data.texts import read_texts
from rmadapter.errors import UserError
from rmadapter_research.texts import (
    Named,
    TextFile,
    ask_about,
    check_answers,
    pasted,
    question_of,
    read_answers,
    read_text_file,
    source_of,
)

CLASSES = [Named("cat", "cat"), Named("Sea_Horse", "Sea Horse"), Named("n1", "zebra")]


def written(folder: Path, value: Any) -> str:
    file = folder / "texts.json"
    file.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return str(file)


def source(who: str, texts: dict[str, list[str]]) -> dict[str, object]:
    return source_of(who, "What of {}?", texts)


def parsed(folder: Path, text: str) -> list[tuple[str, str]]:
    file = folder / "answers.txt"
    file.write_text(text, encoding="utf-8")
    return read_answers(file, CLASSES)


def test_a_file_keeps_sources_and_reads_like_a_plain_one(tmp_path: Path) -> None:
    texts = {"cat": ["it purrs"], "Sea Horse": ["a fish, \u00e9"]}
    path = tmp_path / "texts.json"
    TextFile().extended(texts, source("me", texts)).write(path)
    assert read_texts(str(path)) == {"cat": ["it purrs"], "sea horse": ["a fish, \u00e9"]}
    whole = read_text_file(path)
    (own,) = whole.sources
    plain = '{"Sea Horse":["a fish, \u00e9"],"cat":["it purrs"]}'
    assert own["sha256"] == hashlib.sha256(plain.encode()).hexdigest()
    assert (own["who"], own["classes"]) == ("me", ["cat", "Sea Horse"])
    newer = {"sea_horse": ["it swims"], "dog": ["it barks"]}
    whole.extended(newer, source("you", newer)).write(path)
    assert read_texts(str(path)) == {
        "cat": ["it purrs"], "sea horse": ["it swims"], "dog": ["it barks"],
    }  # fmt: skip
    assert [one["who"] for one in read_text_file(path).sources] == ["me", "you"]


def test_a_plain_file_gets_sources(tmp_path: Path) -> None:
    path = Path(written(tmp_path, {"texts": ["a page of text"], "cat": ["it purrs"]}))
    plain = read_text_file(path)
    assert plain == TextFile({"texts": ["a page of text"], "cat": ["it purrs"]})
    plain.extended({"cat": ["a pet"]}, source("me", {"cat": ["a pet"]})).write(path)
    assert read_texts(str(path)) == {"texts": ["a page of text"], "cat": ["a pet"]}


@pytest.mark.parametrize("changed", [{"sources": 3}, {"sources": ["me"]}])
def test_damaged_sources_are_refused(tmp_path: Path, changed: dict[str, object]) -> None:
    path = written(tmp_path, {"texts": {"cat": ["a"]}, **changed})
    with pytest.raises(UserError, match=next(iter(changed))):
        read_text_file(Path(path))


# Questions


def test_a_question_names_the_class() -> None:
    assert '"sea horse"' in ask_about(question_of("descriptors", 5), "sea horse")
    assert "List 5 " in question_of("descriptors", 5)
    assert question_of("sentences", 8, "How does a {} look?") == "How does a {} look?"
    with pytest.raises(UserError, match=r"\{\}"):
        question_of("sentences", 8, "How does it look?")
    text = pasted(question_of("sentences", 8), ["cat", "zebra"])
    assert "- cat\n- zebra\n" in text
    assert "{}" not in text


# Answers

ANSWERS = {
    "object": '{"zebra": ["black", "white"], "CAT": ["it purrs"]}',
    "twice": '{"zebra": ["black"], "cat": "it purrs", "zebra": "white"}',
    "list": '[{"class": "n1", "texts": ["black","white"]}, {"class": "cat", "answer": "it purrs"}]',
    "JSON lines": '{"class": "n1", "answer": "- black\\n\\n- white"}\n\n{"cat": ["it purrs"]}\n',
    "fenced": 'Of course!\n```json\n{"zebra": ["black", "white"], "cat": ["it purrs"]}\n```\nDone.',
    "headings": "## Zebra\n- black\n- white\n\n**cat:**\n1. it purrs",
    "plain headings": "zebra\nblack\n\nwhite\nCat\nit purrs",
    "lines": "zebra: black\nn1: white\n- **cat**: it purrs",
    "quotes": 'zebra: black\nzebra: white\ncat: "it purrs"',
}


@pytest.mark.parametrize("text", ANSWERS.values(), ids=ANSWERS)
def test_answers_are_read_in_each_form_and_any_order(tmp_path: Path, text: str) -> None:
    checked = check_answers(parsed(tmp_path, text), CLASSES)
    assert checked.texts == {"cat": ["it purrs"], "zebra": ["black", "white"]}
    assert checked.missing == ("Sea Horse",)
    assert checked.unknown == ()


def test_a_colon_in_a_text_names_no_class(tmp_path: Path) -> None:
    text = "cat:\nIt has this: fur.\nzebra: stripes\nIt runs: fast"
    assert parsed(tmp_path, text) == [
        ("cat", "It has this: fur."), ("zebra", "stripes"), ("zebra", "It runs: fast"),
    ]  # fmt: skip


def test_what_is_wrong_with_answers_is_counted() -> None:
    pairs = [
        ("cat", " it \n purrs "), ("Cat", "it purrs"), ("cat", " "), ("cat", "a\0b"),
        ("zebra", "it purrs"), ("zebar", "stripes"),
    ]  # fmt: skip
    checked = check_answers(pairs, CLASSES)
    assert checked.texts == {"cat": ["it purrs"], "zebra": ["it purrs"]}
    assert (checked.missing, checked.unknown) == (("Sea Horse",), ("zebar",))
    assert (checked.empty, checked.repeated, checked.shared) == (2, ("it purrs",), ("it purrs",))
    notes = " ".join(checked.notes())
    assert "did you mean 'zebra'?" in notes
    assert "2 empty" in notes
    assert "'Sea Horse'" in notes


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("it purrs", "line 1: names no class"),
        ('{"cat": 3}', "class 'cat' needs a list"),
        ('{"cat": ["a", 3]}', "class 'cat' needs a list"),
        ('{"class": "cat"}', "class 'cat' needs a list"),
        ("[3]", "object 1"),
        ('{"cat": ["a"]}\n{"zebra": [', "line 2: not readable JSON"),
    ],
)
def test_answers_in_no_form_are_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserError, match=r"answers\.txt") as caught:
        parsed(tmp_path, text)
    assert words in str(caught.value)


def test_answers_about_other_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'zebra'"):
        check_answers([("zebras", "stripes")], CLASSES)
    (tmp_path / "a").write_bytes(b"cat: \xff")
    with pytest.raises(UserError, match="not a readable text file"):
        read_answers(tmp_path / "a", CLASSES)


def test_the_texts_of_the_repository_are_read() -> None:
    file = Path(__file__).parents[2] / "research/results/texts.json"
    assert len(read_texts(str(file))) == 56
