"""The verb describe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rmadapter.artifacts.record import read_record
from rmadapter.backbones import Backbone
from rmadapter.data.texts import read_texts
from rmadapter_research.chat import KEY
from tests.helpers.chat_server import Model, model
from tests.helpers.shell import Command, refused, rmadapter

__all__ = ["model", "rmadapter"]  # fixtures

NAMES = "cat,Sea_Horse"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "texts.json"


@pytest.fixture
def tiny(tiny_clip: Backbone) -> list[object]:
    return ["--backbone", tiny_clip.name]


def answer_all(path: Path, folder: Path) -> Path:
    """Answer a file of questions, the last first."""
    lines = path.read_text(encoding="utf-8").splitlines()
    answers = []
    for line in reversed(lines):
        name = json.loads(line)["class"]
        answers.append({"class": name, "answer": f"1. a {name}\n2. one more {name}"})
    file = folder / "answers.jsonl"
    file.write_text("\n".join(map(json.dumps, answers)), encoding="utf-8")
    return file


def test_questions_are_answered_measured_and_used(
    rmadapter: Command, colors: Path, out: Path, tiny: list[object], tmp_path: Path
) -> None:
    asked = rmadapter.done("describe", colors, "--out", out)
    questions = tmp_path / "texts.questions.jsonl"
    assert str(questions) in asked.out
    assert not out.exists()
    names = [json.loads(line)["class"] for line in questions.read_text().splitlines()]
    pasted = (tmp_path / "texts.questions.txt").read_text()
    assert all(f"- {name}\n" in pasted for name in names)
    refused(rmadapter("describe", colors, "--out", out), "texts.questions.txt: already exists")
    answers = answer_all(questions, tmp_path)
    words = ["describe", colors, "--out", out, *tiny]
    more = ["--answers", answers, "--model", "Q", "--measure", "--shots", 4]
    facts = rmadapter.json(*words, *more)
    assert facts["answers"]["texts"] == facts["classes"] == len(names)
    assert facts["answers"]["missing"] == facts["answers"]["unknown"] == []
    assert facts["measured"]["images"] == 4 * len(names)
    assert facts["measured"]["shots"] == 4
    stored = json.loads(out.read_text(encoding="utf-8"))
    assert stored["measured"] == facts["measured"]
    assert [one["who"] for one in stored["sources"]] == ["Q"]
    assert {*read_texts(str(out))} == {*names}
    refused(rmadapter("describe", colors, "--out", out), "every class has texts already")
    done = rmadapter.done(*words, "--measure", "--shots", 4)
    assert "4 folds" in done.out
    assert "prompts alone" in done.out
    fit = ["fit", colors, "--method", "zero-shot-descriptions", "--set", f"descriptions={out}"]
    rmadapter.done(*fit, *tiny, "--out", tmp_path / "run", "--shots", 4, "--folds", 0)
    record = read_record(tmp_path / "run/run.json")
    assert record.method.settings["descriptions"] == str(out)
    assert record.split_digest == facts["measured"]["split_digest"]


def test_problems_of_answers_are_noted(
    rmadapter: Command, out: Path, tiny: list[object], tmp_path: Path
) -> None:
    answers = tmp_path / "answers.txt"
    long = " ".join(["fur"] * 100)
    answers.write_text(f"cat: {long}\ncat: it purrs\ncat: it purrs\ndog: it barks\n")
    words = ["describe", NAMES, "--out", out, "--answers", answers, *tiny]
    done = rmadapter.done(*words)
    assert "1 text fills the" in done.err
    for hint in ("'dog'", "'it purrs'", "'Sea Horse'"):
        assert hint in done.err
    assert read_texts(str(out)) == {"cat": [long, "it purrs"]}
    left = rmadapter.json("describe", NAMES, "--out", out)
    assert left["classes"] == ["Sea Horse"]
    answers.write_text('{"sea-horse": ["it swims"]}')
    rmadapter.done(*words, "--quiet")
    assert read_texts(str(out)) == {"cat": [long, "it purrs"], "sea horse": ["it swims"]}


def test_asking_goes_on_where_it_stopped(
    rmadapter: Command, model: Model, out: Path, tiny: list[object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv(KEY, "secret")
    model.answers = ["- it purrs\n- it sleeps", 400]
    words = ["describe", NAMES, "--out", out, "--ask", model.url, "--model", "m", *tiny]
    refused(rmadapter(*words, "--quiet"), "status 400")
    assert not out.exists()
    partial = out.with_name("texts.json.partial")
    partial.write_text(partial.read_text() + '{"class": "Sea Hor')  # a killed process
    model.answers = ["It swims."]
    facts = rmadapter.json(*words)
    assert facts["answers"]["texts"] == 2
    asked = [str(request.body["messages"]) for request in model.requests]
    assert ['"cat"' in text for text in asked] == [True, False, False]
    assert read_texts(str(out)) == {"cat": ["it purrs", "it sleeps"], "sea horse": ["It swims."]}
    assert [one.name for one in out.parent.iterdir()] == ["texts.json"]
    stored = out.read_text(encoding="utf-8")
    assert "secret" not in stored
    assert json.loads(stored)["sources"][0]["who"] == f"m at {model.url}"
    refused(rmadapter(*words), "every class has texts already")


def test_another_question_begins_again(
    rmadapter: Command, model: Model, out: Path, tiny: list[object]
) -> None:
    model.answers = ["it purrs", 400]
    words = ["describe", NAMES, "--out", out, "--ask", model.url, "--model", "m", *tiny]
    refused(rmadapter(*words, "--quiet"), "status 400")
    model.answers = ["fur"]
    rmadapter.done(*words, "--question", "What covers a {}?")
    assert "What covers a" in str(model.requests[2].body["messages"])
    assert read_texts(str(out)) == {"cat": ["fur"], "sea horse": ["fur"]}


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ([], "--out texts.json"),
        (["--out", "texts.txt"], "--out texts.json"),
        (["--out", "t.json", "--ask", "http://localhost:1"], "--model"),
        (["--out", "t.json", "--ask", "x", "--answers", "a", "--model", "m"], "only one"),
        (["--out", "t.json", "--model", "m"], "--answers"),
        (["--out", "t.json", "--form", "sentence"], "'sentences'"),
        (["--out", "t.json", "--question", "What?"], "{}"),
        (["--out", "t.json", "--measure"], "cat,dog"),
        (["--out", "t.json", "--answers", "missing.txt"], "missing.txt"),
    ],
)
def test_what_makes_no_sense_is_refused(
    rmadapter: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: list[object],
    options: list[str], word: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    refused(rmadapter("describe", "cat,dog", *options, *tiny), word)
    assert [*tmp_path.iterdir()] == []


def test_many_names_are_no_path(rmadapter: Command, out: Path, colors: Path) -> None:
    names = ",".join(f"class {number}" for number in range(1000))
    assert len(rmadapter.json("describe", names, "--out", out)["classes"]) == 1000
    refused(rmadapter("describe", "cat,cat", "--out", out), "'cat'")
    refused(rmadapter("describe", " , ", "--out", out), "name at least one class")
    refused(rmadapter("describe", colors, "--out", out.with_name("t.json"), "--measure"), "t.json")
