"""tools/lines.py: lines are added and read back, and the words of a study are understood."""

from __future__ import annotations

from pathlib import Path

import pytest
from lines import keep, kept, parser


def test_lines_are_added_and_read_back(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    assert kept(file) == []
    keep(file, [{"data": "größe", "seed": 1}])
    keep(file, [{"seed": 2}, {"seed": 3}])
    assert kept(file) == [{"data": "größe", "seed": 1}, {"seed": 2}, {"seed": 3}]
    assert len(file.read_text().splitlines()) == 3


def test_the_words_of_a_study(capsys: pytest.CaptureFixture[str]) -> None:
    found = parser("What\n  it is", ("a", "b")).parse_args(["--out", "x"])
    assert (found.data, found.root, found.out, found.tables) == (
        ["a", "b"],
        Path(),
        Path("x"),
        False,
    )
    assert found.seeds == [1, 2, 3]
    found = parser("", ("a",)).parse_args(
        ["c", "--root", "r", "--out", "x", "--tables", "--seeds", "4", "5"]
    )
    assert (found.data, found.root, found.tables, found.seeds) == (["c"], Path("r"), True, [4, 5])
    assert not hasattr(parser("", ("a",), seeds=False).parse_args(["--out", "x"]), "seeds")
    with pytest.raises(SystemExit):
        parser("What\n  it is", ("a",)).parse_args(["-h"])
    assert "What\n  it is" in capsys.readouterr().out
