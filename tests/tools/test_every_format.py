"""tools/every_format.py: its digest sees what matters, and a reader that errs is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from every_format import digest

from rmadapter.data.read import read_images
from tests.helpers.small_images import write_images


@pytest.fixture
def home(tmp_path: Path) -> Path:
    names = [f"{c}/{c}_{i}.png" for c in ("cat", "owl") for i in (1, 2)]
    return write_images(
        tmp_path / "home", *(f"{split}/{name}" for split in ("train", "test") for name in names)
    )


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RMADAPTER_CACHE", "")  # which a row sets


def test_the_digest_sees_pixels_and_labels_and_no_order(home: Path) -> None:
    sets = read_images(home, progress=False)
    train = sets["train"]
    assert digest({"all": train.subset([3, 1]), "test": train.subset([0, 2])}) == digest(
        {"all": train}
    )
    assert digest({"all": train.subset([0, 1, 2])}) != digest({"all": train})
    assert digest({"all": replace(train, labels=train.labels[::-1])}) != digest({"all": train})
    assert digest({"all": replace(train, images=train.images[:3] + train.images[:1])}) != digest(
        {"all": train}
    )
