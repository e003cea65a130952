"""FiftyOneImageClassificationDataset and FiftyOneDataset in miniature, as FiftyOne exports them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rmadapter.data.formats.base import Mark
from rmadapter.data.formats.fiftyone import read_fiftyone, read_samples
from rmadapter.errors import UserError
from tests.helpers.small_images import write_images


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return write_images(tmp_path, "data/cat_1.png", "data/deep/dog_1.jpg", "data/cat_2.png")


@pytest.mark.parametrize(
    ("classes", "labels", "expected"),
    [
        (["cat", "dog"], {"deep/dog_1": 1}, {"deep/dog_1.jpg": "dog"}),
        (["cat", "dog"], {"cat_2": None}, {"cat_2.png": ""}),
        (None, {"cat_1": "cat"}, {"cat_1.png": "cat"}),
        (None, {"cat_2": {"label": "dog", "confidence": 0.9}}, {"cat_2.png": "dog"}),
        (["cat", "dog"], {"cat_1": [0, 1]}, {"cat_1.png": "cat dog"}),
        (["cat", "dog"], {"cat_2": [{"label": 1}]}, {"cat_2.png": "dog"}),
        (["cat"], {"cat_9": 0}, {"cat_9": "cat"}),  # a missing image
    ],
)
def test_labels_are_numbers_names_or_lists(
    home: Path, classes: Any, labels: Any, expected: dict[str, str]
) -> None:
    marks = read_fiftyone(home / "labels.json", {"classes": classes, "labels": labels})
    found = {image: " ".join(mark.label for mark in own) for image, own in marks.items()}
    assert found == {home / "data" / name: label for name, label in expected.items()}


def test_two_images_of_one_name_are_refused(home: Path) -> None:
    write_images(home, "data/cat_1.jpg")
    with pytest.raises(UserError, match="share one name"):
        read_fiftyone(home / "labels.json", {"classes": ["cat"], "labels": {"cat_1": 0}})


def sample(name: str, tags: Sequence[str] = (), **fields: Any) -> dict[str, Any]:
    return {"filepath": f"data/{name}", "tags": [*tags], "metadata": {"width": 8}, **fields}


def label(name: str | None, kind: str = "Classification", **more: Any) -> dict[str, Any]:
    return {"_id": {"$oid": "6"}, "_cls": kind, "label": name, **more}


def read(home: Path, *samples: Any) -> dict[str, dict[str, list[Mark]]]:
    found = read_samples(home / "samples.json", {"samples": [*samples]})
    return {split: {path.name: own for path, own in part.items()} for split, part in found.items()}


def labels(marks: list[Mark]) -> list[str]:
    return [mark.label for mark in marks]


def test_samples_have_one_label_or_none(home: Path) -> None:
    one, empty = sample("cat_1.png", truth=label("cat")), sample("owl.jpg", truth=label(None))
    found = read(home, one, empty, sample("x.jpg"))["all"]
    expected = {"cat_1.png": ["cat"], "owl.jpg": [], "x.jpg": []}
    assert {name: labels(marks) for name, marks in found.items()} == expected


def test_samples_have_several_labels_or_boxes(home: Path) -> None:
    kinds = {"_cls": "Classifications", "classifications": [label("cat"), label("pet")]}
    box = label("dog", "Detection", bounding_box=[0.1, 0.2, 0.5, 0.25])
    boxes = {"_cls": "Detections", "detections": [box]}
    samples = [sample("a.jpg", x=kinds), sample("b.jpg", x=boxes), sample("c.jpg", x=box)]
    found = read(home, *samples)["all"]
    assert labels(found["a.jpg"]) == ["cat", "pet"]
    for [mark] in (found["b.jpg"], found["c.jpg"]):
        assert (mark.label, mark.box, mark.size) == ("dog", [0.1, 0.2, 0.5, 0.25], (1, 1))


def test_ground_truth_is_read_and_tags_name_the_splits(home: Path) -> None:
    one = sample("a.jpg", ["train", "sunny"], prediction=label("dog"), ground_truth=label("cat"))
    two = sample("b.jpg", ["Validation"], prediction=label("dog"), ground_truth=label("owl"))
    found = read(home, one, two, sample("c.jpg"))  # which has no label
    assert {split: [labels(marks) for marks in part.values()] for split, part in found.items()} == {
        "train": [["cat"]], "val": [["owl"]], "all": [[]],
    }  # fmt: skip
