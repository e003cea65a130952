"""tools/format_writers.py: what it writes is read again as what it was, splits too where the format
has them."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

import pytest
from every_format import digest
from format_writers import FORMATS, shots_of

from rmadapter.data.read import read_images
from tests.helpers.small_images import write_images

ONE_SET = (  # where one file, or one object, is one set
    "COCO", "COCO, --crops", "Label Studio, JSON", "Label Studio, JSON-MIN",
    "FiftyOneImageClassificationDataset",
    "torchvision's ImageFolder", "PIL images in pairs", "arrays",
)  # fmt: skip
NAMES = [
    f"{split}/{c}/{c}_{split}{i}.png"
    for split in ("train", "test")
    for c in ("cat", "owl", "dog")
    for i in "12"
]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    return write_images(tmp_path / "home", *NAMES)


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_written_is_read(home: Path, tmp_path: Path, name: str) -> None:
    form = FORMATS[name]
    if form.needs and importlib.util.find_spec(form.needs) is None:
        pytest.skip(f"no {form.needs}")
    sets = read_images(home, progress=False)
    found = read_images(form.write(shots_of(sets), tmp_path / "data"), progress=False, **form.words)
    assert digest(found) == digest(sets)
    counts = Counter({split: len(part) for split, part in found.items()})
    assert counts == ({"all": 12} if name in ONE_SET else {"train": 6, "test": 6})


def test_images_without_splits(home: Path) -> None:
    shots = shots_of(read_images(home / "train", progress=False))
    assert {shot.split for shot in shots} == {"train"}
    assert len({shot.name for shot in shots}) == 6
