"""YOLO's detection folders in miniature, as its own documents and Roboflow lay them out."""

from __future__ import annotations

from pathlib import Path

import pytest

from rmadapter.data.formats.yolo import read_yolo, yaml_file
from rmadapter.errors import UserError
from tests.helpers.shots import write_tiny_images
from tests.helpers.small_images import write_images

YAML = "path: ../datasets/pets\ntrain: images/train\nval: images/val\nnames:\n  0: cat\n  1: dog\n"


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    write_images(
        tmp_path,
        "images/train/cat_1.png",
        "images/train/dog_1.png",
        "images/train/cat_2.png",
        "images/val/dog_2.png",
    )
    for name, text in {
        "train/cat_1": "0 0.5 0.5 0.5 0.25\n0 0.1 0.1 0.1 0.1\n",
        "train/dog_1": "1 0.1 0.2 0.5 0.2 0.5 0.9 0.1 0.9\n",  # a polygon
        "val/dog_2": "1 0.5 0.5 1 1\n\n",
    }.items():
        (tmp_path / "labels" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "labels" / f"{name}.txt").write_text(text)
    (tmp_path / "data.yaml").write_text(YAML)
    return tmp_path


def test_labels_lie_in_a_folder_of_their_own(pets: Path) -> None:
    found = read_yolo(pets / "data.yaml")
    names = {
        split: {image.name: [m.label for m in own] for image, own in marks.items()}
        for split, marks in found.items()
    }
    assert names == {
        "train": {"cat_1.png": ["cat", "cat"], "cat_2.png": [], "dog_1.png": ["dog"]},
        "val": {"dog_2.png": ["dog"]},
    }
    boxes = [mark.box for own in found["train"].values() for mark in own]
    assert boxes[0] == (0.25, 0.375, 0.5, 0.25)
    assert boxes[2] == pytest.approx((0.1, 0.2, 0.4, 0.7))


def test_numbers_that_are_neither_box_nor_polygon(pets: Path) -> None:
    for line in ("0 0.1 0.2 0.3", "0 0.1 0.2 0.3 0.4 0.5", "0 0.1 0.2 0.3 0.4 0.5 0.6 0.7"):
        (pets / "labels/train/cat_1.txt").write_text(f"0 0.5 0.5 0.5 0.25\n{line}\n")
        words = f"cat_1.txt, line 2: {len(line.split()) - 1} numbers"
        with pytest.raises(UserError, match=words):
            read_yolo(pets / "data.yaml")


def test_roboflow_writes_one_step_too_many_and_a_list_of_names(tmp_path: Path) -> None:
    write_images(tmp_path, "train/images/dog_1.png")
    (tmp_path / "train" / "labels").mkdir()
    (tmp_path / "train" / "labels" / "dog_1.txt").write_text("1 0.5 0.5 1 1")
    (tmp_path / "data.yaml").write_text("train: ../train/images\nnc: 2\nnames: ['cat', 'dog']\n")
    ((image, (mark,)),) = read_yolo(tmp_path / "data.yaml")["train"].items()
    assert (image.name, mark.label) == ("dog_1.png", "dog")


def test_a_list_of_images_and_labels_beside_them(tmp_path: Path) -> None:
    write_images(tmp_path, "all/dog_1.png", "all/cat_1.png")
    (tmp_path / "all" / "dog_1.txt").write_text("1 0.5 0.5 1 1")
    (tmp_path / "train.txt").write_text("./all/dog_1.png\n\nall/cat_1.png\n")
    (tmp_path / "d.yaml").write_text("train: [train.txt]\nnames: [cat, dog]\n")
    marks = read_yolo(tmp_path / "d.yaml")["train"]
    expected = {"dog_1.png": ["dog"], "cat_1.png": []}
    assert {image.name: [mark.label for mark in own] for image, own in marks.items()} == expected


