"""tools/every_format.py: its digest sees what matters, and a reader that errs is told."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import every_format
import pytest
from every_format import digest, line
from format_writers import FORMATS, Format, class_folders

from rmadapter.data.read import read_images
from tests.helpers.small_images import write_images


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return write_images(tmp_path / "home", *(f"{split}/{c}/{c}_{i}.png" for split in ("train", "test") for c in ("cat", "owl")
                                      for i in (1, 2)))  # fmt: skip


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


def test_rows_of_a_reader_that_errs_and_of_one_that_is_not_there(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(shots: Any, place: Path) -> Path:
        return class_folders(
            [shot._replace(label="cat") if i == 3 else shot for i, shot in enumerate(shots)], place
        )

    for name in [*FORMATS][1:]:
        monkeypatch.delitem(FORMATS, name)
    monkeypatch.setattr(sys, "argv", ["every_format.py", str(home), "--json"])
    assert every_format.main() == 0
    [right] = json.loads(capsys.readouterr().out)
    assert (right["format"], right["images"], right["classes"], right["same"]) == (
        "class folders",
        8,
        2,
        True,
    )
    assert right["mb"] == round(sum(path.stat().st_size for path in home.rglob("*.png")) / 1e6, 2)
    monkeypatch.setitem(FORMATS, "wrong", Format(wrong))
    monkeypatch.setitem(FORMATS, "gone", Format(wrong, "no_such_module"))
    assert every_format.main() == 1
    told = json.loads(capsys.readouterr().out)
    assert [row.get("same") for row in told] == [True, False, None]
    assert told[2] == {"format": "gone", "skipped": "needs no_such_module"}
    assert line(told[1]).endswith("| NO |")
    assert all(line(row).count("|") == 8 for row in told)
