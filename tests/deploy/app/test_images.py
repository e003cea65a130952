"""The images that a visitor brings: kept, left out by name, listed, and never too many."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from rmadapter.data.read import read_images
from rmadapter.deploy.app import images as module
from rmadapter.deploy.app.images import FILES, IMAGES, ImageStore, listing_size, safe_name, unzip
from rmadapter.errors import UserError


def png(color: str = "red") -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(data, "PNG")
    return data.getvalue()


def put(store: ImageStore, label: str, name: str, data: bytes | None = None) -> None:
    path = store.folder / f"upload-{safe_name(name)}"
    path.write_bytes(png() if data is None else data)
    store.add(path, label, name)


def packed(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def test_images_become_the_list_for_fit(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    put(store, "sea_horse", "../../évil ;name.png")
    put(store, " Sea  Horse", "b.png", png("blue"))
    put(store, '=zebra, "plain"', "c.png")
    assert [*store.classes] == ["sea_horse", '=zebra, "plain"']
    store.add_class("alone")
    store.write()
    sets = read_images(tmp_path / IMAGES, progress=False)
    assert sets["all"].written == ('=zebra, "plain"', "sea_horse")
    assert sorted(path.name for path in (tmp_path / FILES).iterdir()) == [
        "000001-vil_name.png", "000002-b.png", "000003-c.png",
    ]  # fmt: skip
    assert store.bytes == sum(path.stat().st_size for path in (tmp_path / FILES).iterdir())
    store.remove("sea_horse")
    assert (
        store.bytes == sum(path.stat().st_size for path in (tmp_path / FILES).iterdir()) > 0
    )  # room for others
    assert len([*(tmp_path / FILES).iterdir()]) == len(store) == 1
    with pytest.raises(UserError, match="at least two classes"):
        store.write()
    store.clear()
    assert not list((tmp_path / FILES).iterdir())


def test_refused_images_and_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ImageStore(tmp_path)
    with pytest.raises(UserError, match=r"^bad\.png: not an image"):
        put(store, "a", "bad.png", b"no")
    for label in ("", " _ ", "x" * 101, "a\0b", "\ud800"):
        with pytest.raises(UserError, match=r"class name must be text|has an empty prompt name"):
            store.add_class(label)
    with pytest.raises(UserError, match="no such class"):
        store.remove("b")
    monkeypatch.setattr(module, "MOST_IMAGES", 1)
    put(store, "a", "a.png")
    with pytest.raises(UserError, match=r"^b\.png: .* 1 images"):
        put(store, "a", "b.png")
    monkeypatch.setattr(module, "MOST_CLASSES", 1)
    with pytest.raises(UserError, match="1 classes"):
        store.add_class("b")
    assert {label: len(shots) for label, shots in store.classes.items()} == {"a": 1}


def test_a_zip_with_a_folder_for_each_class(tmp_path: Path) -> None:
    members = {
        f"set/{split}/{label}/1.png": png(label)
        for split in ("train", "test")
        for label in ("red", "blue")
    }
    members |= {"set/train/red/broken.jpg": b"no", "set/train/red/notes.txt": b"x"}
    store = ImageStore(tmp_path / "home")
    store.folder.mkdir()
    told = store.add_folder(unzip(packed(tmp_path / "set.zip", members), tmp_path / "out"))
    assert told == [
        "train/red/broken.jpg: not an image in a supported format",
        "1 file ignored: .txt 1",
    ]
    put(store, "red", "more.png", png("yellow"))
    store.write()
    sets = read_images(store.folder / IMAGES, progress=False)
    assert {split: len(images) for split, images in sets.items()} == {"train": 3, "test": 2}


def test_a_zip_with_the_folder_of_one_class(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "home")
    store.folder.mkdir()
    archive = packed(tmp_path / "red.zip", {"red/1.png": png("red"), "red/2.png": png("blue")})
    assert store.add_folder(unzip(archive, tmp_path / "out")) == []
    assert {label: len(shots) for label, shots in store.classes.items()} == {"red": 2}


def test_list_with_several_labels_is_refused_before_the_first_image(
    tmp_path: Path,
) -> None:
    (tmp_path / "set").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "set" / name).write_bytes(png())
    (tmp_path / "set" / IMAGES).write_text("path,labels\na.png,red;round\nb.png,blue\n")
    store = ImageStore(tmp_path / "home")
    with pytest.raises(UserError, match=r"'red'.*'round'"):
        store.add_folder(tmp_path / "set")
    assert not store.classes
    assert (tmp_path / "set/a.png").exists()


def test_downloaded_images_keep_their_names(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one, two = ImageStore(tmp_path / "one"), ImageStore(tmp_path / "two")
    put(one, "red/green", "a.png")
    put(one, "blue", "b.png", png("blue"))
    put(one, "red/green", "a.png")
    one.write()
    listed = (one.folder / IMAGES).read_text()
    assert two.add_folder(one.folder) == []
    assert {label: len(shots) for label, shots in two.classes.items()} == {
        "red/green": 2,
        "blue": 1,
    }
    two.write()
    assert (
        two.folder / IMAGES
    ).read_text() == listed  # by the names in the run's record, whatever the order
    put(two, "blue", "c.png", png("blue"))
    (three := ImageStore(tmp_path / "three")).folder.mkdir()
    put(three, "blue", "a.png", png("blue"))
    two.write()
    assert three.add_folder(two.folder) == []
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
def test_harmful_archives_are_refused(
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
        unzip(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("large", [False, True])
def test_list_of_a_zip_is_measured_before_it_is_read(
    large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """large: in the format for more than 65,535 files."""
    if large:
        monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)
    path = packed(tmp_path / "x.zip", {f"a/{i}.png": b"" for i in range(9)})
    with zipfile.ZipFile(path) as opened:
        bytes_listed = path.stat().st_size - opened.start_dir - (98 if large else 22)
    assert listing_size(path) == bytes_listed
    monkeypatch.setattr(module, "MOST_LISTING", bytes_listed - 1)
    monkeypatch.setattr(zipfile, "ZipFile", None)
    with pytest.raises(UserError, match=r"x\.zip"):
        unzip(path, tmp_path / "out")
