"""Rules that all formats share: names, listed paths, and notes on files that are not read."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from rmadapter.data.formats.base import check_inside, ignored_note, listed_image
from rmadapter.data.names import order, split_named
from rmadapter.errors import UserError


def test_names_are_ordered_without_case() -> None:
    expected = ["A", "a", "b", "Z", "e\u0301", "\u00e9"]
    assert sorted(["b", "A", "a", "\u00e9", "e\u0301", "Z"], key=order) == expected


def test_the_name_of_a_file_says_its_split() -> None:
    assert split_named("pets-training-0.tar") == "train"
    with pytest.raises(UserError, match=r"stress-test-train-0\.tar: named as of test and train"):
        split_named("stress-test-train-0.tar")


def test_listed_paths_must_stay_in_their_folder() -> None:
    for name in ("a.png", "a/b/..c.png", "..a/b.png", "~x/a.png"):
        check_inside(name, "list.csv")
    for name in ("/etc/passwd", "../a.png", "a/../../b.png", ".."):
        with pytest.raises(UserError, match=r"^list\.csv: .* lies outside"):
            check_inside(name, "list.csv")
        check_inside(name, "list.csv", outside=True)
    for name in ("", "a\0b", "http://x/a.png"):
        with pytest.raises(UserError, match=r"^line 2: "):
            listed_image(Path(), "line 2", name, outside=True)


@pytest.mark.skipif(os.sep == "\\", reason="there a backslash separates folders")
def test_a_path_of_windows_is_explained_unless_a_file_has_that_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^line 2: .*dog0\.jpg.* / instead of \\"):
        listed_image(tmp_path, "line 2", "pics\\dog0.jpg")
    (tmp_path / "pics\\dog0.jpg").touch()
    image = listed_image(tmp_path, "line 2", "pics\\dog0.jpg")
    assert image == tmp_path / "pics\\dog0.jpg"


@pytest.mark.parametrize(
    ("counts", "note"),
    [
        ({".txt": 2, "hidden": 3}, "5 files ignored: hidden 3, .txt 2"),
        ({".txt": 1}, "1 file ignored: .txt 1"),
        ({}, ""),
        (
            {".heic": 3, ".cr2": 1, ".txt": 2},
            "6 files ignored: .heic 3, .txt 2, .cr2 1; pip install pillow-heif to read .heic; "
            ".cr2 is a camera's RAW format: convert it to JPEG first",
        ),
    ],
)
def test_ignored_files_are_counted_with_advice(
    counts: dict[str, int], note: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rmadapter.data.decode.image_formats", dict)  # as without pillow-heif
    assert ignored_note(Counter(counts)) == note
