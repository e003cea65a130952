"""FiftyOneImageClassificationDataset and FiftyOneDataset in miniature, as FiftyOne exports them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rmadapter.data.formats.base import Mark
from rmadapter.data.formats.fiftyone import is_fiftyone, is_samples, read_fiftyone, read_samples
from rmadapter.errors import UserError
from tests.helpers.small_images import write_images


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return write_images(tmp_path, "data/cat_1.png", "data/deep/dog_1.jpg", "data/cat_2.png")


def labels(home: Path, value: Any) -> dict[str, list[str]]:
    marks = read_fiftyone(home / "labels.json", value)
    return {
        image.relative_to(home).as_posix(): [mark.label for mark in own]
        for image, own in marks.items()
    }


def test_numbers_of_classes_and_images_without_one(home: Path) -> None:
    value = {"classes": ["cat", "dog"], "labels": {"deep/dog_1": 1, "cat_1": 0, "cat_2": None}}
    expected = {"data/deep/dog_1.jpg": ["dog"], "data/cat_1.png": ["cat"], "data/cat_2.png": []}
    assert labels(home, value) == expected


def test_names_and_further_attributes(home: Path) -> None:
    value = {
        "classes": None,
        "labels": {"cat_1": "cat", "deep/dog_1": {"label": "dog", "confidence": 0.9}},
    }
    assert labels(home, value) == {"data/cat_1.png": ["cat"], "data/deep/dog_1.jpg": ["dog"]}


def test_several_labels(home: Path) -> None:
    value = {
        "classes": ["cat", "dog"],
        "labels": {"cat_1": [0, 1], "cat_2": [{"label": 1, "confidence": 0.9}]},
    }
    assert labels(home, value) == {"data/cat_1.png": ["cat", "dog"], "data/cat_2.png": ["dog"]}


def test_a_missing_image_is_named(home: Path) -> None:
    assert labels(home, {"classes": ["cat"], "labels": {"cat_9": 0}}) == {"data/cat_9": ["cat"]}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"classes": ["cat"], "labels": {"cat_1": 1}}, "'cat_1' has class 1"),
        ({"classes": ["cat"], "labels": {"cat_1": -1}}, "has class -1"),
        ({"classes": None, "labels": {"cat_1": 0}}, "has class 0"),
        ({"classes": 5, "labels": {"cat_1": 0}}, "not a FiftyOne list of labels"),
        ({"labels": {"cat_1": {"confidence": 1}}}, "not a FiftyOne list of labels"),
        ({"classes": ["cat"], "labels": {"cat_1": [0, 1]}}, "has class 1"),
        ({"classes": ["cat"], "labels": {"../cat_1": 0}}, "lies outside"),
        ({"classes": ["cat"], "labels": {"/cat_1": 0}}, "lies outside"),
    ],
)
def test_damaged_files_give_a_one_line_error(home: Path, value: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        labels(home, value)


def test_two_images_of_one_name(home: Path) -> None:
    write_images(home, "data/cat_1.jpg")
    with pytest.raises(UserError, match="share one name"):
        labels(home, {"classes": ["cat"], "labels": {"cat_1": 0}})


def test_other_json_is_no_labels_file() -> None:
    assert is_fiftyone({"classes": [], "labels": {}})
    assert not is_fiftyone({"labels": []})


def sample(name: str, tags: Sequence[str] = (), **fields: Any) -> dict[str, Any]:
    return {"filepath": f"data/{name}", "tags": [*tags], "metadata": {"width": 8}, **fields}


def of(label: str | None, kind: str = "Classification", **more: Any) -> dict[str, Any]:
    return {"_id": {"$oid": "6"}, "_cls": kind, "label": label, **more}


def splits(home: Path, *samples: Any) -> dict[str, dict[str, list[Mark]]]:
    found = read_samples(home / "samples.json", {"samples": [*samples]})
    return {
        s: {image.relative_to(home).as_posix(): own for image, own in marks.items()}
        for s, marks in found.items()
    }


def test_samples_with_one_label_each(home: Path) -> None:
    found = splits(
        home,
        sample("cat_1.png", truth=of("cat")),
        sample("owl.jpg", truth=of(None)),
        sample("x.jpg"),
    )
    assert {image: [mark.label for mark in own] for image, own in found["all"].items()} == {
        "data/cat_1.png": ["cat"], "data/owl.jpg": [], "data/x.jpg": []
    }  # fmt: skip
    assert [*found] == ["all"]


def test_samples_with_several_labels_and_boxes(home: Path) -> None:
    kinds = {"_cls": "Classifications", "classifications": [of("cat"), of("pet")]}
    boxes = {
        "_cls": "Detections",
        "detections": [of("dog", "Detection", bounding_box=[0.1, 0.2, 0.5, 0.25])],
    }
    found = splits(
        home,
        sample("a.jpg", x=kinds),
        sample("b.jpg", x=boxes),
        sample("c.jpg", x=boxes["detections"][0]),
    )
    assert [mark.label for mark in found["all"]["data/a.jpg"]] == ["cat", "pet"]
    for name in ("data/b.jpg", "data/c.jpg"):
        [mark] = found["all"][name]
        assert (mark.label, mark.box, mark.size) == ("dog", [0.1, 0.2, 0.5, 0.25], (1, 1))


def test_the_field_that_counts_and_the_splits_that_tags_name(home: Path) -> None:
    one = sample("a.jpg", ["train", "sunny"], prediction=of("dog"), ground_truth=of("cat"))
    two = sample("b.jpg", ["Validation"], prediction=of("dog"), ground_truth=of("owl"))
    found = splits(home, one, two, sample("c.jpg"))  # which has no label
    labels = {
        split: [mark.label for part in marks.values() for mark in part]
        for split, marks in found.items()
    }
    assert labels == {
        "train": ["cat"], "val": ["owl"], "all": []
    }  # fmt: skip


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        ([sample("a.jpg")], "no sample has a label of the types Classification, "),
        ([], "no sample has a label"),
        ([sample("a.jpg", x=of("cat"), y=of("dog"))], "in the fields 'x', 'y': export only one"),
        ([sample("a.jpg", ["train", "test"], x=of("cat"))], "splits test and train"),
        (
            [sample("a.jpg", ["train"], x=of("cat")), sample("b.jpg", x=of("cat"))],
            "others are not: tag all or none",
        ),
        ([{"tags": [], "x": of("cat")}], "not a FiftyOne data set"),
        ([sample("a.jpg", x={"_cls": "Detections"})], "not a FiftyOne data set"),
        (
            [sample("a.jpg", ground_truth=of("cat")), sample("b.jpg", ground_truth="cat")],
            "not a FiftyOne data set",
        ),
        (["a.jpg"], "not a FiftyOne data set"),
        ([sample("../../a.jpg", x=of("cat"))], "lies outside"),
    ],
)
def test_damaged_samples_give_a_one_line_error(home: Path, samples: list[Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        splits(home, *samples)


def test_other_json_is_no_samples_file() -> None:
    assert is_samples({"samples": []})
    assert not is_samples({"samples": {}})
    assert not is_samples([])
