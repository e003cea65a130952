"""What counts as done, by the files alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from rmadapter.bench.board import Board, answers
from rmadapter.bench.protocols import Run, expand
from rmadapter.errors import UserError
from rmadapter.files import write_json

CONFIG: dict[str, Any] = {"seed": 1, "method": {"name": "mma", "rank": 4}, "shared": {"views": 0}}


@pytest.fixture
def run() -> Run:
    [run] = expand("base-to-novel", ["colors"], ["mma"], [1])
    return run


def write(out: Path, run: Run, status: str, **more: Any) -> Path:
    write_json(out / run.path, {"status": status, "config": CONFIG, "key": "k", **more})
    return out / run.path


@pytest.mark.parametrize(("status", "done"), [("finished", True), ("not-applicable", True), ("failed", False)])
def test_what_is_done_when_we_come(run: Run, tmp_path: Path, status: str, done: bool) -> None:
    assert Board(tmp_path, [run]).left() == [run]
    write(tmp_path, run, status)
    assert Board(tmp_path, [run]).settled(run) == done


def test_a_damaged_record_is_none(run: Run, tmp_path: Path) -> None:
    path = write(tmp_path, run, "finished")
    for text in (path.read_text()[:20], "[]", "", "3"):
        path.write_text(text)
        assert Board(tmp_path, [run]).left() == [run]


def test_what_fails_while_we_are_here_is_not_tried_again(run: Run, tmp_path: Path) -> None:
    board = Board(tmp_path, [run])
    path = write(tmp_path, run, "failed")
    assert board.left() == []
    os.utime(path, ns=(1, 1))
    board = Board(tmp_path, [run])  # the next command does try it
    assert board.left() == [run]
    write(tmp_path, run, "failed")
    assert board.left() == []


def test_news_are_told_once(run: Run, tmp_path: Path) -> None:
    board = Board(tmp_path, [run])
    assert list(board.news()) == []
    write(tmp_path, run, "finished", seconds=3)
    assert [record["seconds"] for record in board.news()] == [3]
    assert list(board.news()) == []


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({**CONFIG, "seed": 2}, "another seed"),
        ({**CONFIG, "method": {"name": "mma", "rank": 8}}, "another method.rank"),
        ({**CONFIG, "method": {"name": "mma"}}, "another method.rank"),
        ({**CONFIG, "method": {"name": "mma", "rank": 4, "alpha": 1}}, "another method.alpha"),
        ({}, "another seed"),
    ],
)
def test_an_answer_of_another_configuration_is_refused(
    run: Run, tmp_path: Path, config: dict[str, Any], named: str
) -> None:
    path = write(tmp_path, run, "finished")
    Board(tmp_path, [run]).check([CONFIG])
    with pytest.raises(UserError, match=f"{path} is a run with {named}: choose another --out"):
        Board(tmp_path, [run]).check([config])
    write(tmp_path, run, "failed")  # what has no answer may be done otherwise
    Board(tmp_path, [run]).check([config])


def test_answers_by_key(run: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text("no record")
    assert answers(tmp_path) == {}
    path = write(tmp_path, run, "finished")
    assert answers(tmp_path) == {"k": path}
    write(tmp_path, run, "failed")
    assert answers(tmp_path) == {}
