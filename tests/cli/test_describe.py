"""The verb describe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rmadapter.artifacts.record import read_record
from rmadapter.backbones import Backbone
from rmadapter.data.texts import read_texts
from tests.helpers.shell import Command, refused, rmadapter

__all__ = ["rmadapter"]  # fixture

NAMES = "cat,Sea_Horse"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "texts.json"


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


def test_questions_are_answered_and_used(
    rmadapter: Command, colors: Path, out: Path, tiny_clip: Backbone, tmp_path: Path
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
    facts = rmadapter.json("describe", colors, "--out", out, "--answers", answers, "--model", "Q")
    assert facts["answers"]["texts"] == facts["classes"] == len(names)
    assert facts["answers"]["missing"] == facts["answers"]["unknown"] == []
    stored = json.loads(out.read_text(encoding="utf-8"))
    assert [one["who"] for one in stored["sources"]] == ["Q"]
    assert {*read_texts(str(out))} == {*names}
    refused(rmadapter("describe", colors, "--out", out), "every class has texts already")
    fit = ["fit", colors, "--method", "zero-shot-descriptions", "--set", f"descriptions={out}"]
    few = ["--backbone", tiny_clip.name, "--shots", 4, "--folds", 0]
    rmadapter.done(*fit, *few, "--out", tmp_path / "run")
    record = read_record(tmp_path / "run/run.json")
    assert record.method.settings["descriptions"] == str(out)


def test_problems_of_answers_are_noted(rmadapter: Command, out: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers.txt"
    answers.write_text("cat: it purrs\ncat: it purrs\ndog: it barks\n")
    words = ["describe", NAMES, "--out", out, "--answers", answers]
    done = rmadapter.done(*words)
    for hint in ("'dog'", "'it purrs'", "'Sea Horse'"):
        assert hint in done.err
    assert read_texts(str(out)) == {"cat": ["it purrs"]}
    left = rmadapter.json("describe", NAMES, "--out", out)
    assert left["classes"] == ["Sea Horse"]
    answers.write_text('{"sea-horse": ["it swims"]}')
    rmadapter.done(*words)
    assert read_texts(str(out)) == {"cat": ["it purrs"], "sea horse": ["it swims"]}


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ([], "--out texts.json"),
        (["--out", "texts.txt"], "--out texts.json"),
        (["--out", "t.json", "--model", "m"], "--answers"),
        (["--out", "t.json", "--form", "sentence"], "'sentences'"),
        (["--out", "t.json", "--question", "What?"], "{}"),
        (["--out", "t.json", "--answers", "missing.txt"], "missing.txt"),
    ],
)
def test_what_makes_no_sense_is_refused(
    rmadapter: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    word: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(rmadapter("describe", "cat,dog", *options), word)
    assert [*tmp_path.iterdir()] == []


def test_many_names_are_no_path(rmadapter: Command, out: Path) -> None:
    names = ",".join(f"class {number}" for number in range(1000))
    assert len(rmadapter.json("describe", names, "--out", out)["classes"]) == 1000
    refused(rmadapter("describe", "cat,cat", "--out", out), "'cat'")
    refused(rmadapter("describe", " , ", "--out", out), "name at least one class")
