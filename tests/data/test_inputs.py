from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from rmadapter.data.formats.registry import find_images
from rmadapter.errors import UserError
from tests.helpers.formats import sample, write_shard


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (
        "b.jpg",
        "a/2.PNG",
        "a/1.png",
        "a/notes.txt",
        "c.mov",
        "d.mov",
        ".DS_Store",
        "a/.t/x.png",
        "README",
    ):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    return Path("photos")


def names(words: list[str], **more: object) -> list[str]:
    return [path.as_posix() for path in find_images(words, **more).files]  # type: ignore[arg-type]


def lines(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))


def test_a_folder_is_searched_in_order_and_other_files_are_counted(photos: Path) -> None:
    found = find_images(["photos"])
    expected = ["photos/a/1.png", "photos/a/2.PNG", "photos/b.jpg"]
    assert [path.as_posix() for path in found.files] == expected
    assert found.note == "5 files ignored: .mov 2, .txt 1, hidden 1, no suffix 1"
    assert found.folders == [photos]
    assert find_images(["photos/b.jpg"]).note == ""


def test_labels_in_shards_and_the_shards_themselves_are_not_ignored_files(tmp_path: Path) -> None:
    write_shard(tmp_path / "set/0.tar", **sample(0, "cat", "0"), **sample(1, "dog", "1"))
    (tmp_path / "set/notes.txt").write_text("x")
    found = find_images([str(tmp_path / "set")])
    assert [path.name for path in found.files] == ["000000.png", "000001.png"]
    assert found.note == "1 file ignored: .txt 1"


def test_named_files_keep_their_order(photos: Path) -> None:
    assert names(["photos/b.jpg", "photos/a", "photos/gone.jpg"]) == [
        "photos/b.jpg", "photos/a/1.png", "photos/a/2.PNG", "photos/gone.jpg",
    ]  # fmt: skip
    # named by the user: told when it is opened
    assert names(["photos/a/notes.txt"]) == ["photos/a/notes.txt"]


def test_patterns(photos: Path) -> None:
    assert names(["photos/*.jpg"]) == ["photos/b.jpg"]
    assert names(["photos/*"]) == ["photos/a/1.png", "photos/a/2.PNG", "photos/b.jpg"]
    deep = find_images(["photos/**"])
    expected = ["photos/a/1.png", "photos/a/2.PNG", "photos/b.jpg"]
    assert [path.as_posix() for path in deep.files] == expected
    assert deep.folders == [photos]
    assert deep.note == "4 files ignored: .mov 2, .txt 1, no suffix 1"
    (photos / "[1].png").write_bytes(b"x")
    assert names(["photos/[1].png"]) == ["photos/[1].png"]  # a file of that name comes first


def test_stdin(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines(monkeypatch, b"photos/b.jpg\r\n\nphotos/a\nphotos/caf\xe9.png\n")
    found = names(["-"])
    assert found[:3] == ["photos/b.jpg", "photos/a/1.png", "photos/a/2.PNG"]
    assert os.fsencode(found[3]) == b"photos/caf\xe9.png"
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UserError, match="-: no image"):
        find_images(["-"])


def test_tables_name_paths_relative_to_their_folder(photos: Path) -> None:
    table = photos / "list.csv"
    table.write_text("id,filename,other\n1,b.jpg,a/1.png\n2,a/2.PNG,b.jpg\n")
    assert names([str(table)]) == ["photos/b.jpg", "photos/a/2.PNG"]
    (photos / "list.tsv").write_text(table.read_text().replace(",", "\t"))
    assert names([str(photos / "list.tsv")]) == ["photos/b.jpg", "photos/a/2.PNG"]
    assert names([str(table)], column="other") == ["photos/a/1.png", "photos/b.jpg"]
    table.write_text("image,path\n../x.jpg,b.jpg\n")
    assert names([str(table)]) == ["photos/b.jpg"]
    assert names([str(table)], column="image", outside=True) == ["photos/../x.jpg"]
    for text, column, hint in (
        ("image,path\n../x.jpg,b.jpg\n", "image", "line 2: '../x.jpg' lies outside"),
        ("image\n", "", "has no rows"),
        ("image,x\n,2\n", "", "line 2: the path is empty"),
        ("image\nhttps://x.org/a.jpg\n", "", "is a web address"),
        ("name\nb.jpg\n", "", r"\(name\) is called path or .* --image-column"),
        ("image\nb.jpg\n", "imag", r"none of its columns \(image\) is called 'imag'"),
        ('image\n"b.jpg\n', "", "not a readable CSV"),
    ):
        table.write_text(text)
        with pytest.raises(UserError, match=hint):
            find_images([str(table)], column)


def test_parquet(photos: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.table({"image": ["b.jpg", "a/1.png"]}), photos / "list.parquet")
    assert names(["photos/list.parquet"]) == ["photos/b.jpg", "photos/a/1.png"]


def test_invalid_input_is_refused(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (photos / "empty").mkdir()
    lines(monkeypatch, b"http://x.org/a.jpg\n")
    for word, hint in (
        ("https://x.org/a.jpg", "'https://x.org/a.jpg': a web address"),
        ("-", "'http://x.org/a.jpg': a web address"),
        ("photos/empty", "photos/empty: no images in a supported format"),
        ("photos/*.mov", r"photos/\*.mov: no images .*: \.mov 2"),
        ("photos/*.bmp", "no file matches this pattern"),
    ):
        with pytest.raises(UserError, match=hint):
            find_images(["photos/b.jpg", word] if "bmp" in hint or "pattern" in hint else [word])
    assert find_images(["photos/empty", "photos/*.bmp"], none=True).files == []
