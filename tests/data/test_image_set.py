"""Image sets: lists, parts, groups, digests, weights; and their images, each decoded once."""

from __future__ import annotations

import hashlib
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rmadapter.data.decode import image_error
from rmadapter.data.duplicates import looks
from rmadapter.data.fewshot import half
from rmadapter.data.image_set import ImageReader, ImageSet, with_weights
from rmadapter.data.read import read_images
from rmadapter.errors import UserError
from tests.helpers.decodes import count_decodes
from tests.helpers.shots import write_tiny_images


def test_parts_keep_groups() -> None:
    pixels = list(np.zeros((5, 4, 4, 3), np.uint8))
    images = ImageSet.from_lists(pixels, [*"abcab"], groups=["p", "", "q", "r", "p"])
    assert half(images, "base").groups == ("p", "", "r", "p")
    assert images.subset([4, 2]).groups == ("p", "q")
    assert images.sharing_groups(images.subset([0, 1])) == [0, 4]  # not 1, which stands alone
    assert images.sharing_groups(ImageSet.from_lists(pixels, [*"abcab"])) == []
    assert images.digest == ImageSet.from_lists(pixels, [*"abcab"]).digest
    with pytest.raises(UserError, match="5 images and 1 groups"):
        ImageSet.from_lists(pixels, [*"abcab"], groups=["p"])


def test_a_label_may_be_a_list_of_one() -> None:
    pixels = list(np.zeros((3, 4, 4, 3), np.uint8))
    named = ImageSet.from_lists(pixels, [["b"], "b", ("a", "a")])
    assert (named.classes, named.labels) == (("a", "b"), (1, 1, 0))
    assert ImageSet.from_lists(pixels, [[1], 1, [0]], ["a", "b"]).labels == named.labels
    for label, words in (
        ([], "label 1 is None"),
        (["a", "b"], r"image 1: .*'a'.*'b'"),
        ([0, 1], r"image 1: .*0.*1"),
        ([["a"]], "class names"),
    ):
        with pytest.raises(UserError, match=words):
            ImageSet.from_lists(pixels, ["a", label, "b"], ["a", "b"])


def test_labels_are_names_or_numbers() -> None:
    pictures = list(np.zeros((3, 4, 4, 3), np.uint8))
    by_name = ImageSet.from_lists(pictures, ["sea_horse", "Ant", "sea_horse"])
    assert (by_name.classes, by_name.labels) == (("Ant", "sea horse"), (1, 0, 1))
    assert by_name.written == ("Ant", "sea_horse")
    by_number = ImageSet.from_lists(pictures, np.array([1, 0, 1]), ["Ant", "sea_horse"])
    assert (by_number.classes, by_number.labels) == (by_name.classes, by_name.labels)
    assert (by_number.written, by_number.name(2)) == ((0, 1), "image 2")
    mixed = ImageSet.from_lists(pictures, ["sea-horse", "ant", "ant"], ["Ant", "sea_horse", "bee"])
    # as in the labels, if they are
    assert (mixed.labels, mixed.written) == ((1, 0, 0), ("ant", "sea-horse", "bee"))
    assert ImageSet.from_lists(pictures, [*"bab"], classes=[*"bac"]).labels == (0, 1, 0)


@pytest.mark.parametrize(
    ("labels", "classes", "hint"),
    [
        (["a"], None, "2 images and 1 labels"),
        ([0, 1], None, "whole numbers with classes"),
        (["a", 1], ["a", "b"], "label 1 is "),
        ([0.0, 1.0], ["a", "b"], "label 0 is "),
        ([0, 2], ["a", "b"], "label 2 is not one"),
        ([0, -1], ["a", "b"], "label -1 is not one"),
        (["cat", "dgo"], ["cat", "dog"], "'dgo' is not one of the classes; did you mean 'dog'"),
        ([0, 1], ["a", "a"], "both called 'a'"),
        (["", "a"], None, "label 0 is "),
    ],
)
def test_bad_lists_are_refused(labels: list[object], classes: list[str] | None, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        ImageSet.from_lists([np.zeros((2, 2), np.uint8)] * 2, labels, classes)  # type: ignore[arg-type]


def test_digest_identifies_pictures_labels_and_classes_wherever_they_lie(tmp_path: Path) -> None:
    for place in "xy":
        write_tiny_images(tmp_path / place, "a/1.png", "b/1.png")
    here, there = (read_images(tmp_path / place)["all"] for place in "xy")
    assert here.digest == there.digest
    others = [
        here.subset([0]),
        here.subset([1, 0]),
        ImageSet(here.images, (0, 0), here.classes),
        ImageSet(here.images, here.labels, ("a", "c")),
        ImageSet((here.images[0], here.images[0]), here.labels, here.classes),
    ]
    assert len({here.digest, *(other.digest for other in others)}) == 6
    assert pickle.loads(pickle.dumps(here)).digest == here.digest
    black, white = (np.full((2, 2), value, np.uint8) for value in (0, 255))
    assert ImageSet.from_lists([black], ["a"]).digest != ImageSet.from_lists([white], ["a"]).digest


def test_subset_keeps_classes(tmp_path: Path) -> None:
    write_tiny_images(tmp_path, "a/1.png", "b/1.png", "b/2.png")
    images = read_images(tmp_path)["all"].subset([2, 0])
    expected = (["b/2.png", "a/1.png"], (1, 0), ("a", "b"))
    assert ([images.name(i) for i in range(2)], images.labels, images.classes) == expected


def small(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image.resize((4, 4)), np.float32))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    found = [tmp_path / f"{name}.png" for name in "abc"]
    for seed, path in enumerate(found):
        noise = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), np.uint8)
        Image.fromarray(noise).save(path)
    return found


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    return count_decodes(monkeypatch)


