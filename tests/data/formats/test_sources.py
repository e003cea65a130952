"""One function finds out what a path is: each format, as its program writes it, becomes labelled
images."""

from __future__ import annotations

import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from rmadapter.data.formats.sources import images_root, is_source, open_source
from rmadapter.data.inputs import find_images
from rmadapter.data.read import ImageSet, read_images
from rmadapter.errors import UserError
from tests.helpers.miniatures import paint, png, write_json

NAMES = ("cat_1.png", "dog_1.png")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path / "cache"))


def class_folders(home: Path) -> Path:
    return paint(home, "cat/cat_1.png", "dog/dog_1.png")


def yolo_classification(home: Path) -> Path:
    return paint(home, "train/cat/cat_1.png", "train/dog/dog_1.png", "val/cat/cat_2.png")


def csv_file(home: Path) -> Path:
    (paint(home, *NAMES) / "list.csv").write_text("file_name;class\ncat_1.png;cat\ndog_1.png;dog\n")
    return home / "list.csv"


def json_lines(home: Path) -> Path:
    text = (
        '{"file_name": "cat_1.png", "label": "cat"}\n\n{"file_name": "dog_1.png", "label": "dog"}\n'
    )
    (paint(home, *NAMES) / "list.jsonl").write_text(text)
    return home / "list.jsonl"


def imagefolder(home: Path) -> Path:
    (paint(home, *NAMES) / "metadata.csv").write_text(
        "file_name,label\ncat_1.png,cat\ndog_1.png,dog\n"
    )
    return home


def coco_file(home: Path) -> Path:
    images = [{"id": i, "file_name": name, "width": 8, "height": 8} for i, name in enumerate(NAMES)]
    marks = [{"id": i, "image_id": i, "category_id": i, "bbox": [0, 0, 4, 2]} for i in (0, 1)]
    kinds = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    return write_json(
        paint(home, *NAMES) / "coco.json",
        {"images": images, "annotations": marks, "categories": kinds},
    )


def coco_folder(home: Path) -> Path:
    file = coco_file(home)
    (home / "annotations").mkdir()
    file.rename(home / "annotations" / "instances_train2017.json")
    return home


def roboflow(home: Path) -> Path:
    for split in ("train", "valid"):
        file = coco_file(home / split)
        file.rename(file.with_name("_annotations.coco.json"))
    return home


def yolo(home: Path) -> Path:
    paint(home, "images/train/cat_1.png", "images/train/dog_1.png")
    (home / "labels" / "train").mkdir(parents=True)
    for number, name in enumerate(("cat_1", "dog_1")):
        (home / "labels" / "train" / f"{name}.txt").write_text(f"{number} 0.5 0.5 0.5 0.25\n")
    (home / "data.yaml").write_text("train: images/train\nnames: [cat, dog]\n")
    return home


def yolo_file(home: Path) -> Path:
    return yolo(home) / "data.yaml"


def label_studio(home: Path) -> Path:
    tasks = [
        {"id": i, "data": {"image": f"/data/upload/1/{name}"}, "annotations": [
            {"result": [{"type": "choices", "value": {"choices": [name[:3]]}}]}
        ]} for i, name in enumerate(NAMES)
    ]  # fmt: skip
    return write_json(paint(home, *NAMES) / "export.json", tasks)


def fiftyone(home: Path) -> Path:
    paint(home, "data/cat_1.png", "data/dog_1.png")
    write_json(
        home / "labels.json", {"classes": ["cat", "dog"], "labels": {"cat_1": 0, "dog_1": 1}}
    )
    return home


def fiftyone_samples(home: Path) -> Path:
    samples = [
        {"filepath": f"data/{name}", "tags": ["train"], "ground_truth": {"_cls": "Detections", "detections": [
            {"_cls": "Detection", "label": name[:3], "bounding_box": [0, 0, 0.5, 0.25]}
        ]}} for name in NAMES
    ]  # fmt: skip
    write_json(
        paint(home, *(f"data/{name}" for name in NAMES)) / "samples.json", {"samples": samples}
    )
    write_json(home / "metadata.json", {"name": "pets"})
    return home


def fiftyone_files(home: Path) -> Path:
    """As `use_dirs=True` exports it."""
    whole = fiftyone_samples(home) / "samples.json"
    for i, sample in enumerate(json.loads(whole.read_text())["samples"]):
        write_json(home / f"samples/{i:06d}-65f0c{9 - i}.json", sample)
    whole.unlink()
    return home


def zip_file(home: Path) -> Path:
    home.mkdir(parents=True)
    with zipfile.ZipFile(home / "pets.zip", "w") as file:
        for label in ("cat", "dog"):
            file.writestr(f"pets/{label}/{label}_1.png", png(label))
        file.writestr("__MACOSX/pets/._x", b"")
    return home / "pets.zip"


def zip_of_coco(home: Path) -> Path:
    coco_folder(home / "in")
    with zipfile.ZipFile(home / "coco.zip", "w") as file:
        for path in (home / "in").rglob("*"):
            file.write(path, path.relative_to(home / "in"))
    return home / "coco.zip"


def tar_file(home: Path) -> Path:
    with tarfile.open(class_folders(home / "in") / "pets.tar.gz", "w:gz") as file:
        for label in ("cat", "dog"):
            file.add(home / "in" / label, label)
    return home / "in" / "pets.tar.gz"


