"""The images that a visitor brings: kept, left out by name, listed, and never too many."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from rmadapter.data.archives import listing_size
from rmadapter.data.read import read_images
from rmadapter.errors import UserError
from rmadapter_studio import images as module
from rmadapter_studio.images import (
    FILES,
    IMAGES,
    SHOWN,
    THUMBNAILS,
    ImageStore,
    safe_name,
    unzip,
)  # fmt: skip


def png(color: str = "red") -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(data, "PNG")
    return data.getvalue()


def put(store: ImageStore, label: str, name: str, data: bytes | None = None) -> None:
    path = store.folder / f"upload-{safe_name(name)}"
    path.write_bytes(png() if data is None else data)
    store.add(path, label, name)


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return new_store(tmp_path / "home")


def new_store(folder: Path) -> ImageStore:
    folder.mkdir()
    return ImageStore(folder)


def counts(store: ImageStore) -> dict[str, int]:
    return {label: len(images) for label, images in store.classes.items()}


def packed(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def test_images_become_the_list_for_fit(store: ImageStore) -> None:
    put(store, "sea_horse", "../../évil ;name.png")
    put(store, " Sea  Horse", "b.png", png("blue"))
    put(store, '=zebra, "plain"', "c.png")
    assert [*store.classes] == ["sea_horse", '=zebra, "plain"']
    store.add_class("alone")
    store.write()
    sets = read_images(store.folder / IMAGES, progress=False)
    assert sets["all"].written == ('=zebra, "plain"', "sea_horse")
    files = store.folder / FILES
    names = ["000001-vil_name.png", "000002-b.png", "000003-c.png"]
    assert sorted(path.name for path in files.iterdir()) == names
    assert store.bytes == sum(path.stat().st_size for path in files.iterdir())
    store.remove("sea_horse")
    assert store.bytes == sum(path.stat().st_size for path in files.iterdir()) > 0
    assert len([*files.iterdir()]) == len(store) == 1
    with pytest.raises(UserError, match="at least two classes"):
        store.write()
    store.clear()
    assert not list(files.iterdir())


def test_first_images_of_a_class_have_thumbnails(store: ImageStore) -> None:
    """As JPEG, whatever the format; they go with their class."""
    data = io.BytesIO()
    Image.new("RGB", (3000, 900), "red").save(data, "TIFF")
    long = "x" * 80 + ".tif"
    for _ in range(SHOWN + 2):
        put(store, "red", long, data.getvalue())
    put(store, "blue", "b.png")
    names = store.shown("red")
    assert len({*names}) == SHOWN
    for name in names:
        with Image.open(io.BytesIO(store.thumbnail(name))) as small:
            assert (small.format, small.size) == ("JPEG", (96, 29))
    assert len([*(store.folder / THUMBNAILS).iterdir()]) == SHOWN + 1
    store.remove("red")
    for name in (*names, "..", f"../{IMAGES}", "a\0b", ""):
        with pytest.raises(UserError, match="no such image"):
            store.thumbnail(name)
    assert len([*(store.folder / THUMBNAILS).iterdir()]) == 1


def test_an_image_that_cannot_be_drawn_leaves_no_thumbnail(store: ImageStore) -> None:
    with pytest.raises(UserError, match=r"^bad\.png: "):
        put(store, "red", "bad.png", png()[:45])
    assert not (store.folder / THUMBNAILS).exists()


def test_refused_images_and_classes(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert counts(store) == {"a": 1}


def test_a_zip_with_a_folder_for_each_class(store: ImageStore, tmp_path: Path) -> None:
    members = {"set/train/red/broken.jpg": b"no", "set/train/red/notes.txt": b"x"}
    for place in ("train/red", "train/blue", "test/red", "test/blue"):
        members[f"set/{place}/1.png"] = png(place.rpartition("/")[2])
    bad, ignored = store.add_folder(unzip(packed(tmp_path / "set.zip", members), tmp_path / "out"))
    assert bad.startswith("train/red/broken.jpg: not an image")
    assert ignored == "1 file ignored: .txt 1"
    put(store, "red", "more.png", png("yellow"))
    store.write()
    sets = read_images(store.folder / IMAGES, progress=False)
    assert {split: len(images) for split, images in sets.items()} == {"train": 3, "test": 2}


def test_a_zip_with_the_folder_of_one_class(store: ImageStore, tmp_path: Path) -> None:
    archive = packed(tmp_path / "red.zip", {"red/1.png": png("red"), "red/2.png": png("blue")})
    assert store.add_folder(unzip(archive, tmp_path / "out")) == []
    assert counts(store) == {"red": 2}


def test_list_with_several_labels_is_refused_before_the_first_image(
    store: ImageStore, tmp_path: Path
) -> None:
    (tmp_path / "set").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "set" / name).write_bytes(png())
    (tmp_path / "set" / IMAGES).write_text("path,labels\na.png,red;round\nb.png,blue\n")
    with pytest.raises(UserError, match=r"'red'.*'round'"):
        store.add_folder(tmp_path / "set")
    assert not store.classes
    assert (tmp_path / "set/a.png").exists()


def test_downloaded_images_keep_their_names(tmp_path: Path) -> None:
    one, two, three = (new_store(tmp_path / name) for name in ("one", "two", "three"))
    put(one, "red/green", "a.png")
    put(one, "blue", "b.png", png("blue"))
    put(one, "red/green", "a.png")
    one.write()
    listed = (one.folder / IMAGES).read_text()
    assert two.add_folder(one.folder) == []
    assert counts(two) == {"red/green": 2, "blue": 1}
    two.write()
    assert (two.folder / IMAGES).read_text() == listed
    put(two, "blue", "c.png", png("blue"))
    put(three, "blue", "a.png", png("blue"))
    two.write()
    assert three.add_folder(two.folder) == []
    # 000001-a was taken
    names = ("000001-a", "000002-a", "000002-b", "000003-a", "000004-c")
    assert sorted(three.files()) == [f"files/{name}.png" for name in names]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"../x.png": b""}, "leads out of its folder"),
        ({"a/b.png": b"\0" * 3000}, "bytes on disk, the limit"),
        ({str(i): b"" for i in range(5)}, "holds 5 files, and at most 4 are allowed"),
        (None, "not a readable zip file"),
        ({"newer": b""}, "not a readable zip file .zip file version 9.9"),
    ],
)
def test_harmful_archives_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, members: dict[str, bytes] | None, message: str
) -> None:
    monkeypatch.setattr(module, "MOST_ZIP", 2000)
    monkeypatch.setattr(module, "MOST_IMAGES", 2)
    path = tmp_path / "x.zip"
    packed(path, members) if members is not None else path.write_bytes(b"no")
    if members == {"newer": b""}:  # its directory names the version of zip that it needs
        data = path.read_bytes()
        directory = data.index(b"PK\1\2")
        path.write_bytes(data[: directory + 6] + b"\x63\0" + data[directory + 8 :])
    with pytest.raises(UserError, match=message):
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


@pytest.mark.parametrize("place", [0, 2**63 - 1, 2**63, 2**64 - 1])
def test_list_of_a_zip_is_measured_wherever_it_is_said_to_end(
    place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python may look at another place."""
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)
    path = packed(tmp_path / "x.zip", {f"a/{i}.png": b"" for i in range(9)})
    bytes_listed, data = listing_size(path), bytearray(path.read_bytes())
    locator = data.rindex(b"PK\6\7")
    data[locator + 8 : locator + 16] = place.to_bytes(8, "little")
    path.write_bytes(data)
    assert listing_size(path) == bytes_listed
    monkeypatch.setattr(module, "MOST_LISTING", bytes_listed - 1)
    with pytest.raises(UserError, match=r"x\.zip"):
        unzip(path, tmp_path / "out")
