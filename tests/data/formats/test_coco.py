"""COCO's JSON in miniature, where its own programs put it, and files that are damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rmadapter.data.formats.coco import is_coco, read_coco, split_files
from rmadapter.errors import UserError
from tests.helpers.small_images import write_images, write_json

NAMES = ("cat_1.png", "dog_1.png", "cat_2.png")


def coco(names: tuple[str, ...] = NAMES) -> dict[str, Any]:
    """As the 2017 files have it; categories count from 1 and have gaps."""
    number = {"cat": 17, "dog": 18}
    return {
        "info": {"year": 2017},
        "images": [
            {"id": i, "file_name": name, "width": 8, "height": 8}
            for i, name in enumerate(names, 500)
        ],
        "annotations": [
            {
                "id": i,
                "image_id": 500 + i,
                "category_id": number[Path(name).name[:3]],
                "bbox": [1, 2, 4, 4],
                "iscrowd": 0,
            }
            for i, name in enumerate(names)
        ],
        "categories": [
            {"id": 17, "name": "cat", "supercategory": "animal"},
            {"id": 18, "name": "dog"},
        ],
    }


def labels(marks: Any, root: Path) -> list[tuple[str, list[str]]]:
    return [
        (image.relative_to(root).as_posix(), [mark.label for mark in own])
        for image, own in marks.items()
    ]


def test_images_beside_the_file(tmp_path: Path) -> None:
    file = write_json(write_images(tmp_path, *NAMES) / "labels.json", coco())
    marks = read_coco(file, coco())
    expected = [("cat_1.png", ["cat"]), ("dog_1.png", ["dog"]), ("cat_2.png", ["cat"])]
    assert labels(marks, tmp_path) == expected
    (mark,) = marks[tmp_path / "dog_1.png"]
    assert (mark.box, mark.size) == ([1, 2, 4, 4], (8, 8))


@pytest.mark.parametrize("place", ["train2017", "images/train2017", "images", "."])
def test_images_where_coco_has_them(tmp_path: Path, place: str) -> None:
    write_images(tmp_path / place, *NAMES)
    file = write_json(tmp_path / "annotations" / "instances_train2017.json", coco())
    assert all(image.is_file() for image in read_coco(file, coco()))
    assert split_files(tmp_path) == {"train": file}


def test_a_missing_image_does_not_change_the_base_folder(tmp_path: Path) -> None:
    write_images(tmp_path / "train2017", *NAMES[1:])
    file = write_json(tmp_path / "annotations" / "instances_train2017.json", coco())
    assert {image.parent for image in read_coco(file, coco())} == {tmp_path / "train2017"}


def test_roboflow_has_a_file_in_each_split(tmp_path: Path) -> None:
    files = {
        s: write_json(tmp_path / s / "_annotations.coco.json", coco())
        for s in ("train", "valid", "test")
    }
    expected = {"train": files["train"], "val": files["valid"], "test": files["test"]}
    assert split_files(tmp_path) == expected


def test_two_files_of_a_split(tmp_path: Path) -> None:
    for name in ("instances_train2014.json", "instances_train2017.json"):
        write_json(tmp_path / "annotations" / name, coco())
    with pytest.raises(UserError, match="both for the split 'train'"):
        split_files(tmp_path)


def test_a_crowd_has_a_label_and_no_box(tmp_path: Path) -> None:
    value = coco()
    value["annotations"][0]["iscrowd"] = 1
    del value["annotations"][1]["bbox"]
    marks = read_coco(tmp_path / "c.json", value)
    assert [len(mark.box) for own in marks.values() for mark in own] == [0, 0, 4]


def change(**more: Any) -> Callable[[dict[str, Any]], None]:
    return lambda value: value.update(more)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (change(images=None), r"not a COCO file \(TypeError"),
        (change(categories=[{"id": 17}]), r"not a COCO file \(KeyError: "),
        (change(categories=[]), r"annotation 0 refers to category 17, which"),
        (change(images=[]), "annotation 0 refers to image 500, which"),
        (change(annotations=[[1]]), "not a COCO file"),
        (lambda value: value["images"].append(dict(value["images"][0])), "two images .* 500"),
        (lambda value: value["categories"].append({"id": 17, "name": "yeti"}), "categories .* 17"),
        (lambda value: value["images"][0].update(file_name="../x.png"), "image 500: .* outside"),
        (lambda value: value["images"][0].update(file_name="/x.png"), "lies outside"),
        (lambda value: value["images"][0].update(file_name="http://x/y.png"), "is a web address"),
        (lambda value: value["images"][0].update(file_name="a\0.png"), "image 500: .* NUL"),
        (lambda value: value["annotations"][0].update(bbox=5), r"annotation 0: bbox 5"),
        (lambda value: value["images"][0].update(id=[]), "not a COCO file"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, spoil: Callable[[Any], None], words: str) -> None:
    value = coco()
    spoil(value)
    with pytest.raises(UserError, match=words) as caught:
        read_coco(tmp_path / "c.json", value)
    assert "\n" not in str(caught.value)


def test_images_outside_may_be_allowed(tmp_path: Path) -> None:
    value = coco(("../cat_1.png",))
    assert [*read_coco(tmp_path / "in" / "c.json", value, outside=True)] == [
        tmp_path / "in" / "../cat_1.png"
    ]


def test_other_json_is_not_coco() -> None:
    assert is_coco(coco())
    assert not is_coco([coco()])
    assert not is_coco({"images": [], "labels": {}})