def shard(home: Path) -> Path:
    paint(home / "in", *NAMES)
    for name in NAMES:
        (home / "in" / name).with_suffix(".cls").write_text(name[:3])
    (home / "shards").mkdir()
    with tarfile.open(home / "shards" / "pets-000000.tar", "w") as file:
        for path in sorted((home / "in").iterdir()):
            file.add(path, path.name)
    return home / "shards" / "pets-000000.tar"


def shard_folder(home: Path) -> Path:
    return shard(home).parent


FORMATS = (
    class_folders, yolo_classification, csv_file, json_lines, imagefolder, coco_file, coco_folder, roboflow, yolo,
    yolo_file, label_studio, fiftyone, fiftyone_samples, fiftyone_files, zip_file, zip_of_coco, tar_file, shard,
    shard_folder,
)  # fmt: skip
BOXED = (
    coco_file,
    coco_folder,
    roboflow,
    yolo,
    yolo_file,
    fiftyone_samples,
    fiftyone_files,
    zip_of_coco,
)


def labelled(images: ImageSet) -> list[tuple[str, str]]:
    return [
        (Path(str(p)).name, images.classes[label])
        for p, label in zip(images.images, images.labels, strict=True)
    ]


@pytest.mark.parametrize("write", FORMATS)
def test_every_format_becomes_the_same_images_and_labels(
    tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    path = write(tmp_path / "set")
    sets = read_images(path)
    images = next(iter(sets.values()))
    assert images.classes == ("cat", "dog")
    assert labelled(images) == [("cat_1.png", "cat"), ("dog_1.png", "dog")]
    assert not images.name(0).startswith("/")
    assert images_root(path) / images.name(0) == images.images[0]
    assert read_images(path)["train" if "train" in sets else "all"].digest == images.digest


@pytest.mark.parametrize("write", FORMATS)
def test_predict_finds_the_images_of_every_format(
    tmp_path: Path, write: Callable[[Path], Path]
) -> None:
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
def test_what_no_label_names_is_counted(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    home = write(tmp_path / "set")
    paint(home, "more/owl_1.png")
    (home / "readme.md").write_text("")
    (images, *_) = read_images(home).values()
    assert images.ignored == "2 files ignored: .md 1, images without an entry 1"


def test_class_folders_count_what_lies_beside_them(tmp_path: Path) -> None:
    home = paint(class_folders(tmp_path / "set"), "owl_1.png")
    for name in ("cat/notes.txt", ".hidden", "classnames.json"):
        (home / name).write_text("{}")
    (images,) = read_images(home).values()
    assert images.ignored == "3 files ignored: .txt 1, hidden 1, images outside class folders 1"
    assert read_images(yolo_classification(tmp_path / "clean"))["train"].ignored == ""


def test_an_image_listed_twice_is_read_once(tmp_path: Path) -> None:
    paint(tmp_path, "cat_1.png", "cat_2.png", "dog_1.png")
    (tmp_path / "t.csv").write_text(
        "path,label,split\ncat_1.png,cat,train\ndog_1.png,dog,train\n./cat_1.png,cat,train\ncat_2.png,cat,test\n"
    )
    sets = read_images(tmp_path / "t.csv", progress=False)
    assert {split: [images.name(i) for i in range(len(images))] for split, images in sets.items()} == {
        "train": ["cat_1.png", "dog_1.png"], "test": ["cat_2.png"],
    }  # fmt: skip
    assert sets["train"].ignored == "1 file ignored: images listed again 1"


def test_a_shard_of_no_split_beside_others_is_not_forgotten(tmp_path: Path) -> None:
    for name in ("train-0000.tar", "extra-0000.tar"):
        with tarfile.open(tmp_path / name, "w") as file:
            for member in (
                paint(tmp_path / "raw", "cat_1.png") / "cat_1.png",
                tmp_path / "raw/cat_1.cls",
            ):
                member.exists() or member.write_text("cat")
                file.add(member, member.name)
    shutil.rmtree(tmp_path / "raw")
    with pytest.raises(UserError, match="some of its images are in no split, but others are"):
        read_images(tmp_path)


@pytest.mark.parametrize("name", ["photo.jpg", "notes.txt", "gone.zip", "gone"])
def test_what_is_no_data_says_what_is(tmp_path: Path, name: str) -> None:
    if "gone" not in name:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(
        UserError,
        match=r"(no such file or folder|unknown format); give a folder of class folders; a table",
    ):
        open_source(tmp_path / name)
    assert is_source(tmp_path / name) == name.endswith("zip")


def test_a_file_of_labels_that_is_too_large_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = coco_file(tmp_path / "set")
    monkeypatch.setattr("rmadapter.data.formats.sources.LARGEST", 100)
    words = r"coco\.json: has \d+ bytes, .* may have 100; .* 'del\(\.annotations\[\]\.segmentation\)' coco"
    with pytest.raises(UserError, match=words):
        open_source(file)


def test_the_root_of_what_is_gone_and_of_an_archive_that_is_still_packed(tmp_path: Path) -> None:
    assert (
        images_root(tmp_path / "gone.csv") == tmp_path / "gone.csv"
    )  # so that nothing beside it is shown
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
