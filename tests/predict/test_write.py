"""Files of answers: their formats, and how an interrupted one is resumed."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest

from rmadapter.errors import UserError
from rmadapter.predict.answer import Row
from rmadapter.predict.write import AnswerFile, only_writer
from tests.helpers.shell import limited_file_size

COLUMNS = ["image", "label", "probability", "unsure"]


def row(image: str, label: str = "sea_horse") -> Row:
    return {"image": image, "label": label, "probability": 0.75, "unsure": label == "unsure"}


def started(path: Path, key: str = "k") -> AnswerFile:
    file = AnswerFile(path, COLUMNS, key)
    file.open()
    return file


def test_csv_and_json_lines(tmp_path: Path) -> None:
    rows = [
        row("a,b.png"),
        row("caf\udce9.png", "unsure"),
        {"image": "c.png", "bad": "c.png: not an image"},
    ]
    for suffix in (".csv", ".jsonl"):
        file = started(tmp_path / f"answers{suffix}")
        file.write(rows)
        assert not file.path.exists()
        file.finish()
        assert not file.partial.exists()
    with open(tmp_path / "answers.csv", newline="", encoding="utf-8") as text:
        assert list(csv.reader(text)) == [
            COLUMNS,
            ["a,b.png", "sea_horse", "0.75", "false"],
            ["caf\\udce9.png", "unsure", "0.75", "true"],
        ]  # fmt: skip
    lines = (tmp_path / "answers.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows[:2]


def test_csv_has_no_formula_and_paths_still_work(tmp_path: Path) -> None:
    file = started(tmp_path / "answers.csv")
    file.write([row("=1+1.png", '=HYPERLINK("http://x")'), row("-x/a.png")])
    file.finish()
    with open(tmp_path / "answers.csv", newline="", encoding="utf-8") as text:
        cells = [line[:2] for line in csv.reader(text)][1:]
    assert cells == [["./=1+1.png", '\'=HYPERLINK("http://x")'], ["./-x/a.png", "sea_horse"]]


def test_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [row("a.png") | {"unfamiliar": 0.5}, row("b.png") | {"unfamiliar": 1.0}]
    file = AnswerFile(tmp_path / "answers.parquet", [*COLUMNS, "unfamiliar"], "k")
    file.open()
    file.write(rows)
    file.finish()
    assert parquet.read_table(file.path).to_pylist() == rows


def test_interrupted_file_is_resumed(tmp_path: Path) -> None:
    out = tmp_path / "new" / "answers.csv"
    started(out).write([row("a.png"), row("a.png"), {"image": "bad.png", "bad": "bad.png: no"}])
    with open(out.with_name("answers.csv.partial"), "a") as file:
        file.write('{"image": "b.png", "lab')  # what a kill leaves
    again = started(out)
    images = [Path(name) for name in ("a.png", "b.png", "a.png", "bad.png", "a.png")]
    assert again.missing(images) == [Path("b.png"), Path("a.png")]  # the third a.png has no row yet
    with pytest.raises(UserError, match=r"csv\.partial: .* a\.png"):
        again.missing([Path("c.png"), Path("b.png")])
    assert again.missing([Path("b.png")], moved=True) == [Path("b.png")]  # the others were moved
    assert again.missing([Path("a.png")] * 2) == []  # a bad file needs no row
    again.write([row("b.png")])
    again.finish()
    assert [line.split(",")[0] for line in out.read_text("utf-8").splitlines()[1:]] == [
        "a.png",
        "a.png",
        "b.png",
    ]


def test_partial_file_is_the_same_on_every_system(tmp_path: Path) -> None:
    """With line ends that text files of Windows do not have: it is read as bytes."""
    started(tmp_path / "a.csv").write([row("a.png")])
    assert b"\r" not in (tmp_path / "a.csv.partial").read_bytes()


def test_refused_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "answers.csv"
    started(out).write([row("a.png")])
    with pytest.raises(UserError, match=r"answers\.csv\.partial"):
        started(out, "other")
    with open(out.with_name("answers.csv.partial"), "a") as file:
        file.write('{"image": 3}\n')
    with pytest.raises(UserError, match="line 3"):
        started(out)
    out.write_text("mine")
    with pytest.raises(UserError, match=r"answers\.csv:"):
        started(out)
    with pytest.raises(UserError, match=r"ends in \.csv, \.jsonl, \.parquet"):
        started(tmp_path / "answers.xlsx")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match="pyarrow"):
        started(tmp_path / "answers.parquet")
    assert not list(tmp_path.glob("*.parquet*"))


def test_full_disk_loses_no_written_row(tmp_path: Path) -> None:
    file = started(tmp_path / "answers.csv")
    file.write([row("a.png")])
    with limited_file_size(400), pytest.raises(UserError, match=r"answers\.csv\.partial"):
        file.write([row(f"{i}.png") for i in range(50)])
    again = started(tmp_path / "answers.csv")
    assert again.done["a.png"] == 1
    assert again.done.total() < 10


def test_file_is_locked_for_one_process(tmp_path: Path) -> None:
    with only_writer(tmp_path / "a.csv"):
        with pytest.raises(UserError, match=r"a\.csv"), only_writer(tmp_path / "a.csv"):
            pass
        with only_writer(tmp_path / "b.csv"):
            pass
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"a\.csv"), only_writer(tmp_path / "file/a.csv"):
        pass