def test_one_pass_serves_pixels_looks_and_content(files: list[Path], decodes: Counter[str]) -> None:
    expected = [small(Image.open(path)) for path in files]
    images = ImageSet(tuple(files), (0, 1, 1), ("cat", "dog"))
    images.read(small)
    part = images.subset([2, 0])
    for row, image in enumerate(part.images):
        assert torch.equal(part.reader.pixels(image, small), expected[[2, 0][row]])
    assert part.contents == tuple(hashlib.sha256(files[i].read_bytes()).digest() for i in (2, 0))
    assert part.looks().shape == (2, 2, 64 + 32 * 32)
    assert decodes == {str(path): 1 for path in files}


def test_looks_come_with_requested_pixels(files: list[Path], decodes: Counter[str]) -> None:
    reader = ImageReader()
    reader.pixels(files[0], small)
    first = reader.thumbprints(files[:1])  # decoded again: nobody had requested them before
    reader.pixels(files[1], small)
    both = reader.thumbprints(files[:2])
    assert [decodes[str(path)] for path in files] == [2, 1, 0]
    assert both[0] == first[0]
    assert np.array_equal(looks(both)[0], looks(ImageReader().thumbprints(files))[0])


def test_pixels_are_kept_once_within_memory(files: list[Path], decodes: Counter[str]) -> None:
    one = small(Image.open(files[0])).nbytes
    reader = ImageReader(room=2 * one)
    assert reader.read(files, small) == ["", "", ""]
    kept = sum(decodes[str(path)] == 1 for path in files if reader.pixels(path, small).nbytes)
    assert kept == 2
    assert sum(decodes.values()) == 4
    reader.read(files[:1], small)
    before = decodes.total()
    reader.pixels(files[0], lambda image: small(image) + 1)
    assert decodes.total() == before + 1
    reader.pixels(files[0], small)
    assert decodes.total() == before + 1
    reader.pixels(files[0], small)
    assert decodes.total() == before + 2


def test_unreadable_images_are_named_with_a_way_out(files: list[Path]) -> None:
    files[1].write_bytes(files[1].read_bytes()[:900])
    files[2].write_bytes(b"noise")
    assert image_error(files[1], header=True) == ""
    assert files[2].name in image_error(files[2], header=True)
    first, *errors = ImageReader().read(files, small)
    assert first == ""
    assert [path.name in error for path, error in zip(files[1:], errors, strict=True)] == [True] * 2
    with pytest.raises(UserError, match=r"b\.png: .*2 bad.*--skip-bad"):
        ImageSet(tuple(files), (0, 0, 0), ("cat",)).read(small)


def test_images_in_memory_and_an_empty_pickle(files: list[Path], decodes: Counter[str]) -> None:
    array = np.asarray(Image.open(files[0]))
    reader = ImageReader()
    assert reader.read([array, files[0]], small) == ["", ""]
    assert torch.equal(reader.pixels(array, small), reader.pixels(files[0], small))
    assert len(set(reader.thumbprints([array, files[0], Image.fromarray(array)]))) == 1
    copy = pickle.loads(pickle.dumps(reader))
    copy.thumbprints(files[:1])
    assert decodes == {str(files[0]): 2}


# Weights


def gray_images(labels: str) -> ImageSet:
    arrays = [np.full((4, 4), i, np.uint8) for i in range(len(labels))]
    return ImageSet.from_lists(arrays, [*labels])


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
def test_weights_of_images_and_classes_are_multiplied(
    sample: Any, classes: Any, expected: tuple[float, ...]
) -> None:
    assert with_weights(gray_images("aaaab"), sample, classes, 0).weights == pytest.approx(expected)


def test_balanced_counts_the_images_to_be_drawn() -> None:
    images = gray_images("aaaabbc")
    assert with_weights(images, None, "balanced", 1).weights == ()
    expected = pytest.approx((5 / 6,) * 6 + (5 / 3,))
    assert with_weights(images, None, "balanced", 2).weights == expected


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
    with pytest.raises(UserError, match=words):
        with_weights(gray_images("aaaab"), sample, classes, 0)
