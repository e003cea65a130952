"""format_writers.py with every_format.py: every format reads back as the images that were
written, judged by a digest of pixels and labels."""

from __future__ import annotations

import importlib.util
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from every_format import digest
from format_writers import FORMATS, shots_of

from rmadapter.data.read import read_images
from tests.helpers.small_images import write_images

ONE_SET = (  # formats whose file or object is one set
    "COCO", "COCO, --crops", "Label Studio, JSON", "Label Studio, JSON-MIN",
    "FiftyOneImageClassificationDataset",
    "torchvision's ImageFolder", "PIL images in pairs", "arrays",
)  # fmt: skip
NAMES = [f"{c}/{c}_{split}{{}}.png" for split in ("train", "test") for c in ("cat", "owl", "dog")]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    splits = {name: "train" if "train" in name else "test" for name in NAMES}
    files = [f"{split}/{name.format(i)}" for name, split in splits.items() for i in "12"]
    return write_images(tmp_path / "home", *files)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_reads_back_as_it_was_written(home: Path, tmp_path: Path, name: str) -> None:
    form = FORMATS[name]
    if form.needs and importlib.util.find_spec(form.needs) is None:
        pytest.skip(f"no {form.needs}")
    sets = read_images(home, progress=False)
    written = form.write(shots_of(sets), tmp_path / "data")
    read = read_images(written, progress=False, **form.words)
    assert digest(read) == digest(sets)
    counts = Counter({split: len(part) for split, part in read.items()})
    assert counts == ({"all": 12} if name in ONE_SET else {"train": 6, "test": 6})


def test_images_without_splits_are_train_images(home: Path) -> None:
    shots = shots_of(read_images(home / "train", progress=False))
    assert {shot.split for shot in shots} == {"train"}
    assert len({shot.name for shot in shots}) == 6


def test_the_digest_depends_on_pixels_and_labels_and_on_no_order(home: Path) -> None:
    train = read_images(home, progress=False)["train"]
    whole = digest({"all": train})
    assert digest({"all": train.subset([3, 1, 5]), "test": train.subset([0, 2, 4])}) == whole
    assert digest({"all": train.subset([0, 1, 2])}) != whole
    assert digest({"all": replace(train, labels=train.labels[::-1])}) != whole
    assert digest({"all": replace(train, images=train.images[:5] + train.images[:1])}) != whole
