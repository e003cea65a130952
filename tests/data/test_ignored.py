"""What is said of files that are not read."""

from __future__ import annotations

from collections import Counter

import pytest

from rmadapter.data.ignored import advice, ignored_note


def test_files_are_counted_by_kind_the_most_frequent_first() -> None:
    assert ignored_note(Counter({".txt": 2, "hidden": 3})) == "5 files ignored: hidden 3, .txt 2"
    assert ignored_note(Counter({".txt": 1})) == "1 file ignored: .txt 1"
    assert ignored_note(Counter()) == ""


def test_photos_that_could_be_read_come_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rmadapter.data.ignored.formats", dict)  # as without pillow-heif
    text = ignored_note(Counter({".heic": 3, ".cr2": 1, ".txt": 2}))
    assert text == (
        "6 files ignored: .heic 3, .txt 2, .cr2 1; pip install 'rmadapter[heic]' to read .heic; "
        ".cr2 is a camera's RAW format: convert it to JPEG first"
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a/IMG_1.HEIC", "to read .heic"),
        ("b.NEF", "RAW format"),
        (".dng", "RAW format"),
        ("c.jpg", ""),
        ("raw", ""),
    ],
)
def test_advice_follows_the_suffix(name: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rmadapter.data.ignored.formats", lambda: {".heif": "HEIF"})
    assert advice("d.heif") == ""  # it could be read: this file is damaged
    assert (words in advice(name)) if words else advice(name) == ""
