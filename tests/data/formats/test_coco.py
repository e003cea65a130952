"""COCO's JSON in miniature, where its own programs put it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rmadapter.data.formats.base import Marks
from rmadapter.data.formats.coco import read_coco, split_files
from rmadapter.errors import UserError
from tests.helpers.formats import NAMES, coco_file, roboflow
from tests.helpers.small_images import write_images


def read(file: Path) -> Marks:
    return read_coco(file, json.loads(file.read_text(encoding="utf-8")))


def test_images_beside_the_file_have_labels_and_boxes(tmp_path: Path) -> None:
    marks = read(coco_file(tmp_path))
    assert [image.relative_to(tmp_path).as_posix() for image in marks] == [*NAMES]
    [[cat], [dog]] = marks.values()
    assert (cat.label, dog.label, dog.box, dog.size) == ("cat", "dog", [0, 0, 4, 2], (8, 8))


@pytest.mark.parametrize("place", ["train2017", "images/train2017", "images", "."])
@pytest.mark.parametrize("missing", [False, True])
def test_images_where_coco_has_them(tmp_path: Path, place: str, missing: bool) -> None:
    file = coco_file(tmp_path / "annotations").rename(
        tmp_path / "annotations/instances_train2017.json"
    )
    write_images(tmp_path / place, *NAMES[missing:])
    for name in NAMES:
        (tmp_path / "annotations" / name).unlink()
    assert [*read(file)] == [tmp_path / place / name for name in NAMES]
    assert split_files(tmp_path) == {"train": file}


def test_roboflow_has_a_file_in_each_split(tmp_path: Path) -> None:
    roboflow(tmp_path)
    names = {"train": "train", "val": "valid"}
    expected = {split: tmp_path / name / "_annotations.coco.json" for split, name in names.items()}
    assert split_files(tmp_path) == expected


def test_two_files_of_a_split_are_refused(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    for year in (2014, 2017):
        (tmp_path / f"annotations/instances_train{year}.json").touch()
    with pytest.raises(UserError, match="both for the split 'train'"):
        split_files(tmp_path)


def test_a_crowd_has_a_label_and_no_box(tmp_path: Path) -> None:
    file = coco_file(tmp_path)
    value = json.loads(file.read_text())
    value["annotations"].append({"id": 2, "image_id": 1, "category_id": 1})
    value["annotations"][0]["iscrowd"] = 1
    marks = read_coco(file, value).values()
    assert [len(mark.box) for image in marks for mark in image] == [0, 4, 0]
