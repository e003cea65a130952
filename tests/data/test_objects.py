"""Data in memory: image sets, lists, DataFrames, torchvision's data sets, pairs; and weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rmadapter.data.image_set import with_weights
from rmadapter.data.read import (
    ImageSet,
    image_list,
    image_set,
    load_image,
    open_object,
    read_images,
)
from rmadapter.errors import UserError
from tests.helpers.shots import noisy_colors
from tests.helpers.small_images import picture, write_images


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return write_images(tmp_path, "cat/cat_1.png", "cat/cat_2.png", "dog/dog_1.png")


def labels(images: ImageSet) -> list[str]:
    return [str(images.written[label]) for label in images.labels]


def test_image_sets_are_returned_unchanged(home: Path) -> None:
    splits = read_images(home)
    assert read_images(splits["all"]) == splits
    assert read_images(splits) == splits


def test_a_table_of_paths(home: Path) -> None:
    pd = pytest.importorskip("pandas")
    paths = [str(path) for path in sorted(home.rglob("*.png"))]
    table = pd.DataFrame(
        {
            "file": paths,
            "species": ["Cat", "Cat", 7],
            "split": ["train", "TEST", "train"],
            "group": ["a", None, "b"],
        }
    )
    sets = read_images(table, columns={"label": "species"})
    expected = {"train": ["Cat", "7"], "test": ["Cat"]}
    assert {split: labels(images) for split, images in sets.items()} == expected
    assert (sets["train"].groups, sets["test"].groups) == (("a", "b"), ("",))
    assert sets["test"].images == (Path(paths[1]),)


def test_cells_that_pandas_takes_for_missing_and_columns_without_names(home: Path) -> None:
    pd = pytest.importorskip("pandas")
    paths = [str(path) for path in sorted(home.rglob("*.png"))]
    table = pd.DataFrame(
        {"file": paths, 7: ["a", "b", "a"], "split": ["train"] * 3, "group": ["p", pd.NA, "q"]}
    )
    for kind in ("object", "string"):
        (images,) = read_images(table.astype({"group": kind}), columns={"label": "7"}).values()
        assert (labels(images), images.groups) == (["a", "b", "a"], ("p", "", "q"))
    with pytest.raises(UserError, match="row 1: the label is empty"):
        read_images(table.assign(label=pd.array([1, pd.NA, 2], "Int64")))
    with pytest.raises(UserError, match="row 2: the image is empty"):
        read_images(table.assign(file=[*paths[:2], None]), columns={"label": "7"})


def test_a_table_of_images() -> None:
    pd = pytest.importorskip("pandas")
    table = pd.DataFrame(
        {
            "image": [picture("cat"), np.zeros((4, 4, 3), np.uint8)],
            "label": ["b", "a"],
            "split": ["train", "test"],
        }
    )
    sets = read_images(table)
    assert {split: (images.classes, images.labels) for split, images in sets.items()} == {
        "train": (("a", "b"), (1,)), "test": (("a", "b"), (0,)),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"path": ["a.png"], "label": [None]}, "row 0: the label is empty"),
        ({"path": ["a.png"], "label": [float("nan")]}, "row 0: the label is empty"),
        ({"path": ["a.png"], "label": ["x"], "split": ["dev"]}, "split is 'dev'"),
        (
            {"path": ["a.png", "b.png"], "label": ["x", "y"], "split": ["test", None]},
            "row 1: the split is empty",
        ),
        ({"path": ["https://x/a.png"], "label": ["x"]}, "is a web address"),
        ({"photo": ["a.png"], "label": ["x"]}, r"DataFrame: none of its columns \(photo, label\)"),
    ],
)
def test_unclear_tables_are_refused(columns: dict[str, Any], words: str) -> None:
    pd = pytest.importorskip("pandas")
    with pytest.raises(UserError, match=words):
        read_images(pd.DataFrame(columns))


def test_a_cell_may_be_a_list_of_one_label(home: Path) -> None:
    pd = pytest.importorskip("pandas")
    cells = [["cat"], np.array(["dog"]), ("cat",)]
    paths = sorted(map(str, home.rglob("*.png")))[:3]
    for images in (paths, [picture("cat"), picture("dog"), picture("cat", 1)]):
        for column, values in (("label", cells), ("labels", ["cat", "dog;dog", "cat"])):
            table = pd.DataFrame({"image": images, column: values})
            found = read_images(table, progress=False)["all"]
            assert (found.classes, found.labels) == (("cat", "dog"), (0, 1, 0))
            table[column] = [*values[:2], "cat;dog" if column == "labels" else ("cat", "dog")]
            with pytest.raises(UserError, match=r"DataFrame, row 2: .*'cat'.*'dog'"):
                read_images(table, progress=False)


def test_torchvision_folders_are_read_as_files_whatever_their_transform(home: Path) -> None:
    from torch.utils.data import Subset
    from torchvision.datasets import ImageFolder

    folder = ImageFolder(str(home), transform=lambda image: 1 / 0)
    (images,) = read_images(folder).values()
    assert labels(images) == ["cat", "cat", "dog"]
    assert Path(images.images[2]) == home / "dog/dog_1.png"  # type: ignore[arg-type]
    (some,) = read_images(Subset(folder, [2, 0])).values()
    assert labels(some) == ["dog", "cat"]


class Pairs(list[Any]):
    classes = ("house cat", "dog")


class Wrapped:
    """Of a data set, without saying of which items."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return 2

    def __getitem__(self, i: int) -> tuple[Any, str]:
        return self.dataset[i + 1][0], "ab"[i]


