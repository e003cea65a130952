"""What Python users hold becomes one ImageSet, and weights of images and classes one number an
image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rmadapter.data.given import image_list, image_set, weighted
from rmadapter.data.read import ImageSet, read_images
from rmadapter.errors import UserError
from tests.helpers.shots import noisy_colors
from tests.helpers.small_images import picture


def same(one: ImageSet, other: ImageSet) -> bool:
    return (one.labels, one.classes, one.written, one.contents) == (
        other.labels, other.classes, other.written, other.contents,
    )  # fmt: skip


def test_a_set_splits_a_folder_and_a_table_are_taken_as_they_are(
    colors: Path, tmp_path: Path
) -> None:
    splits = read_images(colors)
    assert image_set(splits["train"]) is splits["train"]
    assert image_set(splits) is splits["train"]
    assert image_set({"all": splits["test"]}) is splits["test"]
    assert same(image_set(colors), splits["train"])
    assert same(image_set(str(colors)), splits["train"])
    with pytest.raises(UserError, match="the data has only test"):
        image_set({"test": splits["test"]})
    with pytest.raises(UserError, match=r"labels are missing: .* not list"):
        image_set([1, 2])


def test_data_frames(colors: Path) -> None:
    pandas = pytest.importorskip("pandas")
    train = read_images(colors)["train"]
    names = [train.written[label] for label in train.labels]
    table = {"File": [str(image) for image in train.images], "class": names}
    assert same(image_set(pandas.DataFrame(table)), train)
    frame = pandas.DataFrame(
        {**table, "split": ["train"] * 20 + ["test"] * 4, "group": [None] + ["a"] * 23}
    )
    found = image_set(frame)
    assert (len(found), found.groups[:2]) == (20, ("", "a"))
    nullable = image_set(frame.assign(group=frame.group.astype("string")))
    assert nullable.groups == found.groups
    assert image_list(frame) == table["File"]
    assert image_list(frame[["File"]].rename(columns={"File": "whatever"})) == table["File"]
    assert same(image_set(frame.File, frame["class"]), train)
    numbers = image_set(
        pandas.DataFrame({**table, "class": list(train.labels)}), classes=train.classes
    )
    assert numbers.written == (0, 1, 2, 3)
    with pytest.raises(
        UserError, match=r"DataFrame: none of its columns \(File\) is called label or class"
    ):
        image_set(frame[["File"]])
    with pytest.raises(UserError, match="no row says train"):
        image_set(frame.assign(split="test"))
    assert len(image_set(frame, split="test")) == 4
    for odd in ("exam", None):
        with pytest.raises(UserError, match=f"a split is '?{odd}'?: write train, val or test"):
            image_set(frame.assign(split=["train"] * 23 + [odd]))


def test_splits_of_the_library_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path / "cache"))
    library = pytest.importorskip("datasets", reason="the extra `data` is not installed")
    kinds = library.Features(
        {"image": library.Image(), "label": library.ClassLabel(names=["cat", "dog"])}
    )
    train = library.Dataset.from_dict(
        {"image": [picture("cat"), picture("dog")], "label": [0, 1]}, features=kinds
    )
    assert image_set(library.DatasetDict({"train": train})).classes == ("cat", "dog")


def test_lists_arrays_and_columns(colors: Path) -> None:
    paths = [str(path) for path in sorted((colors / "test").glob("*/*.png"))]
    for given in (
        paths,
        tuple(paths),
        np.array(paths),
        np.array(paths)[:, None],
        np.array(paths, object)[:, None],
    ):
        assert image_list(given) == paths
    opened = [Image.open(path) for path in paths]
    column = np.empty((len(opened), 1), object)
    column[:, 0] = opened
    assert image_list(column) == opened
    assert len(image_list(np.zeros((5, 4, 4, 3), np.uint8))) == 5


def test_numbers_stay_numbers_and_without_names_there_is_a_warning() -> None:
    images = list(noisy_colors(1).images)
    with pytest.warns(UserWarning, match="prompts call the classes -1, 3, 7; class_names="):
        found = image_set(images, np.array([7, -1, 3, 7]))
    assert (found.written, found.labels, found.classes) == (
        (-1, 3, 7),
        (2, 0, 1, 2),
        ("-1", "3", "7"),
    )
    assert [type(label) for label in found.written] == [int] * 3
    assert image_set(images, [1, 0, 1, 0], ["a", "b"]).written == (0, 1)
    assert image_set(images, np.array([[1], [0], [1], [0]]), ["a", "b"]).labels == (1, 0, 1, 0)
    with pytest.raises(UserError, match="4 images and 3 labels"):
        image_set(images, [1, 2, 3])
    with pytest.raises(UserError, match="labels must be class names, or whole numbers"):
        image_set(images, [0.5, 1.5, 0.5, 1.5])


@pytest.mark.parametrize(
    ("sample", "classes", "expected"),
    [
        (None, None, ()),
        ([2, 2, 2, 2, 2], None, ()),  # all alike
        ([1, 2, 3, 4, 5], None, (1, 2, 3, 4, 5)),
        (None, {"b": 3}, (1, 1, 1, 1, 3)),
        ([1, 1, 1, 2, 2], {"b": 3, "a": 0.5}, (0.5, 0.5, 0.5, 1, 6)),
        (None, "balanced", (0.625, 0.625, 0.625, 0.625, 2.5)),
        ([0, 0, 1, 2, 1], None, (1, 2, 1)),  # without weight it is not there
        ([1, 1, 1, 1, 0], None, (1, 1, 1, 1, 0)),  # but a class stays known
        ([0, 0, 0, 3, 3], "balanced", ()),
    ],
)
def test_weights(sample: Any, classes: Any, expected: tuple[float, ...]) -> None:
    images = ImageSet.from_lists([np.full((4, 4), i, np.uint8) for i in range(5)], list("aaaab"))
    assert weighted(images, sample, classes, 0).weights == pytest.approx(expected)


def test_balanced_counts_what_will_be_drawn() -> None:
    images = ImageSet.from_lists([np.full((4, 4), i, np.uint8) for i in range(7)], list("aaaabbc"))
    assert weighted(images, None, "balanced", 1).weights == ()
    assert weighted(images, None, "balanced", 2).weights == pytest.approx((5 / 6,) * 6 + (5 / 3,))


@pytest.mark.parametrize(
    ("sample", "classes", "words"),
    [
        ([1, 2], None, "one number of at least 0 for each of the 5 images"),
        ([1, 1, 1, 1, -1], None, "sample_weight"),
        ([0] * 5, None, "not all zero"),
        ([1, 1, 1, 1, float("nan")], None, "sample_weight"),
        (["x"] * 5, None, "sample_weight"),
        (None, "even", "write 'balanced', or a dictionary"),
        (None, {"z": 1}, "label 'z' is not one of the classes"),
        (None, {"a": -1}, "class_weight: weights must be numbers of at least 0"),
        (None, {"a": 0, "b": 0}, "not all zero"),
    ],
)
def test_what_is_no_weight_is_refused(sample: Any, classes: Any, words: str) -> None:
    images = ImageSet.from_lists([np.full((4, 4), i, np.uint8) for i in range(5)], list("aaaab"))
    with pytest.raises(UserError, match=words):
        weighted(images, sample, classes, 0)
