"""Rows of class and path, as they are written, before any file is opened."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rmadapter.data.formats.base import Row, order, split_named
from rmadapter.data.formats.class_folders import scan_folder
from rmadapter.data.formats.tables import scan_table
from rmadapter.errors import UserError
from tests.hostile import tables


def plant(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"not opened")
    return root


def test_class_folders_are_rows_in_order(tmp_path: Path) -> None:
    plant(
        tmp_path,
        "b/2.png",
        "b/1.JPG",
        "A/deep/er/3.png",
        "A/notes.txt",
        ".cache/x.png",
        "__MACOSX/y.png",
    )
    found = scan_folder(tmp_path)
    assert list(found) == ["all"]
    rows = [(row.label, row.image.relative_to(tmp_path).as_posix()) for row in found["all"]]
    assert rows == [("A", "A/deep/er/3.png"), ("b", "b/1.JPG"), ("b", "b/2.png")]


def test_split_folders_under_any_of_their_names(tmp_path: Path) -> None:
    plant(tmp_path, "Train/a/1.png", "valid/a/2.png", "TEST/a/3.png")
    assert list(scan_folder(tmp_path)) == ["train", "val", "test"]
    plant(tmp_path, "validation/a/4.png")
    with pytest.raises(UserError, match="second folder for the split 'val'"):
        scan_folder(tmp_path)


def test_splits_by_a_part_of_their_names_are_not_classes(tmp_path: Path) -> None:
    plant(tmp_path, "Training/a/1.png", "Testing/a/2.png")
    assert [*scan_folder(tmp_path)] == ["train", "test"]
    plant(tmp_path / "b", "seg_train/a/1.png", "seg_test/a/2.png")
    with pytest.raises(UserError, match="'seg_test' and the others seem to be splits: rename them"):
        scan_folder(tmp_path / "b")
    plant(tmp_path / "c", "crash_test/1.png", "freight_train/1.png")  # classes
    expected = ["crash_test", "freight_train"]
    assert [row.label for row in scan_folder(tmp_path / "c")["all"]] == expected
    assert split_named("pets-training-0.tar") == "train"
    with pytest.raises(UserError, match=r"stress-test-train-0\.tar: its name says test and train"):
        split_named("stress-test-train-0.tar")


def test_folders_of_systems_hold_no_data(tmp_path: Path) -> None:
    plant(
        tmp_path,
        "cat/1.png",
        "cat/@eaDir/1.png",
        "dog/1.png",
        "@eaDir/2.png",
        "System Volume Information/3.png",
    )
    found = [row.image.relative_to(tmp_path).as_posix() for row in scan_folder(tmp_path)["all"]]
    assert found == ["cat/1.png", "dog/1.png"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="needs to become another user")
def test_a_folder_that_may_not_be_entered_gives_an_error(tmp_path: Path) -> None:
    plant(tmp_path, "cat/1.png", "dog/1.png")
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    (tmp_path / "dog").chmod(0)
    os.seteuid(65534)
    try:
        with pytest.raises(UserError, match="dog: cannot be read"):
            scan_folder(tmp_path)
    finally:
        os.seteuid(0)


def test_a_run_folder_is_no_class(tmp_path: Path) -> None:
    """After `fit DATA --out DATA/run` the data can be read again."""
    plant(tmp_path, "cat/1.png", "dog/2.png", "train/3.png")
    for folder, name in (("run", "run.json"), ("stopped", "split.json"), ("train", "run.json")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_text("{}")
    # one has an image
    assert [row.label for row in scan_folder(tmp_path)["all"]] == ["cat", "dog", "train"]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    plant(tmp_path, "train/1.png", "bus/2.png")
    assert list(scan_folder(tmp_path)) == ["all"]


def test_splits_beside_classes_are_refused(tmp_path: Path) -> None:
    plant(tmp_path, "train/cat/1.png", "test/cat/2.png", "dog/3.png")
    with pytest.raises(UserError, match="holds 'test' beside 'dog': keep either splits or classes"):
        scan_folder(tmp_path)
    (tmp_path / "dog").rename(tmp_path / "vall")
    with pytest.raises(UserError, match=r"holds 'test' beside 'vall' \(did you mean 'val'\?\)"):
        scan_folder(tmp_path)


def test_links_to_other_classes_are_not_followed(tmp_path: Path) -> None:
    plant(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "across").symlink_to(tmp_path / "b")
    assert [name for name, *_ in scan_folder(tmp_path)["all"]] == ["a", "b"]


def test_a_csv_keeps_its_order(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("label,path,split\nb,2.png,test\na,1.png,train\nb,0.png,train\n")
    found = scan_table(table)
    expected = {"test": ["b"], "train": ["a", "b"]}
    assert {split: [row.label for row in rows] for split, rows in found.items()} == expected


def test_groups_and_columns_of_other_names(tmp_path: Path) -> None:
    table = tmp_path / "t.tsv"
    table.write_text(
        "group\tclass\tfile\tpatient\tsubset\na\tcat\t1.png\tp1\tTrain\nb\tdog\t2.png\t\tvalid\n"
    )
    rows = {
        "train": [Row("cat", tmp_path / "1.png", "a")],
        "val": [Row("dog", tmp_path / "2.png", "b")],
    }
    assert scan_table(table) == rows
    found = scan_table(table, columns={"image": "", "group": "patient", "label": "group"})
    assert found == {
        "train": [Row("a", tmp_path / "1.png", "p1")],
        "val": [Row("b", tmp_path / "2.png")],
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,species\na,b\n", r"none of its columns \(file, species\) is called label or class"),
        ("path,label\n,b\n", "line 2: the path is empty"),
        ("path,label\na,\n", "line 2: the label is empty"),
        ("path,label\nhttp://x/a.png,b\n", "line 2: .* is a web address"),
        ("path,label,split\na,b,dev\n", "split is 'dev': write train, val or test"),
        ("path,label\n", "has no rows"),
        ('path,label\n"a,b\n', "not a readable CSV file"),
    ],
)
def test_unclear_csv_files_are_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UserError, match=words):
        scan_table(tmp_path / "t.csv")


def test_names_are_ordered_without_case() -> None:
    expected = ["A", "a", "b", "Z", "e\u0301", "\u00e9"]
    assert sorted(["b", "A", "a", "\u00e9", "e\u0301", "Z"], key=order) == expected


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret.png", "a/../../secret.png"])
def test_csv_paths_outside_the_folder_must_be_allowed(tmp_path: Path, name: str) -> None:
    (tmp_path / "t.csv").write_text(f"path,label\na/1.png,a\n{name},b\n")
    with pytest.raises(UserError, match=r"t\.csv, line 3: .* lies outside .*--allow-outside"):
        scan_table(tmp_path / "t.csv")
    assert scan_table(tmp_path / "t.csv", outside=True)["all"][1] == Row("b", tmp_path / name)


@pytest.mark.parametrize(
    ("name", "text", "labels"),
    [
        ("t.csv", "path,labels\n1.png,cat; cat;\n2.png,|dog\n", ["cat", "dog"]),
        ("t.csv", "path,label\n1.png,black;white\n2.png,a|b\n", ["black;white", "a|b"]),
        ("t.csv", "path,label,labels\n1.png,one,x;y\n2.png,two,z\n", ["one", "two"]),
        (
            "t.jsonl",
            '{"path": "1.png", "label": ["a;b"]}\n{"path": "2.png", "label": "c"}',
            ["a;b", "c"],
        ),
    ],
)  # fmt: skip
def test_a_row_has_one_label(tmp_path: Path, name: str, text: str, labels: list[str]) -> None:
    (tmp_path / name).write_text(text)
    assert [row.label for row in scan_table(tmp_path / name)["all"]] == labels


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "path,labels\n1.png,cat;dog\n"),
        ("t.csv", "path,labels\n1.png,cat|dog\n"),
        ("t.jsonl", '{"path": "1.png", "label": ["cat", "dog"]}'),
    ],
)
def test_a_row_with_several_labels_is_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=f"{name}, line .*'cat'.*'dog'"):
        scan_table(tmp_path / name)


@pytest.mark.parametrize("line", ["1.png, ;|", "1.png,"])
def test_a_cell_of_separators_alone_is_no_label(tmp_path: Path, line: str) -> None:
    (tmp_path / "t.csv").write_text(f"path,labels\n{line}\n")
    with pytest.raises(UserError, match="line 2: the label is empty"):
        scan_table(tmp_path / "t.csv")


def outcome(path: Path) -> str:
    try:
        rows = [row for rows in scan_table(path).values() for row in rows]
    except UserError as error:
        return str(error)
    assert all(row.label and row.image.is_relative_to(path.parent) for row in rows)
    return ""


def test_hostile_tables_are_read_or_refused(tmp_path: Path) -> None:
    told = {}
    for name, content in tables.cases(seed=1, count=150):
        (tmp_path / "table.csv").write_bytes(content)
        told[name] = outcome(tmp_path / "table.csv")
    assert max(map(len, told.values())) < 500
    assert 0 < sum(text == "" for text in told.values()) < 150


@pytest.mark.parametrize("closed", ["", "cat", "cat/sub"])
def test_unreadable_folders(tmp_path: Path, closed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in for the system, whose root may read everything."""
    plant(tmp_path, "cat/1.png", "cat/sub/2.png", "dog/3.png")
    barred = str(tmp_path / closed)

    def refuse(given: Callable[[Any], Any], path: Any) -> Any:
        if os.fspath(path) == barred:
            raise PermissionError(13, "Permission denied", barred)
        return given(path)

    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, partial(refuse, getattr(os, name)))
    with pytest.raises(UserError, match=f"^{barred}: cannot be read .Permission denied.$"):
        scan_folder(tmp_path)
