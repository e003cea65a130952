"""Label Studio's exports in miniature: JSON and JSON-MIN, with images where it keeps them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rmadapter.data.formats.label_studio import is_label_studio, read_label_studio
from rmadapter.errors import UserError
from tests.helpers.small_images import write_images


def task(image: str, *choices: str, **more: Any) -> dict[str, Any]:
    """As in the export JSON of version 1."""
    value = {
        "type": "choices",
        "value": {"choices": [*choices]},
        "from_name": "choice",
        "to_name": "image",
    }
    annotation = {"id": 1, "was_cancelled": False, "result": [value] if choices else []}
    return {"id": 7, "annotations": [annotation], "data": {"image": image}, **more}


def labels(file: Path, tasks: Any, **more: Any) -> dict[str, list[str]]:
    marks = read_label_studio(file, tasks, **more)
    return {
        image.relative_to(file.parent).as_posix(): [mark.label for mark in own]
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
def test_images_beside_the_export_or_in_images(tmp_path: Path, written: str, there: str) -> None:
    write_images(tmp_path, "cat_1.png")
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / "cat_1.png").rename(tmp_path / there)
    assert labels(tmp_path / "export.json", [task(written, "cat")]) == {there: ["cat"]}


def test_an_upload_is_found_by_its_name(tmp_path: Path) -> None:
    write_images(tmp_path, "cat_1.png")
    tasks = [task("/data/upload/1/x", "cat", file_upload="cat_1.png")]
    assert labels(tmp_path / "export.json", tasks) == {"cat_1.png": ["cat"]}


def test_two_addresses_of_one_file_name_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path, "cat_1.png")
    both = [
        task("https://x.org/cats/cat_1.png", "cat"),
        task("https://x.org/dogs/cat_1.png", "dog"),
    ]
    with pytest.raises(UserError, match=r"are both .*cat_1\.png here: rename one"):
        labels(tmp_path / "e.json", both)
    assert labels(tmp_path / "e.json", [both[0], both[0]]) == {"cat_1.png": ["cat", "cat"]}


def test_a_relation_is_no_label(tmp_path: Path) -> None:
    write_images(tmp_path, "cat_1.png")
    one = task("cat_1.png", "cat")
    one["annotations"][0]["result"].append({"type": "relation", "from_id": "a", "to_id": "b"})
    assert labels(tmp_path / "e.json", [one]) == {"cat_1.png": ["cat"]}


def test_a_turned_rectangle_is_the_box_around_it(tmp_path: Path) -> None:
    """As Label Studio turns it: clockwise about its top left corner, in pixels."""
    write_images(tmp_path, "cat_1.png")
    value = {"x": 50, "y": 0, "width": 20, "height": 50, "rotation": 90, "rectanglelabels": ["cat"]}
    result = {
        "type": "rectanglelabels",
        "original_width": 200,
        "original_height": 100,
        "value": value,
    }
    full = {"id": 1, "data": {"image": "cat_1.png"}, "annotations": [{"result": [result]}]}
    short = {
        "id": 1,
        "image": "cat_1.png",
        "label": [{**value, "original_width": 200, "original_height": 100}],
    }
    for tasks in ([full], [short]):
        [[mark]] = read_label_studio(tmp_path / "e.json", tasks).values()
        # 40 x 50 pixels at (100, 0) become 50 x 40 at (50, 0)
        assert mark.box == pytest.approx((25, 0, 25, 40))
    value["rotation"] = 45
    [[mark]] = read_label_studio(tmp_path / "e.json", [full]).values()
    assert mark.box == pytest.approx((50 - 25 * 0.5**0.5, 0, 45 * 0.5**0.5, 90 * 0.5**0.5))


def test_annotations_of_several_people_and_those_that_were_cancelled(tmp_path: Path) -> None:
    one = task("a.png", "cat")
    one["annotations"] += [
        {"result": one["annotations"][0]["result"]},
        {**task("", "dog")["annotations"][0], "was_cancelled": True},
    ]
    expected = {"a.png": ["cat"] * 2, "b.png": ["dog"]}
    assert labels(tmp_path / "e.json", [one, task("b.png"), task("b.png", "dog")]) == expected


def test_json_min(tmp_path: Path) -> None:
    tasks = [
        {"image": "a.png", "id": 1, "choice": "cat", "annotator": 1, "lead_time": 2.5},
        {"image": "b.png", "id": 2, "choice": {"choices": ["cat", "dog"]}},
        {"photo": "/x/c.png", "id": 3, "annotator": 1},
    ]
    expected = {"a.png": ["cat"], "b.png": ["cat", "dog"], "c.png": []}
    assert labels(tmp_path / "e.json", tasks) == expected


def test_columns_of_the_import_beside_the_choice_are_no_labels(tmp_path: Path) -> None:
    tasks = [
        {"image": "a.png", "category": "vehicle", "label": "bird", "choice": "cat"},
        {"image": "b.png", "label": "bird", "choices": {"choices": ["cat", "dog"]}},
    ]
    assert labels(tmp_path / "e.json", tasks) == {"a.png": ["cat"], "b.png": ["cat", "dog"]}


def test_embedded_images_are_refused(tmp_path: Path) -> None:
    """Its name is too long for a file system to be asked about."""
    found = labels(tmp_path / "e.json", [task("data:image/png;base64," + "A" * 5000, "cat")])
    assert [*found.values()] == [["cat"]]


def test_rectangles_are_boxes_in_percent(tmp_path: Path) -> None:
    value = {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 0, "rectanglelabels": ["dog"]}
    full = task("a.png")
    full["annotations"][0]["result"] = [{"type": "rectanglelabels", "value": value}]
    short = {"image": "b.png", "label": [{**value, "original_width": 600}]}
    found = read_label_studio(tmp_path / "e.json", [full, short])
    assert sorted(image.name for image in found) == ["a.png", "b.png"]
    for own in found.values():
        assert [(mark.label, mark.box, mark.size) for mark in own] == [
            ("dog", (10, 20, 30, 40), (100, 100))
        ]


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ([1], r"not a Label Studio export \(AttributeError"),
        ([{"data": {"text": "a cat"}}], "task 0 names no image"),
        ([task("../../etc/a.png", "cat")], r"task 7: '\.\./\.\./etc/a\.png' lies outside"),
        (
            [task("/data/local-files/?d=/etc/a.png", "cat", file_upload="../b.png")],
            r"'\.\./b\.png' lies outside",
        ),
        ([task("https://example.org/cat.png", "cat")], "is a web address, .*'cat.png'"),
        ([{"data": {"image": "a.png"}, "annotations": [{"result": [{}]}]}], "Label Studio"),
        (
            [
                {
                    "data": {"image": "a.png"},
                    "annotations": [{"result": [{"value": {"rectanglelabels": ["x"]}}]}],
                }
            ],
            "KeyError",
        ),
    ],
)
def test_damaged_files_give_a_one_line_error(tmp_path: Path, tasks: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_label_studio(tmp_path / "e.json", tasks)


def test_a_missing_image_is_named_by_itself(tmp_path: Path) -> None:
    assert labels(tmp_path / "e.json", [task("/data/upload/1/0a1b2c3d-x.png", "cat")]) == {
        "0a1b2c3d-x.png": ["cat"]
    }


def test_other_json_is_not_recognised() -> None:
    assert is_label_studio([task("a.png")])
    assert not is_label_studio([])
    assert not is_label_studio(["a.png"])
