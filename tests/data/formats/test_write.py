"""Labels written in the formats of other programs are read back as they were."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from rmadapter.data.formats.base import Row
from rmadapter.data.formats.coco import coco_json
from rmadapter.data.formats.registry import WRITERS, locate, write_labels
from rmadapter.data.read import read_images
from rmadapter.errors import UserError
from tests.helpers.small_images import picture, write_images

LABELS = {"a b.png": "cat", "sub/=x.png": "big/dog", "sub/100%?d=.png": "CON", "c.png": "cat"}


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    for name in LABELS:
        (tmp_path / "heap" / name).parent.mkdir(parents=True, exist_ok=True)
        picture("cat", len(name)).save(tmp_path / "heap" / name)
    return [Row(label, tmp_path / "heap" / name) for name, label in LABELS.items()]


@pytest.mark.parametrize("to", ["csv", "coco", "label-studio"])
def test_a_file_is_read_back(rows: list[Row], tmp_path: Path, to: str) -> None:
    out = tmp_path / "heap" / f"labels{WRITERS[to].suffix}"
    assert write_labels({"all": rows}, to, out) == 4
    root, splits = locate(out).read()[:2]
    found = {row.image.relative_to(root).as_posix(): row.label for row in splits["all"]}
    assert found == LABELS


def test_folders_are_read_back(rows: list[Row], tmp_path: Path) -> None:
    clash = tmp_path / "heap/other/C.png"
    clash.parent.mkdir()
    picture("dog").save(clash)
    rows = [*rows, Row("cat", clash), Row("big|dog", tmp_path / "heap/c.png")]
    write_labels({"all": rows}, "folders", tmp_path / "out")
    [images] = read_images(tmp_path / "out", progress=False).values()
    contents: dict[str, list[bytes]] = {}
    for image, label in zip(images.images, images.labels, strict=True):
        contents.setdefault(images.classes[label], []).append(Path(str(image)).read_bytes())
    expected: dict[str, list[bytes]] = {}
    for row in rows:
        expected.setdefault(row.label, []).append(row.image.read_bytes())
    assert {name: sorted(own) for name, own in contents.items()} == {
        name: sorted(own) for name, own in expected.items()
    }
    assert len({path.casefold() for path in map(str, images.images)}) == len(rows)


@pytest.mark.parametrize("to", ["csv", "folders"])
def test_splits_are_kept(tmp_path: Path, to: str) -> None:
    write_images(tmp_path / "in", "train/cat/cat_1.png", "train/dog/dog_1.png", "val/cat/cat_2.png")
    out = tmp_path / "in" / f"out{WRITERS[to].suffix}" if to == "csv" else tmp_path / "out"
    write_labels(locate(tmp_path / "in").read().splits, to, out)
    sets = read_images(out, progress=False)
    assert {name: len(images) for name, images in sets.items()} == {"train": 2, "val": 1}


@pytest.mark.parametrize("to", ["coco", "label-studio"])
def test_one_file_takes_no_splits(tmp_path: Path, to: str) -> None:
    write_images(tmp_path / "in", "train/cat/cat_1.png", "train/dog/dog_1.png", "val/cat/cat_2.png")
    with pytest.raises(UserError, match="no splits"):
        write_labels(locate(tmp_path / "in").read().splits, to, tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_a_coco_box_is_the_whole_image(tmp_path: Path) -> None:
    Image.new("RGB", (7, 5)).save(tmp_path / "x.png")
    content = coco_json([Row("cat", tmp_path / "x.png")], tmp_path)
    assert content["images"] == [{"id": 1, "file_name": "x.png", "width": 7, "height": 5}]
    assert content["annotations"][0]["bbox"] == [0, 0, 7, 5]
    (tmp_path / "coco.json").write_text(json.dumps(content))
    [rows] = locate(tmp_path / "coco.json", crops=True).read().splits.values()
    with Image.open(rows[0].image) as crop:
        assert crop.size == (7, 5)


def test_mistakes_are_named(rows: list[Row], tmp_path: Path) -> None:
    (tmp_path / "there.csv").write_text("")
    for to, name, hint in (
        ("yolo", "x.json", "unknown"), ("csv", "x.json", r"ends in \.csv"),
        ("csv", "there.csv", "already exists"), ("folders", "heap", "already exists"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=hint):
            write_labels({"all": rows}, to, tmp_path / name)
    rows[0].image.write_bytes(b"no")
    with pytest.raises(UserError, match=r"a b\.png"):
        write_labels({"all": rows}, "coco", tmp_path / "coco.json")
    assert not (tmp_path / "coco.json").exists()
