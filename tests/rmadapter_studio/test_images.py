"""The images that a visitor brings: kept, left out by name, listed, and never too many."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from rmadapter.data import unpack_zip
from rmadapter.data.read import read_images
from rmadapter.errors import UserError
from rmadapter_studio import images as module
from rmadapter_studio.images import (
    FILES,
    IMAGES,
    THUMBNAILS,
    THUMBNAILS_PER_CLASS,
    ImageStore,
    safe_name,
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


def unzip(archive: Path, folder: Path) -> Path:
    return unpack_zip(archive, folder, 10**6, 100)


def test_images_become_the_list_for_fit(store: ImageStore) -> None:
    put(store, "sea_horse", "../../évil ;name.png")
    put(store, " Sea  Horse", "b.png", png("blue"))
    put(store, 'a zebra, "plain"', "c.png")
    assert [*store.classes] == ["sea_horse", 'a zebra, "plain"']
    store.add_class("alone")
    store.write()
    sets = read_images(store.folder / IMAGES, progress=False)
    assert sets["all"].written == ('a zebra, "plain"', "sea_horse")
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
    for _ in range(THUMBNAILS_PER_CLASS + 2):
        put(store, "red", long, data.getvalue())
    put(store, "blue", "b.png")
    names = store.shown("red")
    assert len({*names}) == THUMBNAILS_PER_CLASS
    for name in names:
        with Image.open(io.BytesIO(store.thumbnail(name))) as small:
            assert (small.format, small.size) == ("JPEG", (96, 29))
    assert len([*(store.folder / THUMBNAILS).iterdir()]) == THUMBNAILS_PER_CLASS + 1
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
    for label in ("", " _ ", "x" * 101, "a\0b", "\ud800", "=dog", "@x", "a\x1b[1m", "x\u202ey"):
        with pytest.raises(UserError, match=r"^class .* its name|has an empty prompt name"):
            store.add_class(label)
    with pytest.raises(UserError, match="no such class"):
        store.remove("b")
    monkeypatch.setattr(module, "MAX_IMAGES", 1)
    put(store, "a", "a.png")
    with pytest.raises(UserError, match=r"^b\.png: .* 1 images"):
        put(store, "a", "b.png")
    monkeypatch.setattr(module, "MAX_CLASSES", 1)
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


def test_an_image_of_a_known_class_is_compared_with_no_other(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, "Sea horse", "a.png")
    assert store.add_class("sea_horse") == "Sea horse"
    monkeypatch.setattr(module, "typed_name", None)
    put(store, "Sea horse", "b.png")
    assert counts(store) == {"Sea horse": 2}
