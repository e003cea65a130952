"""How far an exported model is from the fitted one, and on which images."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rmadapter.artifacts.checkpoint import Saved, load
from rmadapter.artifacts.record import read_record
from rmadapter.cli.deploy import SEARCHED
from rmadapter.data.image_set import relative
from rmadapter.deploy.export.int8 import WAYS
from rmadapter.deploy.export.parity import (
    HEADER,
    LIMITS,
    ComparedImages,
    Limit,
    Parity,
    compared_images,
    generated_images,
    measure,
    training_images,
)
from rmadapter.errors import UserError

BEFORE = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.5, 0.5]])


def test_measured_differences() -> None:
    after = BEFORE + np.array([[0, 0], [-0.2, 0.2], [0.01, -0.01], [0, 0]])
    found = measure(ComparedImages("some", ["a"] * 4, [0, 0, 1, 1]), BEFORE, after)
    assert (found.images, found.same) == (4, 0.75)
    assert found.difference == pytest.approx(0.2)
    assert (found.before, found.after) == (75.0, 50.0)
    assert found.row() == ["some", "4", "75.0", "2.0e-01", "75.0", "50.0"]
    unknown = measure(ComparedImages("some", ["a"] * 4), BEFORE, BEFORE)
    assert (unknown.before, unknown.after, unknown.same, unknown.difference) == (
        None,
        None,
        1.0,
        0.0,
    )


@pytest.mark.parametrize(
    ("found", "limit", "fault"),
    [
        (Parity("", 9, 1.0, 9e-5), LIMITS["fp32"], ""),
        (Parity("", 200, 0.995, 9e-5), LIMITS["fp32"], "0.5 % of its answers differ"),
        (Parity("", 9, 1.0, 2e-4), LIMITS["fp32"], "0.0002, more than the 0.0001"),
        (Parity("", 9, 1.0, float("nan")), LIMITS["fp32"],
         "a probability differs by nan, more than the 0.0001 allowed"),
        (Parity("", 9, 0.9, 9e-3), LIMITS["fp16"], ""),
        (Parity("", 9, 0.9, 2e-2), LIMITS["fp16"], "0.02, more than the 0.01"),
        (Parity("", 9, 0.8, 0.3, 80.0, 79.6), LIMITS["int8"], ""),
        (Parity("", 9, 0.8, 0.3, 80.0, 79.0), LIMITS["int8"],
         "it loses 1.0 points of accuracy (80.0 % before), more than the 0.5 allowed"),
        (Parity("", 9, 0.0, 1.0, 80.0, 0.0), Limit(), ""),
    ],
)  # fmt: skip
def test_faults(found: Parity, limit: Limit, fault: str) -> None:
    text = found.fault(limit)
    assert (fault in text) if fault else not text


@pytest.fixture
def saved(finished: Path) -> Saved:
    return load(finished, read_record(finished / "run.json").backbone.name)


def test_held_out_images(saved: Saved, finished: Path, colors: Path, tmp_path: Path) -> None:
    given = compared_images(finished, saved, colors, False, 100)
    assert given.title == f"test images of {colors.name}"
    assert sorted(given.images, key=str) == sorted(colors.glob("test/*/*.png"))
    assert all(
        Path(str(image)).parent.name == saved.labels[i]
        for image, i in zip(given.images, given.labels, strict=True)
    )
    assert len(compared_images(finished, saved, colors, False, 5).images) == 5
    away = compared_images(
        finished, saved, None, False, 100
    )  # its data is called "colors", which is nowhere
    assert (away.title, len(away.labels)) == ("generated", 0)
    assert len(training_images(finished)) == len(away.images)
    other = shutil.copytree(colors / "test", tmp_path / "other")
    for folder in list(other.iterdir()):
        folder.rename(other / f"no {folder.name}")
    with pytest.raises(UserError, match="no readable image of the model's classes"):
        compared_images(finished, saved, other, False, 100)
    with pytest.raises(UserError, match="no such file or folder"):
        compared_images(finished, saved, tmp_path / "gone", False, 100)


def test_own_data_without_drawn_images(
    saved: Saved, finished: Path, colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(colors / "train", tmp_path / "colors/train")
    monkeypatch.chdir(tmp_path)
    held = compared_images(finished, saved, None, False, 100)
    assert held.title == "held out images of colors"
    assert len(held.images) == 4 * (6 - 4)
    given = compared_images(
        finished, saved, tmp_path / "colors", False, 100
    )  # the same, named by the user
    assert (given.title, given.labels) == (held.title, held.labels)
    assert [Path(str(image)).name for image in given.images] == [
        Path(str(image)).name for image in held.images
    ]
    other = compared_images(
        finished, saved, shutil.copytree(tmp_path / "colors", tmp_path / "other"), False, 100
    )
    assert (other.title, len(other.images)) == ("images of other", 4 * 6)
    drawn = training_images(finished)
    assert len(drawn) == 4 * 4
    assert not {Path(str(image)).resolve() for image in held.images} & {
        Path(str(i)).resolve() for i in drawn
    }


def test_validation_images_are_not_held_out(
    saved: Saved, finished: Path, colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(colors / "train", tmp_path / "colors/train")
    monkeypatch.chdir(tmp_path)
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    before = compared_images(run, saved, None, False, 100)
    split = json.loads((run / "split.json").read_text())
    first = relative(Path(str(before.images[0])).absolute(), tmp_path / "colors")
    (run / "split.json").write_text(json.dumps({**split, "val": [[first, 0, split["classes"][0]]]}))
    after = compared_images(run, saved, None, False, 100)
    assert {*map(str, before.images)} - {*map(str, after.images)} == {str(before.images[0])}
    assert len(training_images(run)) == 4 * 4


def test_generated_images_are_always_the_same() -> None:
    first, second = generated_images(3), generated_images(3)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert len({image.shape for image in first}) > 1


def test_table_with_other_column_names(
    saved: Saved, finished: Path, colors: Path, tmp_path: Path
) -> None:
    run, home = (
        shutil.copytree(finished, tmp_path / "run"),
        shutil.copytree(colors, tmp_path / "colors"),
    )
    lines = [
        f"{file.relative_to(home)};{file.parts[-2]};{file.parts[-3]}"
        for file in home.glob("t*/*/*.png")
    ]
    (home / "all.csv").write_text("\n".join(["foto;art;teil", *lines]))
    record = read_record(run / "run.json")
    task, named = (
        replace(record.task, data=str(home / "all.csv")),
        {"image": "foto", "label": "art", "split": "teil"},
    )
    for columns, title in ((named, "test images of all.csv"), ({}, "generated")):
        record.model_copy(update={"task": task, "columns": columns}).save(run / "run.json")
        assert compared_images(run, saved, None, False, 100).title == title


def test_tables_fit_into_80_columns() -> None:
    row = Parity("test images of sign_digits", 1000, 0.995, 2.8e-5, 100.0, 100.0).row()
    assert width(HEADER, row) <= 80
    assert width(SEARCHED, [WAYS[2].name, "1234.5", "100.0", "0.0042", "1234.5", "*"]) <= 80


def width(*rows: list[str]) -> int:
    return 1 + sum(3 + max(map(len, cells)) for cells in zip(*rows, strict=True))
