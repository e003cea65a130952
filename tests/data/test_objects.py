"""Data that a program holds: our sets, DataFrames, torchvision's data sets, pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rmadapter.data.objects import open_object
from rmadapter.data.read import ImageSet, load_image, read_images
from rmadapter.errors import UserError
from tests.helpers.small_images import picture, write_images


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return write_images(tmp_path, "cat/cat_1.png", "cat/cat_2.png", "dog/dog_1.png")


def labels(images: ImageSet) -> list[str]:
    return [str(images.written[label]) for label in images.labels]


def test_our_own_sets(home: Path) -> None:
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
    assert {split: labels(images) for split, images in sets.items()} == {
        "train": ["Cat", "7"],
        "test": ["Cat"],
    }
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
        (
            {"photo": ["a.png"], "label": ["x"]},
            r"DataFrame: none of its columns \(photo, label\) is called path",
        ),
    ],
)
def test_tables_that_say_nothing_clear(columns: dict[str, Any], words: str) -> None:
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


def test_a_wrapper_is_asked_for_its_own_items(home: Path) -> None:
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
def test_what_is_no_data(data: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        open_object(data)


def test_tensors_are_refused() -> None:
    import torch

    with pytest.raises(UserError, match="holds a tensor: create the data set without a transform"):
        open_object([(torch.zeros(3, 4, 4), "cat")])


def test_datasets_of_the_hub_library(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = pytest.importorskip("datasets", reason="the extra `data` is not installed")
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path / "cache"))
    data = library.Dataset.from_dict(
        {"image": [picture("cat"), picture("dog")], "label": ["cat", "dog"]}
    )
    (images,) = read_images(data.cast_column("image", library.Image())).values()
    assert labels(images) == ["cat", "dog"]
