"""YOLO's detection folders in miniature, as its own documents and Roboflow lay them out."""

from __future__ import annotations

from pathlib import Path

import pytest

from rmadapter.data.budget import Budget
from rmadapter.data.formats.yolo import read_yolo, yaml_file
from rmadapter.errors import UserError
from tests.helpers.shots import write_tiny_images
from tests.helpers.small_images import write_images

YAML = "path: ../datasets/pets\ntrain: images/train\nval: images/val\nnames:\n  0: cat\n  1: dog\n"


def write(home: Path, yaml: str, **labels: str) -> Path:
    """Images of any format, a data.yaml, and a text file for each image with labels."""
    for name, text in labels.items():
        file = home / f"{name.replace('__', '/')}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (home / "data.yaml").write_text(yaml)
    return home / "data.yaml"


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    write_images(tmp_path, "images/train/cat_1.png", "images/train/dog_1.png")
    write_images(tmp_path, "images/train/cat_2.png", "images/val/dog_2.png")
    return write(
        tmp_path,
        YAML,
        labels__train__cat_1="0 0.5 0.5 0.5 0.25\n0 0.1 0.1 0.1 0.1\n",
        labels__train__dog_1="1 0.1 0.2 0.5 0.2 0.5 0.9 0.1 0.9\n",  # a polygon
        labels__val__dog_2="1 0.5 0.5 1 1\n\n",
    )


def labels(file: Path, split: str = "train") -> dict[str, list[str]]:
    marks = read_yolo(file, Budget())[split]
    return {image.name: [mark.label for mark in own] for image, own in marks.items()}


def test_labels_are_in_a_folder_of_their_own(pets: Path) -> None:
    expected = {"cat_1.png": ["cat", "cat"], "cat_2.png": [], "dog_1.png": ["dog"]}
    assert labels(pets) == expected
    assert labels(pets, "val") == {"dog_2.png": ["dog"]}
    boxes = [mark.box for own in read_yolo(pets, Budget())["train"].values() for mark in own]
    assert boxes[0] == (0.25, 0.375, 0.5, 0.25)
    assert boxes[2] == pytest.approx((0.1, 0.2, 0.4, 0.7))


def test_roboflow_writes_one_step_too_many_and_a_list_of_names(tmp_path: Path) -> None:
    write_images(tmp_path, "train/images/dog_1.png")
    yaml = "train: ../train/images\nnc: 2\nnames: ['cat', 'dog']\n"
    assert labels(write(tmp_path, yaml, train__labels__dog_1="1 .5 .5 1 1")) == {
        "dog_1.png": ["dog"]
    }


def test_a_list_of_images_and_labels_beside_them(tmp_path: Path) -> None:
    write_images(tmp_path, "all/dog_1.png", "all/cat_1.png")
    yaml = "train: [train.txt]\nnames: [cat, dog]\n"
    images = "./all/dog_1.png\n\nall/cat_1.png\n"
    file = write(tmp_path, yaml, all__dog_1="1 .5 .5 1 1", train=images)
    assert labels(file) == {"dog_1.png": ["dog"], "cat_1.png": []}


def test_a_parent_folder_called_images_is_ignored(tmp_path: Path) -> None:
    home = write_images(tmp_path / "images/pets", "all/cat_1.png")
    file = write(home, "train: all\nnames: [cat]\n", all__cat_1="0 0.5 0.5 1 1\n")
    assert labels(file) == {"cat_1.png": ["cat"]}


def test_keypoints_follow_a_box(tmp_path: Path) -> None:
    write_tiny_images(tmp_path, "images/a.png")
    yaml = "train: images\nnames: [cat]\nkpt_shape: [2, 3]\n"
    file = write(tmp_path, yaml, labels__a="0 .5 .5 .2 .2 .45 .45 2 .55 .5 2\n")
    [[mark]] = read_yolo(file, Budget())["train"].values()
    assert mark.box == pytest.approx((0.4, 0.4, 0.2, 0.2))


def test_the_file_is_recognised_among_others(pets: Path) -> None:
    home = pets.parent
    (home / "a.yaml").write_text("jobs: {}")
    (home / "b.yaml").write_text("- no config")
    assert yaml_file(home) == pets
    other = pets.rename(home / "pets.yml")
    assert yaml_file(home) == other
    other.unlink()
    assert yaml_file(home) is None


@pytest.mark.parametrize(
    ("yaml", "words"),
    [
        ("names: [cat, dog]\n", "has no train, val or test"),
        ("train: images/train\nnames: 3\n", "not a YOLO data.yaml"),
        ("train: images/train\n", "not a YOLO data.yaml"),
        ("train: images/train\nnames: [cat]\n", "dog_1.txt, line 1: '1 0.1 "),
        ("train: images/train\nnames: [no, yes]\n", "a class is False"),  # as YAML reads them
        ("train: gone\nnames: [cat, dog]\n", "train is 'gone'"),
        ("train: /\nnames: [cat, dog]\n", "'/', which .*--allow-outside"),
        ("train: ../..\nnames: [cat, dog]\n", "train is '../..'"),
        ("path: /\ntrain: tmp\nnames: [cat, dog]\n", "train is 'tmp'"),
    ],
)
def test_invalid_yaml_is_refused(pets: Path, yaml: str, words: str) -> None:
    pets.write_text(yaml, encoding="utf-8")
    with pytest.raises(UserError, match=words) as caught:
        read_yolo(pets, Budget())
    assert str(pets.parent) in str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        "1 0.5 0.5", "1 a b c d", "x 0.5 0.5 1 1", "-1 0.5 0.5 1 1", "0 0.1 0.2 0.3",
        "0 0.1 0.2 0.3 0.4 0.5", "0 0.1 0.2 0.3 0.4 0.5 0.6 0.7",
    ],
)  # fmt: skip
def test_a_malformed_line_is_named(pets: Path, line: str) -> None:
    (pets.parent / "labels/train/cat_1.txt").write_text(f"0 0.5 0.5 1 1\n{line}\n")
    with pytest.raises(UserError, match=r"cat_1.txt, line 2: "):
        read_yolo(pets, Budget())


def test_images_outside_may_be_allowed(pets: Path) -> None:
    inner = pets.parent / "sub/data.yaml"
    inner.parent.mkdir()
    inner.write_text("train: ../images/val\nnames: [cat, dog]\n")
    with pytest.raises(UserError, match="not found in its folder"):
        read_yolo(inner, Budget())
    assert [*read_yolo(inner, Budget(), outside=True)["train"]] == [
        pets.parent / "images/val/dog_2.png"
    ]