def test_a_parent_folder_called_images_is_ignored(tmp_path: Path) -> None:
    home = tmp_path / "images" / "pets"
    write_images(home, "all/cat_1.png")
    (home / "all/cat_1.txt").write_text("0 0.5 0.5 1 1\n")
    (home / "data.yaml").write_text("train: all\nnames: [cat]\n")
    ((image, marks),) = read_yolo(home / "data.yaml")["train"].items()
    assert (image.name, [mark.label for mark in marks]) == ("cat_1.png", ["cat"])


def test_the_file_is_found_among_others(pets: Path) -> None:
    (pets / "a.yaml").write_text("jobs: {}")
    (pets / "b.yaml").write_text("- no config")
    assert yaml_file(pets) == pets / "data.yaml"
    (pets / "data.yaml").rename(pets / "pets.yml")
    assert yaml_file(pets) == pets / "pets.yml"
    (pets / "pets.yml").unlink()
    assert yaml_file(pets) is None


@pytest.mark.parametrize(
    ("yaml", "words"),
    [
        ("names: [cat, dog]\n", "has no train, val or test"),
        ("train: images/train\nnames: 3\n", "not a YOLO data.yaml"),
        ("train: images/train\n", "not a YOLO data.yaml"),
        ("train: images/train\nnames: [cat]\n", "dog_1.txt, line 1: '1 0.1 "),
        ("train: gone\nnames: [cat, dog]\n", "train is 'gone', which was not found in its folder"),
        ("train: /\nnames: [cat, dog]\n", "'/', which .*--allow-outside"),
        ("train: ../..\nnames: [cat, dog]\n", "which was not found in its folder"),
        ("path: /\ntrain: tmp\nnames: [cat, dog]\n", "'tmp', which was not found in its folder"),
    ],
)
def test_unclear_files_are_refused(pets: Path, yaml: str, words: str) -> None:
    (pets / "data.yaml").write_text(yaml)
    with pytest.raises(UserError, match=words):
        read_yolo(pets / "data.yaml")


@pytest.mark.parametrize(
    "line", ["1 0.5 0.5", "1 a b c d", "x 0.5 0.5 1 1", "-1 0.5 0.5 1 1", "1 0.1 0.1 0.2 0.2 0.3"]
)
def test_malformed_lines_are_refused(pets: Path, line: str) -> None:
    (pets / "labels" / "train" / "cat_1.txt").write_text(f"0 0.5 0.5 1 1\n{line}\n")
    with pytest.raises(UserError, match=r"cat_1.txt, line 2: "):
        read_yolo(pets / "data.yaml")


def test_names_that_yaml_parses_as_other_types(pets: Path) -> None:
    text = (pets / "data.yaml").read_text()
    (pets / "data.yaml").write_text(text[: text.index("names")] + "names: [no, yes]\n")
    with pytest.raises(UserError, match="a class is False: write its name in quotes"):
        read_yolo(pets / "data.yaml")


def test_keypoints_follow_a_box(tmp_path: Path) -> None:
    write_tiny_images(tmp_path, "images/a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.txt").write_text("0 .5 .5 .2 .2 .45 .45 2 .55 .5 2\n")
    (tmp_path / "data.yaml").write_text("train: images\nnames: [cat]\nkpt_shape: [2, 3]\n")
    [[mark]] = read_yolo(tmp_path / "data.yaml")["train"].values()
    assert mark.box == pytest.approx((0.4, 0.4, 0.2, 0.2))


def test_images_outside_may_be_allowed(pets: Path, tmp_path: Path) -> None:
    (pets / "sub").mkdir()
    (pets / "sub" / "data.yaml").write_text("train: ../images/val\nnames: [cat, dog]\n")
    with pytest.raises(UserError, match="not found in its folder"):
        read_yolo(pets / "sub" / "data.yaml")
    (image,) = read_yolo(pets / "sub" / "data.yaml", outside=True)["train"]
    assert image == pets / "images/val/dog_2.png"
