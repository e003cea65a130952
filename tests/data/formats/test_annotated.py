"""Labels of an image, or boxes that are cut out; and boxes that are refused."""

from __future__ import annotations

import ntpath
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rmadapter.data.budget import Budget
from rmadapter.data.formats.annotated import cut, rows_of
from rmadapter.data.formats.base import Mark, Row, parsing
from rmadapter.errors import UserError


@pytest.fixture
def halves(tmp_path: Path) -> Path:
    """Left half red, right half blue, 10 x 4 pixels."""
    image = Image.new("RGB", (10, 4), (255, 0, 0))
    image.paste((0, 0, 255), (5, 0, 10, 4))
    image.save(tmp_path / "halves.png")
    return tmp_path / "halves.png"


def crops(image: Path, *marks: Mark) -> list[Row]:
    return rows_of({image: marks}, image.parent, Budget(), Counter())


def test_whole_images_have_the_label_on_which_all_marks_agree(tmp_path: Path) -> None:
    ignored: Counter[str] = Counter()
    marks = {tmp_path / "a.png": [Mark("cat", "x"), Mark("cat", "y")], tmp_path / "b.png": []}
    assert rows_of(marks, tmp_path, None, ignored) == [Row("cat", tmp_path / "a.png")]
    assert ignored == {"images without a label": 1}


@pytest.mark.parametrize("label", ["", " ", "a\0b", "\ud800", "x" * 1001])
@pytest.mark.parametrize("cropped", [False, True])
def test_invalid_class_names_are_refused(halves: Path, label: str, cropped: bool) -> None:
    marks = [Mark(label, "line 3", (0, 0, 1, 1))]
    with pytest.raises(UserError, match=r"line 3: .* is not a class name") as caught:
        rows_of({halves: marks}, halves.parent, Budget() if cropped else None, Counter())
    assert len(str(caught.value)) < 200


def test_crops_of_an_image_on_another_drive_are_one_group(
    halves: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows has no relative path there."""

    def relpath(path: str, start: str) -> str:
        return ntpath.relpath("D:\\a.png", "C:\\data")

    monkeypatch.setattr(os.path, "relpath", relpath)
    boxes = ((0, 0, 5, 4), (5, 0, 5, 4))
    rows = crops(halves, *(Mark("half", "1", box, (10, 4)) for box in boxes))
    assert {row.group for row in rows} == {halves.as_posix()}


def test_crops_are_the_pixels_of_their_boxes_and_one_group(halves: Path) -> None:
    boxed = [Mark("red", "1", (0, 0, 5, 4), (10, 4)), Mark("blue", "2", (0.5, 0, 0.5, 0.5))]
    ignored: Counter[str] = Counter()
    rows = rows_of({halves: [*boxed, Mark("all", "3")]}, halves.parent, Budget(), ignored)
    red, blue = rows
    assert [(row.label, row.group) for row in rows] == [
        ("red", "halves.png"), ("blue", "halves.png"),
    ]  # fmt: skip
    assert ignored == {"labels without a box": 1}
    with Image.open(red.image) as left, Image.open(blue.image) as right:
        assert (left.size, left.getcolors()) == ((5, 4), [(20, (255, 0, 0))])
        assert (right.size, right.getcolors()) == ((5, 2), [(10, (0, 0, 255))])


@pytest.mark.parametrize("turn", [1, 5, 6, 7, 8])
def test_boxes_of_stored_pixels_are_turned_with_the_photo(tmp_path: Path, turn: int) -> None:
    """COCO's are, as its sizes say; a size of the upright photo needs no turn."""
    upright = Image.new("RGB", (48, 80))
    upright.paste("white", (16, 32, 32, 48))
    undo = {5: "TRANSPOSE", 6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270"}
    stored = upright.transpose(Image.Transpose[undo[turn]]) if turn > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = turn
    stored.save(tmp_path / "a.jpg", quality=95, exif=exif)
    left, top, right, bottom = stored.getbbox() or ()
    of_stored = (left, top, right - left, bottom - top), stored.size
    for box, size in (of_stored, ((16, 32, 16, 16), upright.size)):
        [row] = crops(tmp_path / "a.jpg", Mark("it", "1", box, size))
        with Image.open(row.image) as found:
            assert found.size == (16, 16)
            assert min(found.convert("L").tobytes()) > 240


def test_crops_are_made_once_and_again_when_the_image_changes(halves: Path) -> None:
    box = (0.0, 0.0, 0.5, 1.0)
    (first,) = cut(halves, [box], Budget())
    made = first.stat().st_mtime_ns
    assert cut(halves, [box], Budget()) == [first]
    assert first.stat().st_mtime_ns == made
    Image.new("RGB", (10, 40), "white").save(halves)
    assert cut(halves, [box], Budget()) != [first]


@pytest.mark.parametrize("name", ["bad.png", "gone.png", "a\0.png"])
def test_an_unreadable_image_is_returned_for_each_of_its_boxes(tmp_path: Path, name: str) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    box = (0.0, 0.0, 1.0, 1.0)
    assert cut(tmp_path / name, [box, box], Budget()) == [tmp_path / name] * 2


@pytest.mark.parametrize(
    ("box", "size"),
    [
        ((0, 0, -5, 4), (10, 4)),
        ((20, 0, 5, 4), (10, 4)),
        ((-9, 0, 5, 4), (10, 4)),
        ((float("nan"), 0, 5, 4), (10, 4)),
        ((1e308, 0, 1e308, 4), (1e-308, 4)),
        (("a", 0, 5, 4), (10, 4)),
        ((0, 0, 5), (10, 4)),
        ((0, 0, 5, 4), (None, None)),
        ((0, 0, 5, 4), (0, 0)),
        ((0, [], 5, 4), (10, 4)),
    ],
)
def test_empty_boxes_are_refused(halves: Path, box: Any, size: Any) -> None:
    with pytest.raises(UserError, match=r"annotation 7: the box .* covers nothing") as caught:
        crops(halves, Mark("red", "annotation 7", box, size))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("box", [1, "0 0 5 4", {"x": 1}])
def test_a_box_that_is_no_list_is_refused(halves: Path, box: Any) -> None:
    with pytest.raises(UserError, match=r"annotation 7: the box .* is not a list of numbers"):
        crops(halves, Mark("red", "annotation 7", box, (10, 4)))


def test_boxes_are_clipped_to_the_image(halves: Path) -> None:
    (row,) = crops(halves, Mark("red", "1", (8, -1, 99, 99), (10, 4)))
    with Image.open(row.image) as crop:
        assert crop.size == (2, 4)


@pytest.mark.parametrize(
    "wrong", [lambda: {}["images"], lambda: None + 1, lambda: int("x"), lambda: [].get]
)
def test_a_malformed_file_gives_a_one_line_error(tmp_path: Path, wrong: Any) -> None:
    file = tmp_path / "a.json"
    with pytest.raises(UserError, match=r"a\.json: not a list \("), parsing(file, "a list"):
        wrong()
