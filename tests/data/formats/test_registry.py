"""The format of a path: data as each program writes it becomes labelled images, or images alone."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from rmadapter.data.formats.registry import find_images, images_root, is_data_file, locate
from rmadapter.data.read import ImageSet, read_images
from rmadapter.errors import UserError
from tests.helpers import formats
from tests.helpers.formats import BOXED, FORMATS, sample, write_shard
from tests.helpers.small_images import write_images

Writer = Callable[[Path], Path]
UNBOXED = [formats.label_studio, formats.fiftyone]  # may have boxes, but have none here
LISTED = [formats.imagefolder, formats.coco_folder, formats.yolo, formats.fiftyone]
LISTED += [formats.fiftyone_samples, formats.fiftyone_files]


def labelled(images: ImageSet) -> list[tuple[str, str]]:
    names = [Path(str(image)).name for image in images.images]
    return list(zip(names, [images.classes[label] for label in images.labels], strict=True))


@pytest.mark.parametrize("write", FORMATS)
def test_every_format_gives_the_same_images(tmp_path: Path, write: Writer) -> None:
    path = write(tmp_path / "set")
    sets = read_images(path)
    images = next(iter(sets.values()))
    assert images.classes == ("cat", "dog")
    assert labelled(images) == [("cat_1.png", "cat"), ("dog_1.png", "dog")]
    assert not images.name(0).startswith("/")
    assert images_root(path) / images.name(0) == images.images[0]
    assert read_images(path)["train" if "train" in sets else "all"].digest == images.digest
    assert {"cat_1.png", "dog_1.png"} <= {file.name for file in find_images([str(path)]).files}


@pytest.mark.parametrize("write", BOXED)
def test_boxes_are_cut_out_for_fit_and_predict(tmp_path: Path, write: Writer) -> None:
    path = write(tmp_path / "set")
    images = next(iter(read_images(path, crops=True).values()))
    assert [images.classes[label] for label in images.labels] == ["cat", "dog"]
    with Image.open(images.images[0]) as crop:  # type: ignore[arg-type]
        assert crop.size == (4, 2)
    assert [name.rpartition("/")[2] for name in images.groups] == ["cat_1.png", "dog_1.png"]
    assert set(images.images) <= {*find_images([str(path)], crops=True).files}
    assert images_root(path, crops=True) / images.name(0) == images.images[0]


@pytest.mark.parametrize("write", [write for write in FORMATS if write not in BOXED])
def test_crops_need_boxes(tmp_path: Path, write: Writer) -> None:
    words = "labels without a box 2" if write in UNBOXED else "there are none here"
    with pytest.raises(UserError, match=words):
        read_images(write(tmp_path / "set"), crops=True)


@pytest.mark.parametrize("write", LISTED)
def test_files_without_a_label_are_counted(tmp_path: Path, write: Writer) -> None:
    home = write_images(write(tmp_path / "set"), "more/owl_1.png")
    (home / "readme.md").write_text("")
    (images, *_) = read_images(home).values()
    assert images.ignored == "2 files ignored: .md 1, images without an entry 1"


def test_class_folders_count_files_beside_them(tmp_path: Path) -> None:
    home = write_images(formats.class_folders(tmp_path / "set"), "owl_1.png")
    for name in ("cat/notes.txt", ".hidden", "classnames.json"):
        (home / name).write_text("{}")
    (images,) = read_images(home).values()
    assert images.ignored == "3 files ignored: .txt 1, hidden 1, images outside class folders 1"
    assert read_images(formats.yolo_classification(tmp_path / "clean"))["train"].ignored == ""


def test_an_image_listed_twice_is_read_once(tmp_path: Path) -> None:
    write_images(tmp_path, "cat_1.png", "cat_2.png", "dog_1.png")
    rows = "cat_1.png,cat,train\ndog_1.png,dog,train\n./cat_1.png,cat,train\ncat_2.png,cat,test\n"
    (tmp_path / "t.csv").write_text(f"path,label,split\n{rows}")
    sets = read_images(tmp_path / "t.csv", progress=False)
    assert labelled(sets["train"]) == [("cat_1.png", "cat"), ("dog_1.png", "dog")]
    assert labelled(sets["test"]) == [("cat_2.png", "cat")]
    assert sets["train"].ignored == "1 file ignored: images listed again 1"


def test_a_shard_without_a_split_beside_others_is_refused(tmp_path: Path) -> None:
    for name in ("train-0000.tar", "extra-0000.tar"):
        write_shard(tmp_path / name, **sample(1, "cat", "cat"))
    with pytest.raises(UserError, match="some of its images are in no split, but others are"):
        read_images(tmp_path)


@pytest.mark.parametrize("name", ["photo.jpg", "notes.txt", "gone.zip", "gone"])
def test_an_unknown_format_names_the_known_ones(tmp_path: Path, name: str) -> None:
    if "gone" not in name:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"(no such file or folder|unknown format); give a folder"):
        locate(tmp_path / name).read()
    assert is_data_file(tmp_path / name) == name.endswith("zip")


def test_a_label_file_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = formats.coco_file(tmp_path / "set")
    monkeypatch.setattr("rmadapter.data.formats.annotated.MAX_JSON_BYTES", 100)
    with pytest.raises(UserError, match=r"coco\.json: has \d+ bytes, .* may have 100"):
        locate(file).read()


def test_image_root_of_missing_data_and_of_a_packed_archive(tmp_path: Path) -> None:
    # so that nothing beside it is shown
    assert images_root(tmp_path / "gone.csv") == tmp_path / "gone.csv"
    file = formats.zip_file(tmp_path / "set")
    assert not images_root(file).exists()
    locate(file).read()
    assert images_root(file).is_dir()


@pytest.mark.parametrize("crops", [False, True])
def test_a_missing_image_is_named_and_may_be_left_out(tmp_path: Path, crops: bool) -> None:
    file = formats.coco_file(tmp_path / "set")
    (tmp_path / "set" / "cat_1.png").unlink()
    with pytest.raises(UserError, match=r"cat_1\.png: .*--skip-bad"):
        read_images(file, crops=crops)
    (images,) = read_images(file, crops=crops, skip_bad=True).values()
    assert (images.classes, len(images.skipped)) == (("dog",), 1)


@pytest.mark.parametrize("write", [formats.class_folders, formats.coco_file, formats.yolo_file])
def test_columns_are_for_tables(tmp_path: Path, write: Writer) -> None:
    with pytest.raises(UserError, match="has no columns"):
        read_images(write(tmp_path / "set"), columns={"label": "kind"})


# Images without labels


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    names = "b.jpg a/2.PNG a/1.png a/notes.txt c.mov d.mov .DS_Store a/.t/x.png README"
    for name in names.split():
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    return Path("photos")


IMAGES = ["photos/a/1.png", "photos/a/2.PNG", "photos/b.jpg"]  # below photos, in order


def names(*words: str, column: str = "", outside: bool = False) -> list[str]:
    return [path.as_posix() for path in find_images(words, column, outside).files]


def stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))


def test_a_folder_is_searched_in_order_and_other_files_are_counted(photos: Path) -> None:
    assert names("photos") == IMAGES
    found = find_images(["photos"])
    assert found.note == "5 files ignored: .mov 2, .txt 1, hidden 1, no suffix 1"
    assert found.folders == [photos]
    assert find_images(["photos/b.jpg"]).note == ""


def test_shards_and_their_labels_are_not_ignored_files(tmp_path: Path) -> None:
    write_shard(tmp_path / "set/0.tar", **sample(0, "cat", "0"), **sample(1, "dog", "1"))
    (tmp_path / "set/notes.txt").write_text("x")
    found = find_images([str(tmp_path / "set")])
    assert [path.name for path in found.files] == ["000000.png", "000001.png"]
    assert found.note == "1 file ignored: .txt 1"


def test_named_files_keep_their_order_whatever_they_hold(photos: Path) -> None:
    words = ["photos/b.jpg", "photos/a", "photos/a/notes.txt"]
    assert names(*words) == [words[0], *IMAGES[:2], words[2]]


def test_a_named_file_that_is_missing_is_refused_unless_it_may_have_been_moved(
    photos: Path,
) -> None:
    for word, near in (("photos/bb.jpg", "photos/b.jpg"), ("gone/b.jpg", "")):
        with pytest.raises(UserError, match=rf"^{word}: no such file.*{near}") as refusal:
            find_images([word])
        assert "--skip-bad" not in str(refusal.value)
    assert find_images(["gone/b.jpg"], none=True).files == [Path("gone/b.jpg")]


def test_patterns_match_files_and_folders(photos: Path) -> None:
    assert names("photos/*.jpg") == ["photos/b.jpg"]
    assert names("photos/*") == names("photos/**") == IMAGES
    deep = find_images(["photos/**"])
    assert deep.folders == [photos]
    assert deep.note == "4 files ignored: .mov 2, .txt 1, no suffix 1"
    (photos / "[1].png").write_bytes(b"x")
    assert names("photos/[1].png") == ["photos/[1].png"]  # a file of that name comes first


def test_paths_may_come_from_stdin(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin(monkeypatch, b"photos/b.jpg\r\n\nphotos/a\nphotos/caf\xe9.png\n")
    found = names("-")
    assert found[:3] == ["photos/b.jpg", *IMAGES[:2]]
    assert os.fsencode(found[3]) == b"photos/caf\xe9.png"
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UserError, match="-: no image"):
        find_images(["-"])


def test_a_table_names_paths_relative_to_its_folder(photos: Path) -> None:
    table = photos / "list.csv"
    table.write_text("id,filename,other\n1,b.jpg,a/1.png\n2,a/2.PNG,b.jpg\n")
    assert names(str(table)) == ["photos/b.jpg", "photos/a/2.PNG"]
    assert names(str(table), column="other") == ["photos/a/1.png", "photos/b.jpg"]
    table.write_text("image,path\n../x.jpg,b.jpg\n")
    assert names(str(table)) == ["photos/b.jpg"]
    assert names(str(table), column="image", outside=True) == ["photos/../x.jpg"]
    for column, words in (("image", "line 2: '../x.jpg' lies outside"), ("x", "is called 'x'")):
        with pytest.raises(UserError, match=words):
            find_images([str(table)], column)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["https://x.org/a.jpg"], "'https://x.org/a.jpg': a web address"),
        (["-"], "'http://x.org/a.jpg': a web address"),
        (["photos/empty"], "photos/empty: no images in a supported format"),
        (["photos/*.mov"], r"photos/\*.mov: no images .*: \.mov 2"),
        (["photos/b.jpg", "photos/*.bmp"], "no file matches this pattern"),
    ],
)
def test_paths_without_images_are_refused(
    photos: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    (photos / "empty").mkdir()
    stdin(monkeypatch, b"http://x.org/a.jpg\n")
    with pytest.raises(UserError, match=message):
        find_images(words)
    assert find_images(["photos/empty", "photos/*.bmp"], none=True).files == []
