"""The images that a visitor brings: kept, left out by name, listed, and never too many."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from rmadapter.data.read import read_images
from rmadapter.deploy.app import images as module
from rmadapter.deploy.app.images import FILES, IMAGES, Shelf, listing, plain, unzipped
from rmadapter.errors import UserError


def png(color: str = "red") -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(data, "PNG")
    return data.getvalue()


def put(shelf: Shelf, label: str, name: str, data: bytes | None = None) -> None:
    path = shelf.folder / f"upload-{plain(name)}"
    path.write_bytes(png() if data is None else data)
    shelf.take(path, label, name)


def packed(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def test_images_become_the_list_that_fit_reads(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    put(shelf, "sea_horse", "../../évil ;name.png")
    put(shelf, " Sea  Horse", "b.png", png("blue"))
    put(shelf, '=zebra, "plain"', "c.png")
    assert [*shelf.classes] == ["sea_horse", '=zebra, "plain"']
    shelf.add_class("alone")
    shelf.write()
    sets = read_images(tmp_path / IMAGES, progress=False)
    assert sets["all"].written == ('=zebra, "plain"', "sea_horse")
    assert sorted(path.name for path in (tmp_path / FILES).iterdir()) == [
        "000001-vil_name.png", "000002-b.png", "000003-c.png",
    ]  # fmt: skip
    assert shelf._bytes == sum(path.stat().st_size for path in (tmp_path / FILES).iterdir())
    shelf.remove("sea_horse")
    assert (
        shelf._bytes == sum(path.stat().st_size for path in (tmp_path / FILES).iterdir()) > 0
    )  # room for others
    assert len([*(tmp_path / FILES).iterdir()]) == len(shelf) == 1
    with pytest.raises(UserError, match="at least two classes"):
        shelf.write()
    shelf.clear()
    assert not list((tmp_path / FILES).iterdir())


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = Shelf(tmp_path)
    with pytest.raises(UserError, match=r"^bad\.png: not an image"):
        put(shelf, "a", "bad.png", b"no")
    for label in ("", " _ ", "x" * 101, "a\0b", "\ud800"):
        with pytest.raises(UserError, match=r"class name must be text|has an empty prompt name"):
            shelf.add_class(label)
    with pytest.raises(UserError, match="no such class"):
        shelf.remove("b")
    monkeypatch.setattr(module, "MOST_IMAGES", 1)
    put(shelf, "a", "a.png")
    with pytest.raises(UserError, match=r"^b\.png: this page takes at most 1 images and 4 GB"):
        put(shelf, "a", "b.png")
    monkeypatch.setattr(module, "MOST_CLASSES", 1)
    with pytest.raises(UserError, match="this page takes at most 1 classes"):
        shelf.add_class("b")
    assert {label: len(shots) for label, shots in shelf.classes.items()} == {"a": 1}


def test_a_zip_with_a_folder_for_each_class(tmp_path: Path) -> None:
    members = {
        f"set/{split}/{label}/1.png": png(label)
        for split in ("train", "test")
        for label in ("red", "blue")
    }
    members |= {"set/train/red/broken.jpg": b"no", "set/train/red/notes.txt": b"x"}
    shelf = Shelf(tmp_path / "home")
    shelf.folder.mkdir()
    told = shelf.take_folder(unzipped(packed(tmp_path / "set.zip", members), tmp_path / "out"))
    assert told == [
        "train/red/broken.jpg: not an image in a supported format",
        "1 file ignored: .txt 1",
    ]
    put(shelf, "red", "more.png", png("yellow"))
    shelf.write()
    sets = read_images(shelf.folder / IMAGES, progress=False)
    assert {split: len(images) for split, images in sets.items()} == {"train": 3, "test": 2}


def test_a_zip_with_the_folder_of_one_class(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "home")
    shelf.folder.mkdir()
    archive = packed(tmp_path / "red.zip", {"red/1.png": png("red"), "red/2.png": png("blue")})
    assert shelf.take_folder(unzipped(archive, tmp_path / "out")) == []
    assert {label: len(shots) for label, shots in shelf.classes.items()} == {"red": 2}


def test_a_list_of_images_with_several_labels_is_refused_before_one_is_taken(
    tmp_path: Path,
) -> None:
    (tmp_path / "set").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "set" / name).write_bytes(png())
    (tmp_path / "set" / IMAGES).write_text("path,labels\na.png,red;round\nb.png,blue\n")
    shelf = Shelf(tmp_path / "home")
    with pytest.raises(UserError, match=r"'red'.*'round'"):
        shelf.take_folder(tmp_path / "set")
    assert not shelf.classes
    assert (tmp_path / "set/a.png").exists()


def test_what_a_shelf_gave_comes_back(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one, two = Shelf(tmp_path / "one"), Shelf(tmp_path / "two")
    put(one, "red/green", "a.png")
    put(one, "blue", "b.png", png("blue"))
    put(one, "red/green", "a.png")
    one.write()
    listed = (one.folder / IMAGES).read_text()
    assert two.take_folder(one.folder) == []
    assert {label: len(shots) for label, shots in two.classes.items()} == {
        "red/green": 2,
        "blue": 1,
    }
    two.write()
    assert (
        two.folder / IMAGES
    ).read_text() == listed  # by the names in the run's record, whatever the order
    put(two, "blue", "c.png", png("blue"))
    (three := Shelf(tmp_path / "three")).folder.mkdir()
    put(three, "blue", "a.png", png("blue"))
    two.write()
    assert three.take_folder(two.folder) == []
    names = (
        "000001-a",
        "000002-a",
        "000002-b",
        "000003-a",
        "000004-c",
    )  # the second was 000001-a, which was taken
    assert sorted(three.files()) == [f"files/{name}.png" for name in names]


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ({"../x.png": b""}, "leads out of its folder"),
        ({"a/b.png": b"\0" * 3000}, "unpacks to more than"),
        ({str(i): b"" for i in range(5)}, "holds 5 files, and at most 4 are allowed"),
        (None, "not a readable zip file"),
        ({"newer": b""}, "not a readable zip file .zip file version 9.9"),
    ],
)
def test_archives_that_mean_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, members: dict[str, bytes] | None, told: str
) -> None:
    monkeypatch.setattr(module, "MOST_ZIP", 2000)
    monkeypatch.setattr(module, "MOST_IMAGES", 2)
    path = tmp_path / "x.zip"
    packed(path, members) if members is not None else path.write_bytes(b"no")
    if members == {"newer": b""}:  # the version that it needs, in its directory
        directory = (data := path.read_bytes()).index(b"PK\1\2")
        path.write_bytes(data[: directory + 6] + b"\x63\0" + data[directory + 8 :])
    with pytest.raises(UserError, match=told):
        unzipped(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("large", [False, True])
def test_a_zips_list_of_files_is_measured_before_it_is_read(
    large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """large: in the format for more than 65,535 files."""
    if large:
        monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)
    path = packed(tmp_path / "x.zip", {f"a/{i}.png": b"" for i in range(9)})
    with zipfile.ZipFile(path) as opened:
        bytes_listed = path.stat().st_size - opened.start_dir - (98 if large else 22)
    assert listing(path) == bytes_listed
    monkeypatch.setattr(module, "MOST_LISTING", bytes_listed - 1)
    monkeypatch.setattr(zipfile, "ZipFile", None)
    with pytest.raises(UserError, match=r"x\.zip: lists far more files than the"):
        unzipped(path, tmp_path / "out")
