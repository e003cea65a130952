"""Label Studio's exports in miniature: JSON and JSON-MIN, with images where it keeps them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rmadapter.data.formats.label_studio import read_label_studio
from rmadapter.errors import UserError
from tests.helpers.small_images import write_images


def task(image: str, *choices: str, **more: Any) -> dict[str, Any]:
    """As in the export JSON of version 1."""
    value = {"type": "choices", "value": {"choices": [*choices]}, "to_name": "image"}
    annotation = {"id": 1, "was_cancelled": False, "result": [value] if choices else []}
    return {"id": 7, "annotations": [annotation], "data": {"image": image}, **more}


def labels(folder: Path, *tasks: Any) -> dict[str, list[str]]:
    marks = read_label_studio(folder / "export.json", tasks)
    return {
        image.relative_to(folder).as_posix(): [mark.label for mark in own]
        for image, own in marks.items()
    }


@pytest.mark.parametrize(
    ("written", "there"),
    [
        ("/data/upload/3/0a1b2c3d-cat_1.png", "0a1b2c3d-cat_1.png"),
        ("/data/upload/3/0a1b2c3d-cat_1.png", "cat_1.png"),
        ("/data/upload/3/0a1b2c3d-cat_1.png", "images/cat_1.png"),
        ("/data/local-files/?d=photos/cat_1.png", "photos/cat_1.png"),
        ("/data/local-files/?d=photos%2Fcat_1.png", "photos/cat_1.png"),
        ("photos/cat_1.png", "photos/cat_1.png"),
        ("s3://bucket/photos/cat_1.png", "cat_1.png"),
        ("https://example.org/a%20b/cat_1.png", "images/cat_1.png"),
    ],
)
def test_images_are_beside_the_export_or_in_images(
    tmp_path: Path, written: str, there: str
) -> None:
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).touch()
    assert labels(tmp_path, task(written, "cat")) == {there: ["cat"]}


def test_an_upload_is_found_by_its_name(tmp_path: Path) -> None:
    write_images(tmp_path, "cat_1.png")
    one = task("/data/upload/1/x", "cat", file_upload="cat_1.png")
    assert labels(tmp_path, one) == {"cat_1.png": ["cat"]}


def test_a_missing_image_is_named_by_itself(tmp_path: Path) -> None:
    one = task("/data/upload/1/0a1b2c3d-x.png", "cat")
    assert labels(tmp_path, one) == {"0a1b2c3d-x.png": ["cat"]}
    # an embedded image, whose name is too long for a file system
    assert [*labels(tmp_path, task("data:image/png;base64," + "A" * 5000)).values()] == [[]]


def test_two_addresses_of_one_file_name_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path, "cat_1.png")
    cat, dog = (task(f"https://x.org/{label}/cat_1.png", label) for label in ("cat", "dog"))
    with pytest.raises(UserError, match=r"are both .*cat_1\.png here: rename one"):
        labels(tmp_path, cat, dog)
    assert labels(tmp_path, cat, cat) == {"cat_1.png": ["cat", "cat"]}


def test_relations_and_cancelled_annotations_are_no_labels(tmp_path: Path) -> None:
    one = task("a.png", "cat")
    one["annotations"][0]["result"].append({"type": "relation", "from_id": "a", "to_id": "b"})
    one["annotations"].append({"result": one["annotations"][0]["result"]})  # by another person
    one["annotations"].append({**task("", "dog")["annotations"][0], "was_cancelled": True})
    expected = {"a.png": ["cat"] * 2, "b.png": ["dog"]}
    assert labels(tmp_path, one, task("b.png"), task("b.png", "dog")) == expected


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        ({"image": "a.png", "choice": "cat", "annotator": 1, "lead_time": 2.5}, ["cat"]),
        ({"photo": "/x/a.png", "id": 3, "annotator": 1}, []),
        ({"image": "a.png", "choice": {"choices": ["cat", "dog"]}}, ["cat", "dog"]),
        # columns of the import beside the choice
        ({"image": "a.png", "category": "vehicle", "label": "bird", "choice": "cat"}, ["cat"]),
        ({"image": "a.png", "label": "bird", "choices": {"choices": ["x", "y"]}}, ["x", "y"]),
    ],
)
def test_tasks_of_json_min(tmp_path: Path, one: dict[str, Any], expected: list[str]) -> None:
    assert labels(tmp_path, one) == {"a.png": expected}


SIZE = {"original_width": 200, "original_height": 100}
TURNED = {"x": 50, "y": 0, "width": 20, "height": 50}


@pytest.mark.parametrize(
    ("value", "box"),
    [
        ({"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 0}, (10, 20, 30, 40)),
        # clockwise about the top left corner: 40 x 50 pixels at (100, 0) become 50 x 40 at (50, 0)
        ({**TURNED, "rotation": 90}, (25, 0, 25, 40)),
        ({**TURNED, "rotation": 45}, (50 - 25 * 0.5**0.5, 0, 45 * 0.5**0.5, 90 * 0.5**0.5)),
    ],
)
def test_rectangles_are_boxes_in_percent(
    tmp_path: Path, value: dict[str, Any], box: tuple[float, ...]
) -> None:
    value = {**value, "rectanglelabels": ["dog"]}
    full = task("a.png")
    full["annotations"][0]["result"] = [{"type": "rectanglelabels", "value": value, **SIZE}]
    for one in (full, {"image": "b.png", "label": [{**value, **SIZE}]}):
        [[mark]] = read_label_studio(tmp_path / "e.json", [one]).values()
        assert mark.box == pytest.approx(box)
        assert (mark.label, mark.size) == ("dog", (100, 100))
