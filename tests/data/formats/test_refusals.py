"""Files of annotations that are damaged, contradict themselves or name images elsewhere, by format;
each is a good file with one change."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rmadapter.data.formats.registry import locate
from rmadapter.errors import UserError
from tests.helpers.formats import coco_file, fiftyone, fiftyone_samples, label_studio

Change = Callable[[Any], object]


def first(part: str, **fields: Any) -> Change:
    """Change fields of the first item of a list."""
    return lambda value: value[part][0].update(fields)


def labels(**images: Any) -> Change:
    return lambda value: value["labels"].update(images)


def task(**fields: Any) -> Change:
    return lambda value: value[0].update(fields)


def result(value: object) -> Change:
    return task(annotations=[{"result": [value]}])


def truth(**fields: Any) -> Change:
    return lambda value: value["samples"][0]["ground_truth"].update(fields)


def no_truth(value: Any) -> None:
    for sample in value["samples"]:
        del sample["ground_truth"]


def two_fields(value: Any) -> None:
    label = value["samples"][0].pop("ground_truth")
    value["samples"] = [{**value["samples"][0], "x": label, "y": label}]


CASES: list[tuple[Callable[[Path], Path], Change, str]] = [
    (coco_file, lambda value: value.update(images=None), r"not a COCO file \(TypeError"),
    (coco_file, lambda value: value.update(categories=[{"id": 1}]), r"COCO file \(KeyError: "),
    (coco_file, lambda value: value.update(categories=[]), "annotation 0 refers to category 0"),
    (coco_file, lambda value: value.update(images=[]), "annotation 0 refers to image 0"),
    (coco_file, lambda value: value.update(annotations=[[1]]), "not a COCO file"),
    (coco_file, first("images", id=1), "two images have the id 1"),
    (coco_file, first("images", id=[]), "not a COCO file"),
    (coco_file, first("categories", id=1), "two categories have the id 1"),
    (coco_file, first("images", file_name="../x.png"), "image 0: .*outside.*--allow-outside"),
    (coco_file, first("images", file_name="/x.png"), "lies outside"),
    (coco_file, first("images", file_name="http://x/y.png"), "is a web address"),
    (coco_file, first("images", file_name="a\0.png"), "image 0: .* NUL"),
    (coco_file, first("annotations", bbox=5), "annotation 0: bbox 5"),
    (coco_file, first("annotations", image_id=1), r"dog_1\.png: .*'cat'.*'dog'.*--crops"),
    (coco_file, first("categories", name=" "), "' ' is not a class name"),
    (fiftyone, labels(cat_1=2), "'cat_1' has class 2"),
    (fiftyone, labels(cat_1=-1), "has class -1"),
    (fiftyone, labels(cat_1=[0, 2]), "has class 2"),
    (fiftyone, labels(cat_1=[0, 1]), r"cat_1\.png: .*'cat'.*'dog'.*--crops"),
    (fiftyone, labels(cat_1={"confidence": 1}), "not a FiftyOne list of labels"),
    (fiftyone, lambda value: value.update(classes=None), "has class 0"),
    (fiftyone, lambda value: value.update(classes=5), "not a FiftyOne list of labels"),
    (fiftyone, labels(**{"../cat_1": 0}), "lies outside"),
    (fiftyone, labels(**{"/cat_1": 0}), "lies outside"),
    (fiftyone_samples, no_truth, "no sample has a label of the types Classification, "),
    (fiftyone_samples, lambda value: value.update(samples=[]), "no sample has a label"),
    (fiftyone_samples, two_fields, "in the fields 'x', 'y'"),
    (fiftyone_samples, first("samples", tags=["train", "test"]), "of train and test"),
    (fiftyone_samples, first("samples", tags=[]), "others are not: tag all or none"),
    (fiftyone_samples, lambda value: value["samples"][0].pop("filepath"), "not a FiftyOne data"),
    (fiftyone_samples, truth(detections=None), "not a FiftyOne data set"),
    (fiftyone_samples, first("samples", ground_truth="cat"), "not a FiftyOne data set"),
    (fiftyone_samples, lambda value: value.update(samples=["a.jpg"]), "not a FiftyOne data set"),
    (fiftyone_samples, first("samples", filepath="../../a.jpg"), "lies outside"),
    (label_studio, lambda value: value.append(1), r"not a Label Studio export \(AttributeError"),
    (label_studio, task(data={"text": "a cat"}), "task 0 names no image"),
    (label_studio, task(data={"image": "../../etc/a.png"}), r"'\.\./\.\./etc/a\.png' lies outside"),
    (label_studio, task(data={"image": "?d=/etc/a.png"}, file_upload="../b.png"), "lies outside"),
    (label_studio, task(data={"image": "https://x.org/owl.png"}), "is a web address, .*'owl.png'"),
    (label_studio, result({}), "not a Label Studio export"),
    (label_studio, result({"value": {"rectanglelabels": ["x"]}}), "KeyError"),
    (label_studio, result({"value": {"choices": ["x", "y"]}}), r"cat_1\.png: .*'x'.*'y'.*--crops"),
]


@pytest.mark.parametrize(("write", "change", "words"), CASES)
def test_a_file_with_one_fault_is_refused(
    tmp_path: Path, write: Callable[[Path], Path], change: Change, words: str
) -> None:
    path = write(tmp_path / "set")
    [file] = [path] if path.is_file() else sorted(path.glob("*s.json"))
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))
    with pytest.raises(UserError, match=words) as caught:
        locate(path).read()
    assert str(tmp_path / "set") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not readable JSON"),
        ("[[" * 100_000, "not readable JSON"),
        ("{}", "not a COCO file, a Label Studio export, or FiftyOne"),
        ("[]", "not a COCO file"),
        ('["a.png"]', "not a COCO file"),
        ('{"labels": []}', "not a COCO file"),
        ('{"samples": {}}', "not a COCO file"),
        ('{"images": [], "labels": {}}', "data: cannot be read"),  # of FiftyOne
        ('{"images": [], "annotations": [], "categories": []}', "no labelled images"),
    ],
)
def test_other_json_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=words):
        locate(tmp_path / "x.json").read()


@pytest.mark.parametrize(
    ("write", "change"),
    [
        (coco_file, first("images", file_name="../cat_9.png")),
        (fiftyone_samples, first("samples", filepath="../cat_9.png")),
        (label_studio, task(data={"image": "../cat_9.png"})),
    ],
)
def test_images_outside_may_be_allowed(
    tmp_path: Path, write: Callable[[Path], Path], change: Change
) -> None:
    path = write(tmp_path / "set")
    (tmp_path / "cat_9.png").touch()
    [file] = [path] if path.is_file() else sorted(path.glob("samples.json"))
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))
    [rows] = locate(path, outside=True).read().splits.values()
    assert rows[0].image == tmp_path / "set/../cat_9.png"
