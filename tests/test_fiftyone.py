"""FiftyOneImageClassificationDataset in miniature, as FiftyOne exports it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from miniatures import paint
from rmadapter.data.fiftyone import is_fiftyone, read_fiftyone
from rmadapter.errors import UserError


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return paint(tmp_path, "data/cat_1.png", "data/deep/dog_1.jpg", "data/cat_2.png")


def labels(home: Path, value: Any) -> dict[str, list[str]]:
    marks = read_fiftyone(home / "labels.json", value)
    return {image.relative_to(home).as_posix(): [mark.label for mark in own] for image, own in marks.items()}


def test_numbers_of_classes_and_images_without_one(home: Path) -> None:
    value = {"classes": ["cat", "dog"], "labels": {"deep/dog_1": 1, "cat_1": 0, "cat_2": None}}
    assert labels(home, value) == {"data/deep/dog_1.jpg": ["dog"], "data/cat_1.png": ["cat"], "data/cat_2.png": []}


def test_names_and_further_attributes(home: Path) -> None:
    value = {"classes": None, "labels": {"cat_1": "cat", "deep/dog_1": {"label": "dog", "confidence": 0.9}}}
    assert labels(home, value) == {"data/cat_1.png": ["cat"], "data/deep/dog_1.jpg": ["dog"]}


def test_an_image_that_is_gone_is_named(home: Path) -> None:
    assert labels(home, {"classes": ["cat"], "labels": {"cat_9": 0}}) == {"data/cat_9": ["cat"]}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"classes": ["cat"], "labels": {"cat_1": 1}}, "'cat_1' is of class 1, which the file does not list"),
        ({"classes": ["cat"], "labels": {"cat_1": -1}}, "is of class -1"),
        ({"classes": None, "labels": {"cat_1": 0}}, "is of class 0"),
        ({"classes": 5, "labels": {"cat_1": 0}}, "not a FiftyOne list of labels"),
        ({"labels": {"cat_1": {"confidence": 1}}}, "not a FiftyOne list of labels"),
        ({"classes": ["cat"], "labels": {"../cat_1": 0}}, "lies outside"),
        ({"classes": ["cat"], "labels": {"/cat_1": 0}}, "lies outside"),
    ],
)
def test_damage_is_one_sentence(home: Path, value: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        labels(home, value)


def test_two_images_of_one_name(home: Path) -> None:
    paint(home, "data/cat_1.jpg")
    with pytest.raises(UserError, match="have one name"):
        labels(home, {"classes": ["cat"], "labels": {"cat_1": 0}})


def test_what_is_no_list_of_labels() -> None:
    assert is_fiftyone({"classes": [], "labels": {}})
    assert not is_fiftyone({"labels": []})
