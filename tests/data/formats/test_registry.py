"""One function finds out what a path is: each format, as its program writes it, becomes labelled
images."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from rmadapter.data.formats.registry import find_images, images_root, is_data_file, open_source
from rmadapter.data.read import ImageSet, read_images
from rmadapter.errors import UserError
from tests.helpers.formats import (
    BOXED,
    FORMATS,
    class_folders,
    coco_file,
    coco_folder,
    fiftyone,
    fiftyone_files,
    fiftyone_samples,
    imagefolder,
    label_studio,
    yolo,
    yolo_classification,
    yolo_file,
    zip_file,
)
from tests.helpers.small_images import write_images


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path / "cache"))


def labelled(images: ImageSet) -> list[tuple[str, str]]:
    return [
        (Path(str(p)).name, images.classes[label])
        for p, label in zip(images.images, images.labels, strict=True)
    ]


@pytest.mark.parametrize("write", FORMATS)
def test_every_format_gives_the_same_images(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    path = write(tmp_path / "set")
    sets = read_images(path)
    images = next(iter(sets.values()))
    assert images.classes == ("cat", "dog")
    assert labelled(images) == [("cat_1.png", "cat"), ("dog_1.png", "dog")]
    assert not images.name(0).startswith("/")
    assert images_root(path) / images.name(0) == images.images[0]
    assert read_images(path)["train" if "train" in sets else "all"].digest == images.digest


@pytest.mark.parametrize("write", FORMATS)
def test_predict_finds_every_format(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    files = find_images([str(write(tmp_path / "set"))]).files
    assert {"cat_1.png", "dog_1.png"} <= {file.name for file in files}


@pytest.mark.parametrize("write", BOXED)
def test_boxes_as_crops_for_fit_and_predict(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    from PIL import Image

    path = write(tmp_path / "set")
    images = next(iter(read_images(path, crops=True).values()))
    assert [images.classes[label] for label in images.labels] == ["cat", "dog"]
    with Image.open(images.images[0]) as crop:  # type: ignore[arg-type]
        assert crop.size == (4, 2)
    assert [name.rpartition("/")[2] for name in images.groups] == ["cat_1.png", "dog_1.png"]
    assert set(images.images) <= {*find_images([str(path)], crops=True).files}
    assert images_root(path, crops=True) / images.name(0) == images.images[0]


@pytest.mark.parametrize(
    "write", [write for write in FORMATS if write not in (*BOXED, label_studio, fiftyone)]
)
def test_crops_where_there_are_no_boxes(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    with pytest.raises(UserError, match="there are none here"):
        read_images(write(tmp_path / "set"), crops=True)


@pytest.mark.parametrize("write", [label_studio, fiftyone])
def test_crops_where_no_label_has_a_box(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    with pytest.raises(UserError, match=r"no labelled images .*labels without a box 2"):
        read_images(write(tmp_path / "set"), crops=True)


@pytest.mark.parametrize(
    "write", [imagefolder, coco_folder, yolo, fiftyone, fiftyone_samples, fiftyone_files]
)
def test_files_without_a_label_are_counted(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    home = write(tmp_path / "set")
    write_images(home, "more/owl_1.png")
    (home / "readme.md").write_text("")
    (images, *_) = read_images(home).values()
    assert images.ignored == "2 files ignored: .md 1, images without an entry 1"


def test_class_folders_count_what_lies_beside_them(tmp_path: Path) -> None:
    home = write_images(class_folders(tmp_path / "set"), "owl_1.png")
    for name in ("cat/notes.txt", ".hidden", "classnames.json"):
        (home / name).write_text("{}")
    (images,) = read_images(home).values()
    assert images.ignored == "3 files ignored: .txt 1, hidden 1, images outside class folders 1"
    assert read_images(yolo_classification(tmp_path / "clean"))["train"].ignored == ""


def test_an_image_listed_twice_is_read_once(tmp_path: Path) -> None:
    write_images(tmp_path, "cat_1.png", "cat_2.png", "dog_1.png")
    (tmp_path / "t.csv").write_text(
        "path,label,split\ncat_1.png,cat,train\ndog_1.png,dog,train\n./cat_1.png,cat,train\ncat_2.png,cat,test\n"
    )
    sets = read_images(tmp_path / "t.csv", progress=False)
    names = {part: [images.name(i) for i in range(len(images))] for part, images in sets.items()}
    assert names == {
        "train": ["cat_1.png", "dog_1.png"], "test": ["cat_2.png"],
    }  # fmt: skip
    assert sets["train"].ignored == "1 file ignored: images listed again 1"


def test_a_shard_without_a_split_beside_others_is_refused(tmp_path: Path) -> None:
    for name in ("train-0000.tar", "extra-0000.tar"):
        with tarfile.open(tmp_path / name, "w") as file:
            for member in (
                write_images(tmp_path / "raw", "cat_1.png") / "cat_1.png",
                tmp_path / "raw/cat_1.cls",
            ):
                member.exists() or member.write_text("cat")
                file.add(member, member.name)
    shutil.rmtree(tmp_path / "raw")
    with pytest.raises(UserError, match="some of its images are in no split, but others are"):
        read_images(tmp_path)


@pytest.mark.parametrize("name", ["photo.jpg", "notes.txt", "gone.zip", "gone"])
def test_unknown_data_names_the_formats(tmp_path: Path, name: str) -> None:
    if "gone" not in name:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"(no such file or folder|unknown format); give a folder"):
        open_source(tmp_path / name)
    assert is_data_file(tmp_path / name) == name.endswith("zip")


def test_a_label_file_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = coco_file(tmp_path / "set")
    monkeypatch.setattr("rmadapter.data.formats.annotated.LARGEST", 100)
    with pytest.raises(UserError, match=r"coco\.json: has \d+ bytes, .* may have 100"):
        open_source(file)


def test_image_root_of_missing_data_and_of_a_packed_archive(tmp_path: Path) -> None:
    # so that nothing beside it is shown
    assert images_root(tmp_path / "gone.csv") == tmp_path / "gone.csv"
    file = zip_file(tmp_path / "set")
    assert not images_root(file).exists()
    open_source(file)
    assert images_root(file).is_dir()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not readable JSON"),
        ("[[" * 100_000, "not readable JSON"),
        ("{}", "not a COCO file, a Label Studio export, or FiftyOne"),
        ("[]", "not a COCO file"),
        ('{"images": [], "annotations": [], "categories": []}', "no labelled images"),
    ],
)
def test_broken_json(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=words):
        open_source(tmp_path / "x.json")


def test_a_missing_image_is_named_and_may_be_left_out(tmp_path: Path) -> None:
    file = coco_file(tmp_path / "set")
    (tmp_path / "set" / "cat_1.png").unlink()
    for crops in (False, True):
        with pytest.raises(UserError, match=r"cat_1\.png: .*--skip-bad"):
            read_images(file, crops=crops)
        (images,) = read_images(file, crops=crops, skip_bad=True).values()
        assert (images.classes, len(images.skipped)) == (("dog",), 1)


@pytest.mark.parametrize("write", [class_folders, coco_file, yolo_file])
def test_columns_are_for_tables(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    with pytest.raises(UserError, match="has no columns"):
        read_images(write(tmp_path / "set"), columns={"label": "kind"})