def test_items_of_a_wrapper_come_from_the_wrapper(home: Path) -> None:
    folder = pytest.importorskip("torchvision").datasets.ImageFolder(str(home))
    found = read_images(Wrapped(folder))["all"]
    assert (found.classes, len(found)) == (("a", "b"), 2)
    pixels = [np.asarray(load_image(image)) for image in found.images]
    assert all(np.array_equal(own, np.asarray(folder[i][0])) for i, own in enumerate(pixels, 1))


def test_pairs_of_image_and_label() -> None:
    pairs = Pairs([(picture("cat"), 0), (picture("dog"), np.int64(1))])
    (images,) = read_images(pairs).values()
    assert labels(images) == ["house cat", "dog"]
    assert images.images[1] is pairs[1][0]
    (images,) = read_images([(picture("cat"), "cat"), (picture("dog"), "dog")]).values()
    assert labels(images) == ["cat", "dog"]
    (images,) = read_images(Pairs([(picture("cat"), [0]), (picture("dog"), ["dog"])])).values()
    assert labels(images) == ["house cat", "dog"]
    with pytest.raises(UserError, match=r"image 0: .*'house cat'.*'dog'"):
        read_images(Pairs([(picture("cat"), [0, 1]), (picture("dog"), ["dog"])]))


def test_imagenet_of_torchvision_has_synonyms(home: Path) -> None:
    from torchvision.datasets import ImageFolder

    folder = ImageFolder(str(home))
    folder.classes = [("tabby", "tabby cat"), ("dog", "hound")]
    assert labels(read_images(folder)["all"]) == ["tabby", "tabby", "dog"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (3, "int is not data"),
        ({"train": [1]}, "dict is not data"),
        ([1, 2], "item 0 of the data is not an \\(image, label\\) pair"),
        (Pairs([(picture("cat"), 2)]), "label 2 is not one of the 2 classes"),
        (Pairs([(picture("cat"), -1)]), "label -1 is not one of the 2 classes"),
        ([(picture("cat"), 0)], "labels must be class names, or whole numbers with classes"),
        ([], "0 images and 0 labels"),
    ],
)
def test_other_objects_are_refused(data: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        open_object(data)


def test_tensors_are_refused() -> None:
    import torch

    with pytest.raises(UserError, match="holds a tensor: create the data set without a transform"):
        open_object([(torch.zeros(3, 4, 4), "cat")])


def test_hub_datasets(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = pytest.importorskip("datasets", reason="the extra `data` is not installed")
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path / "cache"))
    data = library.Dataset.from_dict(
        {"image": [picture("cat"), picture("dog")], "label": ["cat", "dog"]}
    )
    (images,) = read_images(data.cast_column("image", library.Image())).values()
    assert labels(images) == ["cat", "dog"]


def same(one: ImageSet, other: ImageSet) -> bool:
    return (one.labels, one.classes, one.written, one.contents) == (
        other.labels, other.classes, other.written, other.contents,
    )  # fmt: skip


def test_sets_splits_and_folders_are_accepted(colors: Path, tmp_path: Path) -> None:
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
    with pytest.raises(UserError, match=r"DataFrame: none of its columns \(File\) is called label"):
        image_set(frame[["File"]])
    with pytest.raises(UserError, match="no row says train"):
        image_set(frame.assign(split="test"))
    assert len(image_set(frame, split="test")) == 4
    for odd, words in (("exam", "split is 'exam'"), (None, "row 23: the split is empty")):
        with pytest.raises(UserError, match=words):
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
    expected = ((-1, 3, 7), (2, 0, 1, 2), ("-1", "3", "7"))
    assert (found.written, found.labels, found.classes) == expected
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
    assert with_weights(images, sample, classes, 0).weights == pytest.approx(expected)


def test_balanced_counts_what_will_be_drawn() -> None:
    images = ImageSet.from_lists([np.full((4, 4), i, np.uint8) for i in range(7)], list("aaaabbc"))
    assert with_weights(images, None, "balanced", 1).weights == ()
    assert with_weights(images, None, "balanced", 2).weights == pytest.approx(
        (5 / 6,) * 6 + (5 / 3,)
    )


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
def test_invalid_weights_are_refused(sample: Any, classes: Any, words: str) -> None:
    images = ImageSet.from_lists([np.full((4, 4), i, np.uint8) for i in range(5)], list("aaaab"))
    with pytest.raises(UserError, match=words):
        with_weights(images, sample, classes, 0)
